"""A chain as one checked request; nothing here is called from Python."""
