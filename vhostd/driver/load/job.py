"""What is asked of a disk."""

import dataclasses

from vhostd.driver.frontend import DEVICE_BITS, RING_FEATURES
from vhostd.driver.load.errors import BenchError
from vhostd.spec.blk import Feature as BlkFeature
from vhostd.spec.virtio import Feature

RW = {  # name: percentage of writes (None: as asked, 50), sequential
    "read": (0, True),
    "write": (100, True),
    "randread": (0, False),
    "randwrite": (100, False),
    "randrw": (None, False),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of a back-end. `block_len` in bytes, `depth` requests in flight on each queue.

    rate: requests a second on all queues together, 0 for as many as come back. flush_every: writes. segments:
    descriptors that carry the data. ring_size: entries. The last three choose what is negotiated. image: what the
    back-end serves, where it is ours to start: "file", "direct" (past the page cache) or "null" (no medium at all);
    cache and folios: the state of the page cache before each round. idle: no request at all.
    """

    name: str
    block_len: int = 4096
    depth: int = 1
    write_percent: int = 0
    sequential: bool = False
    poll: bool = False
    queues: int = 1
    discard_percent: int = 0
    flush_every: int = 0
    segments: int = 1
    rate: int = 0
    verify: bool = False
    batch: int = 0
    ring_size: int = 256
    ring: str = "split"
    event_idx: bool = True
    indirect: bool = True
    image: str = "file"
    cache: str = "hot"
    folios: str = "small"
    idle: bool = False

    @property
    def writes(self) -> bool:
        """Whether the disk is not afterwards what it was before."""
        return bool(self.write_percent or self.discard_percent)

    @property
    def features(self) -> int:
        """What may be negotiated for this job."""
        wanted = DEVICE_BITS | RING_FEATURES
        if not self.event_idx:
            wanted &= ~Feature.EVENT_IDX
        if not self.indirect:
            wanted &= ~Feature.INDIRECT_DESC
        return wanted

    @property
    def memory_len(self) -> int:
        """Bytes of guest memory that rings and buffers of all queues take, with room to spare."""
        each = self.depth * (self.block_len + 16 * self.segments + 1024) + 64 * self.ring_size
        return max(8 << 20, 2 * self.queues * each + (4 << 20))

    def check(self, offered: int, capacity_len: int) -> None:
        """Raise BenchError when a disk with these features and bytes cannot do this job."""
        if self.writes and offered & BlkFeature.RO:
            raise BenchError(f"{self.name}: the disk is read-only; use --rw read or randread")
        if self.discard_percent and not offered & BlkFeature.DISCARD:
            raise BenchError(f"{self.name}: the back-end does not offer DISCARD")
        if self.flush_every and not offered & BlkFeature.FLUSH:
            raise BenchError(f"{self.name}: the back-end does not offer FLUSH")
        if capacity_len < self.block_len * self.queues:
            raise BenchError(
                f"{self.name}: a disk of {capacity_len} bytes has no {self.queues} blocks of {self.block_len}"
            )
        if self.verify and capacity_len // self.block_len // self.queues < 2 * self.depth:
            raise BenchError(f"{self.name}: --verify wants twice as many blocks for each queue as requests in flight")


def job_name(rw: str, block_len: int, depth: int, *, poll: bool, queues: int = 1) -> str:
    """Return the name that tables give a job: `randread 4k QD32 event`, with the queues where there are several."""
    size = f"{block_len // 1024}k" if block_len % 1024 == 0 else str(block_len)
    more = f" {queues} queues" if queues > 1 else ""
    return f"{rw} {size} QD{depth} {'poll' if poll else 'event'}{more}"
