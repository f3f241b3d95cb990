"""Workers: mail, waiting and ending, with the real thread (workers' theory statement)."""

import asyncio
import os
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.support.fake_ring import DATA, WRITE, FakeRing
from vhostd.backends.block.disk import Disk
from vhostd.backends.block.handler import BlockHandler
from vhostd.workers.pool import WorkerPool


@pytest.fixture(params=[True, False], ids=["io_uring", "sync"])
async def pool(request):
    workers = WorkerPool(2, uring=request.param, poll_ns=0)
    workers.start()
    yield workers
    await workers.close()


@pytest.fixture
def disk(tmp_path):
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    yield Disk(fd, read_only=False, direct=False, memory_align=1, zero_in_place=True, serial=b"test")
    os.close(fd)


def switches(worker):
    """How often the worker's thread has slept."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == f"vhostd-wrk{worker}":
            status = (task / "status").read_text()
            return int(status.split("voluntary_ctxt_switches:")[1].split()[0])
    raise AssertionError("no such thread")


def spin(seconds):
    """Let less time pass than a sleep can: asyncio's are whole milliseconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def start(pool, disk, ring, number=0):
    worker = pool.worker_for(number)
    handler = BlockHandler(number, disk, worker.loop, 1000 + number)
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    assert await worker.send(handler.start(0, ring.queue, kick)) == 0
    return worker, handler, kick


async def test_a_handler_starts_and_stops_by_mail(pool, disk):
    ring = FakeRing()
    worker, handler, kick = await start(pool, disk, ring)
    assert await worker.send(handler.start(0, ring.queue, kick)) == -16  # EBUSY: it runs already
    assert await worker.send(handler.stop(0)) == 0
    assert await worker.send(handler.stop(0)) == 0
    os.close(kick)
    ring.close()


async def test_an_idle_worker_does_not_wake(pool, disk):
    """DESIGN 10: zero wake-ups when idle, also with a ring started."""
    ring = FakeRing()
    worker, handler, kick = await start(pool, disk, ring)
    await asyncio.sleep(0.05)  # the one late look after it asked
    before = switches(0)
    wakeups = worker.loop.counters()["wakeups"]
    await asyncio.sleep(0.3)
    assert switches(0) == before
    assert worker.loop.counters()["wakeups"] == wakeups
    await worker.send(handler.stop(0))
    os.close(kick)
    ring.close()


async def test_R2_60_mail_does_not_use_up_the_late_look(pool, disk):
    """ILLUMOS R2.60: an index without a kick is seen a while after notifications were asked for, whoever else came."""
    ring = FakeRing()
    worker, handler, kick = await start(pool, disk, ring)
    ring.guest.write(DATA, struct.pack("<IIQ", 8, 0, 0))  # GET_ID
    ring.chain(0, [(DATA, 16, 0), (DATA + 16, 20, WRITE), (DATA + 64, 1, WRITE)])
    for n in range(200):
        os.eventfd_write(kick, 1)  # a look is owed 2 ms from here ...
        spin(0.0012 + 0.00005 * (n % 16))
        asked = time.monotonic()
        os.eventfd_write(kick, 1)  # ... and one from here: this time the driver reads its flag before its index is out
        spin(0.0001)
        await worker.send(handler.set_err_fd(0, ring.err.number))  # which wakes the worker, often when the first is due
        ring.make_available(0)
        if time.monotonic() - asked > 0.0015:
            os.eventfd_write(kick, 1)  # we were kept off the processor, for longer than a store takes to be seen
        while ring.used_idx != ring.idx:
            assert time.monotonic() < asked + 5, f"request {n} was forgotten"
            await asyncio.sleep(0.0005)
    await worker.send(handler.stop(0))
    os.close(kick)
    ring.close()


async def test_mail_of_many_is_answered_each(pool, disk):
    """The mailbox: as many at a time as its slots allow."""
    ring = FakeRing()
    worker, handler, kick = await start(pool, disk, ring)
    answers = await asyncio.gather(*(worker.send(handler.enable(0, enabled=i % 2 == 0)) for i in range(500)))
    assert answers == [0] * 500
    await worker.send(handler.stop(0))
    os.close(kick)
    ring.close()


async def test_a_ring_that_breaks_is_reported_once(pool, disk):
    """queues: told once, until the ring restarts."""
    ring = FakeRing()
    reports = []
    pool.worker_for(0).subscribe(1000, lambda kind, result: reports.append((kind, result)))
    worker, handler, kick = await start(pool, disk, ring)
    ring.make_available(99)
    for _ in range(3):
        os.eventfd_write(kick, 1)
        await asyncio.sleep(0.02)
    assert reports == [(0, -3)]
    assert ring.errors() == 1
    await worker.send(handler.stop(0))
    os.close(kick)
    ring.close()


async def test_closing_joins_the_threads(disk):
    before = threading.active_count()
    workers = WorkerPool(3, uring=None, poll_ns=1000)
    workers.start()
    assert threading.active_count() == before + 3
    await workers.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("vhostd-worker")]


async def test_closing_gives_every_descriptor_back():
    def fds():
        return len(os.listdir("/proc/self/fd"))

    workers = WorkerPool(1, uring=None, poll_ns=0)
    workers.start()
    await workers.close()
    before = fds()
    for _ in range(5):
        workers = WorkerPool(2, uring=None, poll_ns=0)
        workers.start()
        await workers.close()
    assert fds() == before
