"""The packed ring, driver side; virtqueue.Virtqueue drives it from Python."""
