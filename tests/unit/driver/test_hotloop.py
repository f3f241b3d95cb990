"""The loop against a disk in plain Python, which sees every descriptor: both rings, each kind of request, stamps."""

import struct
import threading
import time

import pytest

from tests.support.packed_device import PackedDevice
from tests.support.reference_device import ReferenceDevice
from vhostd.driver.arena import Arena
from vhostd.driver.hotloop import block_load
from vhostd.driver.stamp import Ledger, read_stamp
from vhostd.driver.virtqueue import Virtqueue
from vhostd.spec.blk import Request

BLOCK_LEN = 4096
BLOCKS = 64
RUN = 77


class PythonDisk:
    """Serves one ring by what the documents say, in a thread, and notes the requests it has seen."""

    def __init__(self, arena, queue, image):
        self.arena = arena
        self.image = image
        self.packed = queue.packed
        self.device = (PackedDevice if queue.packed else ReferenceDevice)(arena, queue)
        self.seen = []
        self.overlaps = 0
        self.shapes = set()
        self.spoil = None  # changes what a read returns
        self.stopped = False
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped = True
        self.thread.join()

    def run(self):
        while not self.stopped:
            held = []
            while (taken := self.device.pop()) is not None:
                held.append(taken)
            if not held:
                time.sleep(0.0001)
                continue
            sectors = [sector for kind, sector in map(self.about, held) if kind != Request.FLUSH]
            self.overlaps += len(sectors) - len(set(sectors))
            for taken in reversed(held):  # 2.7.8: in any order
                _, readable, writable = (None, taken.readable, taken.writable) if self.packed else taken
                self.device.push(taken if self.packed else taken[0], self.request(readable, writable))
            if self.packed:
                self.device.call()
            else:
                self.device.publish()

    def about(self, taken):
        """The type and first sector of a request that is still in flight."""
        readable = taken.readable if self.packed else taken[1]
        kind, _, sector = struct.unpack("<IIQ", self.arena.read(readable[0][0], 16))
        if kind == Request.DISCARD:
            (sector,) = struct.unpack("<Q", self.arena.read(readable[1][0], 8))
        return kind, sector

    def request(self, readable, writable):
        self.shapes.add((len(readable), len(writable)))
        out = b"".join(self.arena.read(gpa, length) for gpa, length in readable)
        kind, _, sector = struct.unpack("<IIQ", out[:16])
        self.seen.append((kind, sector))
        *data, (status, status_len) = writable
        assert status_len == 1
        at = 512 * sector
        if kind == Request.OUT:
            self.image[at : at + len(out) - 16] = out[16:]
        elif kind == Request.DISCARD:
            first, count, flags = struct.unpack("<QII", out[16:])
            assert flags == 0
            self.image[512 * first : 512 * (first + count)] = bytes(512 * count)
        for gpa, length in data:
            content = self.image[at : at + length]
            if self.spoil is not None:
                content = self.spoil(at, bytearray(content))
            self.arena.write(gpa, content)
            at += length
        self.arena.write(status, b"\0")
        return sum(length for _, length in writable)


@pytest.fixture(params=["split", "packed"])
def packed(request):
    return request.param == "packed"


@pytest.fixture(params=["direct", "indirect"])
def disk(request, packed):
    with (
        Arena.of(8 << 20) as arena,
        Virtqueue(arena, 64, event_idx=True, indirect=request.param == "indirect", packed=packed) as queue,
    ):
        yield queue, PythonDisk(arena, queue, bytearray(BLOCKS * BLOCK_LEN))


def load(queue, **options):
    words = {"depth": 4, "block_len": BLOCK_LEN, "disk_len": BLOCKS * BLOCK_LEN, "duration_ns": 200_000_000}
    return block_load(queue, **{**words, **options})


def test_reads_and_writes_as_a_guest_frames_them(disk):
    """5.2.6: header, data, status; flushes without data; each descriptor of the right direction."""
    queue, device = disk
    with device:
        done = load(queue, write_percent=50, segments=3, flush_every=4)
    assert (done.errors, done.short, done.wrong) == (0, 0, None)
    assert device.shapes == {(1, 4), (4, 1), (1, 1)}
    assert {kind for kind, _ in device.seen} == {Request.IN, Request.OUT, Request.FLUSH}
    assert done.flushes > 0
    assert queue.free == 64


def test_what_is_verified_survives_writes_and_discards(disk):
    """Every content is known, whatever order requests end in; blocks that were discarded are known no more."""
    queue, device = disk
    book = Ledger(0, BLOCKS, RUN)
    with device:
        done = load(queue, write_percent=60, discard_percent=20, ledger=book)
        assert (done.errors, done.short, done.wrong) == (0, 0, None)
        assert {kind for kind, _ in device.seen} == {Request.IN, Request.OUT, Request.DISCARD}
        device.seen.clear()
        swept = load(queue, ledger=book, sweep=True, duration_ns=60 * 10**9)
    assert swept.wrong is None
    known = [block for block in range(BLOCKS) if book.generation(block)]
    assert sorted(device.seen) == [(Request.IN, block * 8) for block in known]
    assert swept.ios == len(known) == book.written
    for block in known:
        found = read_stamp(bytes(device.image[block * BLOCK_LEN :][:512]))
        assert (found.sector, found.generation, found.run) == (block * 8, book.generation(block), RUN)


def test_no_two_requests_are_in_flight_on_one_block(disk):
    """Their order would be anyone's guess, and so what a read should find."""
    queue, device = disk
    with device:
        done = load(queue, write_percent=40, discard_percent=20, depth=8, ledger=Ledger(0, 16, RUN), range_blocks=16)
        assert done.wrong is None
        assert device.overlaps == 0
        load(queue, write_percent=50, depth=8, range_blocks=16)
    assert device.overlaps > 0, "without stamps nothing keeps requests apart, and this test would see it"


@pytest.mark.parametrize("segments", [1, 4])
def test_a_wrong_byte_is_found_and_ends_the_load(disk, segments):
    queue, device = disk

    def spoil(at, content):
        if at <= 9 * BLOCK_LEN + 700 < at + len(content):
            content[9 * BLOCK_LEN + 700 - at] ^= 1
        return content

    device.spoil = spoil
    with device:
        done = load(queue, write_percent=50, segments=segments, ledger=Ledger(0, BLOCKS, RUN), duration_ns=60 * 10**9)
    sector, generation, data = done.wrong
    assert sector == 9 * 8 + 1
    assert generation >= 1
    assert read_stamp(data).sector == sector
    assert not read_stamp(data).intact


def test_a_sequential_load_goes_round(disk):
    queue, device = disk
    with device:
        load(queue, sequential=True, depth=1, range_first=8, range_blocks=4, first_block=2)
    blocks = [sector // 8 for _, sector in device.seen]
    assert blocks[:6] == [10, 11, 8, 9, 10, 11]
