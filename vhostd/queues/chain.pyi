"""The one checked walk from a head to buffers; nothing here is called from Python."""
