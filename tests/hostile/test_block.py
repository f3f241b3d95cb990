"""B10 to B53 beyond tests/protocol/test_block.py: exact answers, every engine, and requests that meet each other."""

import contextlib
import os
import struct
import threading

import pytest

from tests.hostile.attack import MIB, guest, header
from tests.hostile.conftest import IMAGE_LEN
from vhostd.driver.arena import Arena, Region
from vhostd.driver.blk import pack_segments
from vhostd.driver.buffers import POISON
from vhostd.spec.blk import TYPE_BARRIER, WRITE_ZEROES_UNMAP, Request, StatusByte

SECTORS = IMAGE_LEN // 512
OK, IOERR, UNSUPP = StatusByte.OK, StatusByte.IOERR, StatusByte.UNSUPP

# What an engine is started with, and the cases run on each of them.
ENGINES = {
    "uring": (),
    "sync": ("--aio", "sync"),
    "direct": ("--direct",),
    "direct-sync": ("--direct", "--aio", "sync"),
    "through": ("--no-write-cache",),
}

# (type, sector, data, read_len, status)
REQUESTS = {
    "B4-ffffffff": (0xFFFFFFFF, 0, b"", 0, UNSUPP),
    "B4-barrier-and-unknown": (TYPE_BARRIER | 0x1234, 0, b"", 512, UNSUPP),
    "B5-barrier-flush": (Request.FLUSH | TYPE_BARRIER, 0, b"", 0, OK),
    "B5-barrier-id": (Request.GET_ID | TYPE_BARRIER, 0, b"", 20, OK),
    "B6-scsi-with-data": (Request.SCSI_CMD_OUT, 0, b"\x12" * 96, 252, UNSUPP),
    "B10-read-1": (Request.IN, 0, b"", 1, IOERR),
    "B11-read-511": (Request.IN, 0, b"", 511, IOERR),
    "B12-read-513": (Request.IN, 0, b"", 513, IOERR),
    "B13-write-1": (Request.OUT, 0, b"x", 0, IOERR),
    "B13-write-513": (Request.OUT, 0, b"x" * 513, 0, IOERR),
    "B14-read-nothing": (Request.IN, 0, b"", 0, OK),
    "B14-write-nothing": (Request.OUT, 0, b"", 0, OK),
    "B14-read-nothing-at-the-end": (Request.IN, SECTORS, b"", 0, OK),
    "B14-read-nothing-behind-the-end": (Request.IN, SECTORS + 1, b"", 0, IOERR),
    "B15-read-over-the-end": (Request.IN, SECTORS - 1, b"", 1024, IOERR),
    "B15-write-over-the-end": (Request.OUT, SECTORS - 1, b"x" * 1024, 0, IOERR),
    "B16-read-2^64-1": (Request.IN, 2**64 - 1, b"", 512, IOERR),
    "B16-write-2^63": (Request.OUT, 2**63, b"x" * 512, 0, IOERR),
    "B17-read-2^55": (Request.IN, 2**55, b"", 512, IOERR),
    "B17-read-2^55+1": (Request.IN, 2**55 + 1, b"", 512, IOERR),
    "B17-write-2^55+1": (Request.OUT, 2**55 + 1, b"x" * 512, 0, IOERR),
    "B17-write-wraps-to-0": (Request.OUT, 2**64 - 1, b"x" * 1024, 0, IOERR),
    "B26-read-with-data-to-write": (Request.IN, 0, b"x" * 512, 512, IOERR),
    "B26-read-into-readable": (Request.IN, 0, b"x" * 512, 0, IOERR),
    "B26-write-from-writable": (Request.OUT, 0, b"", 512, IOERR),
    "B26-write-with-room": (Request.OUT, 0, b"x" * 512, 512, IOERR),
    "B30-id-0": (Request.GET_ID, 0, b"", 0, OK),
    "B33-id-64-KiB": (Request.GET_ID, 2**64 - 1, b"", 65536, OK),
    "B40-discard-nothing": (Request.DISCARD, 0, b"", 0, IOERR),
    "B40-discard-8": (Request.DISCARD, 0, bytes(8), 0, IOERR),
    "B40-zero-24": (Request.WRITE_ZEROES, 0, bytes(24), 0, IOERR),
    "B41-discard-1000-segments": (Request.DISCARD, 0, pack_segments([(0, 8)] * 1000), 0, IOERR),
    "B42-discard-at-the-end": (Request.DISCARD, 0, pack_segments([(SECTORS, 1)]), 0, IOERR),
    "B42-discard-none-at-the-end": (Request.DISCARD, 0, pack_segments([(SECTORS, 0)]), 0, OK),
    "B42-zero-none": (Request.WRITE_ZEROES, 0, pack_segments([(0, 0)]), 0, OK),
    "B42-zero-2^55+1": (Request.WRITE_ZEROES, 0, pack_segments([(2**55 + 1, 8)]), 0, IOERR),
    "B42-zero-2^64-1": (Request.WRITE_ZEROES, 0, pack_segments([(2**64 - 1, 2)]), 0, IOERR),
    "B42-zero-ffffffff": (Request.WRITE_ZEROES, 0, pack_segments([(0, 2**32 - 1)]), 0, IOERR),
    "B43-discard-flag-2": (Request.DISCARD, 0, pack_segments([(0, 8)], 2), 0, UNSUPP),
    "B43-zero-all-flags": (Request.WRITE_ZEROES, 0, pack_segments([(0, 8)], 2**32 - 1), 0, UNSUPP),
    "B44-discard-unmap": (Request.DISCARD, 0, pack_segments([(0, 8)], WRITE_ZEROES_UNMAP), 0, UNSUPP),
    "B45-partly-bad-discard": (Request.DISCARD, 0, pack_segments([(0, 8), (SECTORS, 8)]), 0, IOERR),
    "B45-partly-bad-zero": (Request.WRITE_ZEROES, 0, pack_segments([(0, 8), (8, 8), (SECTORS - 1, 2)]), 0, IOERR),
    "B45-partly-bad-flags": (
        Request.WRITE_ZEROES, 0, pack_segments([(0, 8)]) + pack_segments([(8, 8)], 4), 0, UNSUPP,
    ),
    "B47-secure-erase": (Request.SECURE_ERASE, 0, pack_segments([(0, 8)]), 0, UNSUPP),
    "B47-zone-report": (16, 0, b"", 4096, UNSUPP),
    "B47-zone-append": (15, 0, b"x" * 512, 8, UNSUPP),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_changes_nothing(target, name):
    """Its status is exact, nothing but what it was asked for is written, the image is as it was."""
    kind, sector, data, read_len, status = REQUESTS[name]
    with guest(target, indirect=True) as session:
        driver = session.block()
        done = driver.complete(driver.submit(kind, sector, data, read_len=read_len))
        assert done.status == status
        written = 20 if kind & ~TYPE_BARRIER == Request.GET_ID else 0
        assert done.data[written:] == bytes([POISON]) * len(done.data[written:])
        assert session.reads()


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory, content):
    """A daemon with one way to its image."""
    from tests.hostile.conftest import Target

    made = Target(tmp_path_factory.mktemp("engine"), content, options=ENGINES[request.param], queues=2)
    made.start()
    yield made
    made.stop()


