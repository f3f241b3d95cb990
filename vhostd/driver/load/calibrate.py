"""How fast the generator itself is: its loop against a disk that does nothing, on the next core."""

import os
from collections.abc import Sequence

from vhostd.driver.arena import Arena
from vhostd.driver.hotloop import block_load
from vhostd.driver.load.histogram import Histogram
from vhostd.driver.load.job import Job
from vhostd.driver.load.nulldisk import NullDisk
from vhostd.driver.load.result import Result
from vhostd.driver.virtqueue import Virtqueue

_DISK_LEN = 1 << 30

JOBS = (
    Job("calibration 4k QD1 poll", poll=True),
    Job("calibration 4k QD32 poll", depth=32, poll=True),
    Job("calibration 4k QD1 event"),
    Job("calibration 4k QD32 event", depth=32),
)
ROW = JOBS[1]  # the one that tables show


def calibrate(job: Job, cpus: Sequence[int], *, seconds: float = 0.3, tries: int = 3) -> Result:
    """Return the best of some tries of a job against the null disk: what others do meanwhile only takes away from it.

    cpus: the generator's core and the null disk's; with fewer than two both share what there is.
    """
    return max((_once(job, cpus, seconds) for _ in range(tries)), key=lambda result: result.iops)


def _once(job: Job, cpus: Sequence[int], seconds: float) -> Result:
    here = os.sched_getaffinity(0)
    with Arena.of(job.memory_len, populate=True) as arena, Virtqueue(
        arena, job.ring_size, event_idx=job.event_idx, indirect=job.indirect
    ) as queue, NullDisk(queue, {cpus[1]} if len(cpus) > 1 else None):  # fmt: skip
        try:
            if cpus:
                os.sched_setaffinity(0, {cpus[0]})
            done = block_load(
                queue,
                depth=job.depth,
                block_len=job.block_len,
                disk_len=_DISK_LEN,
                write_percent=job.write_percent,
                poll=job.poll,
                duration_ns=int(seconds * 1e9),
            )
        finally:
            os.sched_setaffinity(0, here)
    reads, writes, flushes = (Histogram(*each) for each in done.latency)
    return Result(
        done.ios, done.bytes, done.elapsed_ns / 1e9, done.kicks, done.publishes, done.sleeps, done.calls,
        reads, writes, flushes,
    )  # fmt: skip
