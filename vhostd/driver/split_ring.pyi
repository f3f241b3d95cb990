"""The split ring, driver side; virtqueue.Virtqueue drives it from Python."""