def test_all_of_them_on_each_engine(engine):
    """B4 to B47 once more: what refuses a request does not depend on how it would have been done."""
    with guest(engine, indirect=True) as session:
        driver = session.block()
        for name, (kind, sector, data, read_len, status) in REQUESTS.items():
            done = driver.complete(driver.submit(kind, sector, data, read_len=read_len))
            assert done.status == status, name
    engine.check("all requests")


CUTS = {
    "B20-bytes": [1] * 40,
    "B22-odd": [17, 3, 511, 1],
    "B22-100+412": [100, 412],
    "B21-one": [],
    "B22-halves": [264],
}


@pytest.mark.parametrize("name", CUTS)
def test_buffers_of_any_shape_on_each_engine(engine, name):
    """B20 to B22: also where the disk wants them aligned."""
    with guest(engine, indirect=True) as session:
        driver = session.block()
        data = os.urandom(8192)
        pending = driver.submit(Request.OUT, 64, data, readable=CUTS[name])
        assert driver.complete(pending).status == OK
        pending = driver.submit(Request.IN, 64, read_len=8192, writable=CUTS[name])
        assert driver.complete(pending).data == data
        assert driver.request(Request.FLUSH).ok
        assert engine.image.read_bytes()[64 * 512 :][:8192] == data
    engine.check(name, writes=True)


def test_more_segments_than_told_in_config(engine):
    """B29: seg_max binds drivers; a request with more is served all the same."""
    with guest(engine, indirect=True, size=256) as session:
        driver = session.block()
        for pieces in (126, 127, 254, 1000):
            pending = driver.submit(Request.IN, 0, read_len=512 * 1000, writable=[512] * pieces)
            assert driver.complete(pending).data == engine.content[: 512 * 1000]
    engine.check("segments")


def test_a_list_of_segments_is_all_or_nothing(target):
    """B45: checked before the first is done."""
    with guest(target) as session:
        done = session.block().write_zeroes((0, 8), (8, 8), (SECTORS, 1))
        assert done.status == IOERR
        assert session.reads()


@pytest.mark.writes
def test_unmap_is_for_write_zeroes(target):
    """B44: legal there, and the sectors read as zeroes."""
    with guest(target) as session:
        driver = session.block()
        assert driver.write_zeroes((8, 16), flags=WRITE_ZEROES_UNMAP).ok
        assert driver.read(8, 8192) == bytes(8192)
        assert driver.read(0, 4096) == target.content[:4096]
        assert driver.read(24, 4096) == target.content[24 * 512 :][:4096]


