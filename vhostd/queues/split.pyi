"""The split ring, device side; queue.Queue drives it from Python."""
