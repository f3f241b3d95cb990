"""One ring of a disk: kick, chains to requests, completions to status bytes."""

from typing import final

from vhostd.backends.block.disk import Disk
from vhostd.backends.ringset import RingSet
from vhostd.workers.loop import Loop

COUNTER_NAMES: tuple[str, ...]
MAX_SEGMENTS: int
MAX_SEGMENT_SECTORS: int

@final
class BlockHandler(RingSet):
    def __init__(self, ring: int, disk: Disk, loop: Loop, user: int) -> None: ...
