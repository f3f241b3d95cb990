"""Requests through io_uring; nothing here is called from Python."""