def test_a_length_of_4_gib_in_memory_that_large(target):
    """R35, B18: the memory is there; the disk is not that long."""
    with (
        Arena([Region(0x1_0000_0000, 5 << 30)]) as arena,
        guest(target, arena=arena) as session,
    ):
        at = arena.alloc(64)
        arena.write(at, header(Request.IN, 0))
        for length in (0xFFFFFE00, 0x80000000, IMAGE_LEN + 512):
            arena.fill(at + 32, 1, POISON)
            session.queue.add([(at, 16)], [(0x1_0000_0000 + MIB, length), (at + 32, 1)])
            session.queue.kick()
            assert session.queue.wait()
            assert arena.read(at + 32, 1) == bytes([IOERR])
        assert session.reads()


@pytest.mark.writes
def test_writes_and_reads_of_one_place_on_four_rings(target):
    """B50: any order of the writes, and no sector that is neither one nor the other when they are done.

    A read that meets a write in the host's page cache may see a part of it: ext4 promises no more, direct or not.
    """
    with guest(target, queues=4, memory_len=16 * MIB) as session:
        stop = threading.Event()

        def writes(ring):
            driver = session.block(ring)
            turn = 0
            while not stop.is_set():
                driver.write(40, bytes([64 * ring + turn % 64]) * 4096)
                turn += 1

        threads = [threading.Thread(target=writes, args=(ring,)) for ring in range(3)]
        for thread in threads:
            thread.start()
        driver = session.block(3)
        for _ in range(100):
            assert len(driver.read(40, 4096)) == 4096
        stop.set()
        for thread in threads:
            thread.join()
        data = driver.read(40, 4096)
        assert data == target.image.read_bytes()[40 * 512 :][:4096]
        assert all(data[at : at + 512] == data[at : at + 1] * 512 for at in range(0, 4096, 512))


@pytest.mark.writes
def test_flush_with_a_ring_of_writes_in_flight(target):
    """B51: it covers what was complete before it was submitted; here, all."""
    with guest(target, size=256, memory_len=16 * MIB, indirect=True) as session:
        driver = session.block()
        for turn in range(20):
            writes = [driver.submit(Request.OUT, 8 * n, bytes([turn]) * 4096, kick=False) for n in range(100)]
            flush = driver.submit(Request.FLUSH)
            more = [driver.submit(Request.OUT, 1000 + 8 * n, bytes([turn]) * 4096, kick=False) for n in range(100)]
            session.queue.kick()
            assert all(driver.complete(pending).ok for pending in [*writes, flush, *more])
        assert target.image.read_bytes()[: 100 * 4096] == bytes([19]) * (100 * 4096)


def test_the_longest_rings_all_full(target):
    """B53: four rings of 32768 requests at once: taken as there is room, memory bounded."""
    with guest(target, queues=4, size=32768, memory_len=64 * MIB) as session:
        before = rss(target)
        room = session.arena.alloc(64)
        session.arena.write(room, header(Request.GET_ID))
        for queue in session.queues:
            queue.raw_desc(0, room, 16, 1, 1)
            queue.raw_desc(1, room + 16, 20, 3, 2)
            queue.raw_desc(2, room + 40, 1, 2)
            # Every third descriptor is a head of the same shape.
            count = 32768 // 3
            table = b"".join(
                struct.pack("<QIHHQIHHQIHH", room, 16, 1, 3 * n + 1, room + 16, 20, 3, 3 * n + 2, room + 40, 1, 2, 0)
                for n in range(count)
            )
            session.arena.write(queue.desc_gpa, table)
            session.arena.write(queue.avail_gpa + 4, b"".join(struct.pack("<H", 3 * n) for n in range(count)))
            queue.avail_idx = count
        for queue in session.queues:
            os.eventfd_write(queue.kick_fd.number, 1)
        for queue in session.queues:
            for _ in range(1000):
                if queue.used_idx == count:
                    break
                assert not queue.take_err()
                with contextlib.suppress(BlockingIOError):
                    session.frontend.enable(0)
            assert queue.used_idx == count
        assert rss(target) - before < 4 * MIB


def rss(target):
    with open(f"/proc/{target.pid}/status") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) << 10


def test_writes_to_a_read_only_disk(own):
    """B34: whatever says write, on any sector, is an IOERR, and the image is as it was."""
    target = own(read_only=True)
    with guest(target) as session:
        driver = session.block()
        for kind, data in (
            (Request.OUT, b"x" * 512),
            (Request.OUT, b""),
            (Request.OUT, b"x"),
            (Request.DISCARD, pack_segments([(0, 8)])),
            (Request.WRITE_ZEROES, pack_segments([(0, 8)])),
            (Request.SECURE_ERASE, pack_segments([(0, 8)])),
        ):
            assert driver.request(kind, 0, data).status in {IOERR, UNSUPP}, kind
        assert driver.request(Request.FLUSH).ok
        assert session.reads()
    assert target.image.read_bytes() == target.content
