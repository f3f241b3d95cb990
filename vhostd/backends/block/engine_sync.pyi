"""Requests through preadv2 and pwritev2; nothing here is called from Python."""
