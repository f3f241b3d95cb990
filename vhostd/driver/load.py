"""Load for any block back-end: jobs, results, percentiles. The inner loop is `hotloop`.

A closed loop: a new request goes out when one comes back, so the depth is constant. It ends after its time, whatever
the back-end does.
"""

import concurrent.futures
import dataclasses
import struct

from vhostd.driver.hotloop import Counters, block_load, bucket_bounds
from vhostd.driver.session import Session
from vhostd.errors import DeviceError
from vhostd.spec.blk import SECTOR_LEN, ConfigOffset


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of a back-end. `block_len` in bytes, `depth` requests in flight on each queue."""

    name: str
    block_len: int = 4096
    depth: int = 1
    write_percent: int = 0
    sequential: bool = False
    poll: bool = False
    queues: int = 1


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a job; `latency` counts requests by `hotloop.bucket_bounds`."""

    ios: int
    transferred_len: int
    seconds: float
    kicks: int
    publishes: int
    sleeps: int
    calls: int
    latency: tuple[int, ...]

    @property
    def iops(self) -> float:
        """Requests a second."""
        return self.ios / self.seconds

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.transferred_len / self.seconds

    def percentile(self, percent: float) -> float:
        """Return the latency in ns that `percent` of the requests did not exceed, to within 12.5 %."""
        wanted = percent / 100 * sum(self.latency)
        seen = 0
        for index, count in enumerate(self.latency):
            seen += count
            if count and seen >= wanted:
                return float(bucket_bounds(index)[1])
        return 0.0


def disk_len(session: Session) -> int:
    """Return the capacity in bytes that the back-end tells."""
    (sectors,) = struct.unpack("<Q", session.frontend.config(ConfigOffset.CAPACITY, 8))
    return int(sectors) * SECTOR_LEN


def run_job(session: Session, job: Job, seconds: float, *, seed: int = 1) -> Result:
    """Run a job on the first `job.queues` queues of a started session, a thread each.

    Raises DeviceError when a request failed or was used with a wrong length, DeviceTimeout when one never came back.
    """
    length = disk_len(session)
    blocks = length // job.block_len

    def one(index: int) -> Counters:
        return block_load(
            session.queues[index],
            depth=job.depth,
            block_len=job.block_len,
            disk_len=length,
            write_percent=job.write_percent,
            sequential=job.sequential,
            poll=job.poll,
            duration_ns=int(seconds * 1e9),
            seed=seed + index,
            first_block=blocks * index // job.queues,
        )

    if job.queues == 1:
        counters = [one(0)]
    else:
        with concurrent.futures.ThreadPoolExecutor(job.queues) as pool:
            counters = list(pool.map(one, range(job.queues)))
    if errors := sum(c.errors for c in counters):
        raise DeviceError(f"{job.name}: {errors} requests failed")
    if short := sum(c.short for c in counters):
        raise DeviceError(f"{job.name}: {short} requests were used with a wrong length (2.7.8.2)")
    return Result(
        ios=sum(c.ios for c in counters),
        transferred_len=sum(c.bytes for c in counters),
        seconds=max(c.elapsed_ns for c in counters) / 1e9,
        kicks=sum(c.kicks for c in counters),
        publishes=sum(c.publishes for c in counters),
        sleeps=sum(c.sleeps for c in counters),
        calls=sum(c.calls for c in counters),
        latency=tuple(map(sum, zip(*(c.latency for c in counters), strict=True))),
    )
