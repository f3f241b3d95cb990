"""Processors that do not sleep while something is measured.

What wakes a thread on a sleeping processor waits until that is up: microseconds on a machine of its own, and on a
virtual one, which the host has to schedule again, as long as the host likes. That changes from minute to minute, and is
most of what a request costs at depth 1. A latency of 0 asked of the kernel has idle processors poll instead.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vhostd.driver.load.errors import BenchError

DEVICE = Path("/dev/cpu_dma_latency")  # admin-guide/pm/cpuidle: a 32-bit number of microseconds, while it is open


@contextlib.contextmanager
def awake(device: Path = DEVICE) -> Iterator[None]:
    """Keep all processors from sleeping until the block ends. Raises BenchError where the kernel does not let us."""
    try:
        fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BenchError(f"--awake: {device}: {error.strerror}; it is root's, where the kernel manages idle") from error
    try:
        os.write(fd, bytes(4))
        yield
    finally:
        os.close(fd)
