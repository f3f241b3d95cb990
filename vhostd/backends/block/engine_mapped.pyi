"""Requests through a mapping of the image; nothing here is called from Python."""
