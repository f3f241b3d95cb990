"""One ring of a disk: kick, chains to requests, completions to status bytes."""

from typing import final

from vhostd.backends.ringset import RingSet
from vhostd.workers.loop import Loop

COUNTER_NAMES: tuple[str, ...]
MAX_SEGMENTS: int
MAX_SEGMENT_SECTORS: int

@final
class Disk:
    def __init__(
        self, fd: int, *, read_only: bool, direct: bool, memory_align: int, zero_in_place: bool, serial: bytes
    ) -> None: ...
    @property
    def capacity_sectors(self) -> int: ...
    @capacity_sectors.setter
    def capacity_sectors(self, sectors: int) -> None: ...
    @property
    def acked(self) -> int: ...
    @acked.setter
    def acked(self, features: int) -> None: ...
    @property
    def write_through(self) -> bool: ...
    @write_through.setter
    def write_through(self, through: bool) -> None: ...
    @property
    def flush_failed(self) -> bool: ...
    def fail_flushes(self) -> None: ...

@final
class BlockHandler(RingSet):
    def __init__(self, ring: int, disk: Disk, loop: Loop, user: int) -> None: ...

def fallocate(fd: int, mode: int, offset: int, length: int) -> int: ...
