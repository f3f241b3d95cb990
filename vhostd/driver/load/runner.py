"""Runs a job on the queues of a session, a thread each."""

import concurrent.futures
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from vhostd.driver.gauge import Gauge
from vhostd.driver.hotloop import Counters, block_load
from vhostd.driver.load.histogram import Histogram
from vhostd.driver.load.job import Job
from vhostd.driver.load.result import SAMPLE_NS, Result
from vhostd.driver.load.verify import VerifyError, examine
from vhostd.driver.session import Session
from vhostd.driver.stamp import Ledger
from vhostd.errors import DeviceError
from vhostd.spec.blk import SECTOR_LEN, ConfigOffset, Request

SWEEP_SECONDS = 3600.0
LOOK_SECONDS = 0.1  # between two looks at a load that somebody watches
BLOCKS_MAX = 1 << 32  # what the loop's choice of a block can tell apart

T = TypeVar("T")
Watcher = Callable[[float, int, bool], None]  # seconds so far, requests so far, whether it is over


def disk_len(session: Session) -> int:
    """Return the capacity in bytes that the back-end tells."""
    (sectors,) = struct.unpack("<Q", session.frontend.config(ConfigOffset.CAPACITY, 8))
    return int(sectors) * SECTOR_LEN


def ledgers(session: Session, job: Job) -> list[Ledger]:
    """Return a ledger for each queue of a job: disjoint ranges that cover the disk."""
    blocks = _blocks(session, job)
    run = int.from_bytes(os.urandom(8), "little")
    each = blocks // job.queues
    return [Ledger(each * index, each, run, any_run=not job.writes) for index in range(job.queues)]


def run_job(
    session: Session,
    job: Job,
    seconds: float,
    *,
    seed: int = 1,
    books: Sequence[Ledger] = (),
    cpus: Sequence[int] = (),
    watch: Watcher | None = None,
) -> Result:
    """Run a job on the first `job.queues` queues of a started session, a thread each.

    books: the ledgers of a verified job, from `ledgers`, which a job that follows goes on with; a verified job
    without them begins its own. cpus: what the threads run on, one each, over again. watch: called ten times a second.
    Raises DeviceError when a request failed or was used with a wrong length, VerifyError for a wrong byte,
    DeviceTimeout when a request never came back.
    """
    length = disk_len(session)
    if job.verify and not books:
        books = ledgers(session, job)
    blocks = _blocks(session, job)
    gauges = [Gauge(int(seconds * 1e9) // SAMPLE_NS + 20, SAMPLE_NS) for _ in range(job.queues)]

    def one(index: int) -> Counters:
        if cpus:
            os.sched_setaffinity(0, {cpus[index % len(cpus)]})
        each = blocks // job.queues
        bounds = (
            {"range_first": each * index, "range_blocks": each, "ledger": books[index]}
            if books
            else {"range_blocks": blocks, "first_block": blocks * index // job.queues}
        )
        return block_load(
            session.queues[index],
            depth=job.depth,
            block_len=job.block_len,
            disk_len=length,
            write_percent=job.write_percent,
            discard_percent=job.discard_percent,
            flush_every=job.flush_every,
            segments=job.segments,
            sequential=job.sequential,
            poll=job.poll,
            batch=job.batch,
            duration_ns=int(seconds * 1e9),
            seed=seed + index,
            rate=job.rate,
            share=job.queues,
            turn=index,
            gauge=gauges[index],
            **bounds,
        )

    counters = in_threads(one, job.queues, gauges, watch)
    _check(job, counters, books)
    return _result(counters, gauges)


def sweep(session: Session, job: Job, books: Sequence[Ledger]) -> int:
    """Read back, once, every block whose content the ledgers know; return how many.

    Raises VerifyError for a wrong byte, DeviceError for a failed request.
    """
    length, each = disk_len(session), _blocks(session, job) // job.queues  # asked here: a front-end is one thread's
    gauges = [Gauge(1) for _ in books]

    def one(index: int) -> Counters:
        return block_load(
            session.queues[index],
            depth=job.depth,
            block_len=job.block_len,
            disk_len=length,
            poll=job.poll,
            segments=job.segments,
            duration_ns=int(SWEEP_SECONDS * 1e9),
            range_first=each * index,
            range_blocks=each,
            ledger=books[index],
            sweep=True,
            gauge=gauges[index],
        )

    counters = in_threads(one, job.queues, gauges, None)
    _check(job, counters, books)
    return sum(c.ios for c in counters)


def _blocks(session: Session, job: Job) -> int:
    return min(disk_len(session) // job.block_len, BLOCKS_MAX - 1)


def in_threads(one: Callable[[int], T], queues: int, gauges: Sequence[Gauge], watch: Watcher | None) -> list[T]:
    """Call `one` for each queue, in threads whose loops an exception here stops before it goes on its way."""
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(queues) as pool:
        running = [pool.submit(one, index) for index in range(queues)]
        try:
            while concurrent.futures.wait(running, LOOK_SECONDS if watch else None).not_done:
                if watch is not None:
                    watch(time.monotonic() - begin, sum(_last(gauge.samples) for gauge in gauges), False)
        finally:
            for gauge in gauges:
                gauge.stop()
        if watch is not None:
            watch(time.monotonic() - begin, 0, True)
        return [each.result() for each in running]


def _last(samples: list[int]) -> int:
    return samples[-1] if samples else 0


def _check(job: Job, counters: Sequence[Counters], books: Sequence[Ledger]) -> None:
    for index, each in enumerate(counters):
        if each.wrong is not None:
            raise VerifyError(examine(*each.wrong, books[index].run, any_run=not job.writes))
    if errors := sum(c.errors for c in counters):
        status, kind, sector = next(c.failed for c in counters if c.failed is not None)
        name = Request(kind).name if kind in set(Request) else str(kind)
        raise DeviceError(
            f"{job.name}: {errors} requests failed; the first: {name} at sector {sector}, status {status}"
        )
    if short := sum(c.short for c in counters):
        raise DeviceError(f"{job.name}: {short} requests were used with a wrong length (2.7.8.2)")


def _result(counters: Sequence[Counters], gauges: Sequence[Gauge]) -> Result:
    reads, writes, flushes = (Histogram.sum(Histogram(*c.latency[kind]) for c in counters) for kind in range(3))
    return Result(
        ios=sum(c.ios for c in counters),
        transferred_len=sum(c.bytes for c in counters),
        seconds=max(c.elapsed_ns for c in counters) / 1e9,
        kicks=sum(c.kicks for c in counters),
        publishes=sum(c.publishes for c in counters),
        sleeps=sum(c.sleeps for c in counters),
        calls=sum(c.calls for c in counters),
        reads=reads,
        writes=writes,
        flushes=flushes,
        samples=differences([gauge.samples for gauge in gauges])[: max(c.elapsed_ns for c in counters) // SAMPLE_NS],
        unsent=sum(c.unsent for c in counters),
    )


def differences(totals: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return what came in each interval on all queues, of the queues' running totals; as long as the shortest."""
    sums = [sum(at) for at in zip(*totals, strict=False)]
    return tuple(after - before for before, after in zip([0, *sums], sums, strict=False))
