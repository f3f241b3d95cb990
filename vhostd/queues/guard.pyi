"""SIGBUS inside guest memory becomes zero pages and a flag; nothing here is called from Python."""
