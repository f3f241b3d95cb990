"""Block requests: what they do to the image, how they are framed, what comes back (5.2.6)."""

import hashlib
import os
import struct

import pytest

from tests.protocol.conftest import IMAGE_LEN, PATTERN_LEN, pattern, vhostd_only
from vhostd.driver.blk import pack_segments
from vhostd.driver.buffers import POISON
from vhostd.driver.frontend import DEVICE_BITS, RING_FEATURES
from vhostd.errors import RingError
from vhostd.spec import blk, virtio
from vhostd.spec.blk import Request, StatusByte

SECTORS = IMAGE_LEN // 512


@pytest.fixture
def session(disk):
    with disk.session() as session:
        yield session


@pytest.fixture
def driver(session):
    return session.block()


@pytest.mark.parametrize("length", [512, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("sector", [0, 1, 63])
def test_reads_return_the_image_and_count_every_byte(driver, sector, length):
    """B1; 2.7.8.2: used length is data and status."""
    data = driver.read(sector, length)
    assert hashlib.blake2b(data).digest() == hashlib.blake2b(pattern(sector * 512, length)).digest() or (
        data[: PATTERN_LEN - sector * 512] == pattern(sector * 512, PATTERN_LEN - sector * 512)
    )


def test_the_first_and_the_last_sector(driver, disk, image_bytes):
    """B3."""
    assert driver.read(0, 512) == image_bytes[:512]
    driver.write(SECTORS - 1, b"z" * 512)
    driver.flush()
    assert driver.read(SECTORS - 1, 512) == disk.on_disk(IMAGE_LEN - 512, 512) == b"z" * 512


@pytest.mark.parametrize("length", [512, 4096, 131072])
def test_writes_reach_the_image_and_nothing_else_changes(driver, disk, image_bytes, length):
    """B2; used length 1: only the status is written."""
    data = os.urandom(length)
    driver.write(9, data)
    driver.flush()
    assert disk.on_disk(9 * 512, length) == data
    assert disk.on_disk(0, 9 * 512) == image_bytes[: 9 * 512]
    assert disk.on_disk(9 * 512 + length, 65536) == image_bytes[9 * 512 + length :][:65536]
    assert driver.read(9, length) == data


@pytest.mark.parametrize(
    ("length", "wrote"), [(20, 20), (1, 1), (19, 19), (21, 20), (4096, 20)], ids=["20", "1", "19", "21", "4096"]
)
def test_get_id_gives_at_most_twenty_bytes(driver, length, wrote):
    """B30 to B33; 5.2.6: ASCII, at most 20 bytes, NUL behind it when it is shorter."""
    done = driver.request(Request.GET_ID, read_len=length)
    assert done.ok
    text, nul, _ = done.data[:wrote].partition(b"\0")
    assert text
    assert text.isascii()
    assert nul or len(text) == wrote
    assert done.data[20:] == bytes([POISON]) * (length - wrote)


@vhostd_only("qsd has one serial for all and leaves what is behind it")
@pytest.mark.parametrize("serial", ["x", "disk-0815", "t" * 20])
def test_get_id_is_the_serial_padded_with_nul(start, serial):
    """5.2.6: no NUL where the string has 20 bytes. Used length counts 20 and the status."""
    with start(serial=serial).session() as session:
        done = session.block().request(Request.GET_ID, read_len=20)
        assert done.data == serial.encode().ljust(20, b"\0")
        assert done.used_len == 21


@pytest.mark.parametrize(
    "readable",
    [[16], [8, 8], [1] * 16, [528], [10, 100], [16, 511], [4]],
    ids=lambda cuts: "+".join(map(str, cuts[:3])),
)
def test_the_header_and_data_of_a_write_are_framed_in_any_way(driver, disk, readable):
    """B20; 2.7.4.2: a device makes no assumption about framing."""
    data = os.urandom(1024)
    pending = driver.submit(Request.OUT, 33, data, readable=readable)
    assert driver.complete(pending).status == StatusByte.OK
    driver.flush()
    assert disk.on_disk(33 * 512, 1024) == data


@pytest.mark.parametrize(
    "writable",
    [[1025], [1024], [100, 412], [1, 1, 1], [512, 513], [1000]],
    ids=["one with status", "usual", "100+412", "bytes", "status behind data", "status behind 24"],
)
def test_the_data_and_status_of_a_read_are_framed_in_any_way(driver, image_bytes, writable):
    """B21, B22: buffers are bytes, not sectors; the status is the last of them."""
    pending = driver.submit(Request.IN, 2, read_len=1024, writable=writable)
    done = driver.complete(pending)
    assert (done.status, done.used_len) == (StatusByte.OK, 1025)
    assert done.data == image_bytes[1024:2048]


def test_a_read_into_single_bytes(driver, image_bytes):
    """B22: 100 descriptors of a byte."""
    pending = driver.submit(Request.IN, 0, read_len=512, writable=[1] * 100)
    done = driver.complete(pending)
    assert done.ok
    assert done.data == image_bytes[:512]


def test_a_status_in_a_long_descriptor_is_its_last_byte(driver):
    """B28; 5.2.6: the status is the final byte the device may write."""
    pending = driver.submit(Request.FLUSH, status_len=64)
    assert driver.complete(pending).status == StatusByte.OK


@pytest.mark.parametrize("type_", [5, 6, 7, 9, 10, 0x1234, 0x7FFF_FFFF], ids=hex)
def test_an_unknown_type_is_unsupported(driver, type_):
    """B4; 5.2.6: UNSUPP, the status is written in any case, and the queue goes on."""
    assert driver.request(type_).status == StatusByte.UNSUPP
    assert driver.read(0, 512)


@pytest.mark.parametrize("type_", [Request.GET_LIFETIME, Request.SECURE_ERASE, *range(15, 28)], ids=int)
def test_what_was_not_offered_is_unsupported(driver, type_):
    """B46, B47."""
    assert driver.request(type_, read_len=64).status == StatusByte.UNSUPP


@vhostd_only("qsd says UNSUPP to SCSI but parses none of it")
@pytest.mark.parametrize("type_", [Request.SCSI_CMD, Request.SCSI_CMD_OUT], ids=int)
def test_scsi_is_unsupported(driver, type_):
    """B6."""
    assert driver.request(type_).status == StatusByte.UNSUPP


def test_the_barrier_bit_of_old_drivers_is_masked(driver, image_bytes):
    """B5."""
    done = driver.request(Request.IN | blk.TYPE_BARRIER, 0, read_len=512)
    assert done.ok
    assert done.data == image_bytes[:512]


@pytest.mark.parametrize("length", [1, 511, 513, 1000])
@pytest.mark.parametrize("type_", [Request.IN, Request.OUT], ids=["read", "write"])
def test_data_that_is_no_whole_sectors_is_an_error(driver, disk, type_, length):
    """B10 to B13."""
    before = disk.digest()
    if type_ == Request.IN:
        assert driver.request(type_, 0, read_len=length).status == StatusByte.IOERR
    else:
        assert driver.request(type_, 0, b"x" * length).status == StatusByte.IOERR
    driver.flush()
    assert disk.digest() == before


@pytest.mark.parametrize("type_", [Request.IN, Request.OUT], ids=["read", "write"])
@pytest.mark.parametrize(
    "sector", [SECTORS, SECTORS - 1, 2**32, 2**55 + 1, 2**63, 2**64 - 1], ids=lambda sector: hex(sector)
)
def test_what_lies_behind_the_end_is_an_error(driver, disk, type_, sector):
    """B15 to B17: 2**55 + 1 sectors are 512 bytes modulo 2**64. The image is as before."""
    before = disk.digest()
    data = b"x" * 1024
    done = driver.request(type_, sector, data if type_ == Request.OUT else b"", read_len=1024 * (type_ == Request.IN))
    assert done.status == StatusByte.IOERR
    driver.flush()
    assert disk.digest() == before


def test_read_into_what_is_read_only_for_the_device(driver):
    """B26: a read needs room for data; the readable bytes stay as they are."""
    pending = driver.submit(Request.IN, 0, b"k" * 512)
    assert driver.complete(pending).status in {StatusByte.IOERR, StatusByte.OK}
    assert driver.read(0, 512)


@pytest.mark.parametrize("type_", [Request.OUT, Request.DISCARD, Request.WRITE_ZEROES], ids=lambda t: t.name)
def test_a_read_only_disk_takes_no_writes(start, type_):
    """B34; 5.2.6.2: IOERR, and the image is the same."""
    disk = start(read_only=True)
    before = disk.digest()
    with disk.session() as session:
        data = b"x" * 512 if type_ == Request.OUT else pack_segments([(0, 8)])
        assert session.block().request(type_, 0, data).status in {StatusByte.IOERR, StatusByte.UNSUPP}
        assert session.block().read(0, 512)
    assert disk.digest() == before


def test_flush_is_honoured_where_it_was_not_negotiated(disk):
    """B1."""
    with disk.session(features=virtio.Feature.VERSION_1 | virtio.Feature.PROTOCOL_FEATURES) as session:
        assert session.block().request(Request.FLUSH).status == StatusByte.OK


def zeroed(driver, sector, sectors):
    return driver.read(sector, sectors * 512) == bytes(sectors * 512)


def test_write_zeroes_reads_back_as_zeroes(driver, image_bytes):
    """5.2.6: and its neighbours are as before. Used length 1."""
    done = driver.write_zeroes((8, 16))
    assert (done.status, done.used_len) == (StatusByte.OK, 1)
    assert zeroed(driver, 8, 16)
    assert driver.read(0, 4096) == image_bytes[:4096]
    assert driver.read(24, 4096) == image_bytes[24 * 512 :][:4096]


def test_discard_is_done_and_the_neighbours_are_as_before(driver, disk, image_bytes):
    """5.2.6: and punches a hole where the file system can. Used length 1."""
    used_before = disk.image.stat().st_blocks
    done = driver.discard((256, 1024))
    assert (done.status, done.used_len) == (StatusByte.OK, 1)
    driver.flush()
    assert disk.image.stat().st_blocks <= used_before - 1024
    assert driver.read(0, 256 * 512) == image_bytes[: 256 * 512]
    assert driver.read(1280, 4096) == image_bytes[1280 * 512 :][:4096]


@pytest.mark.parametrize("type_", [Request.DISCARD, Request.WRITE_ZEROES], ids=lambda t: t.name)
@pytest.mark.parametrize("readable", [[16, 8], [1] * 32, [32]], ids=["8+8", "bytes", "one"])
def test_segments_are_framed_in_any_way(driver, type_, readable):
    """B40: bytes, not descriptors."""
    pending = driver.submit(type_, 0, pack_segments([(0, 8)]), readable=readable)
    assert driver.complete(pending).status == StatusByte.OK
    assert zeroed(driver, 0, 8)


@pytest.mark.parametrize("type_", [Request.DISCARD, Request.WRITE_ZEROES], ids=lambda t: t.name)
@pytest.mark.parametrize("data", [b"", bytes(15), bytes(17)], ids=len)
def test_a_broken_segment_list_is_an_error(driver, disk, type_, data):
    """B40."""
    before = disk.digest()
    assert driver.request(type_, 0, data).status in {StatusByte.IOERR, StatusByte.UNSUPP}
    assert disk.digest() == before


@pytest.mark.parametrize("type_", [Request.DISCARD, Request.WRITE_ZEROES], ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("sector", "count"),
    [(SECTORS, 1), (SECTORS - 1, 2), (2**64 - 1, 1), (2**55 + 1, 8), (0, 2**32 - 1)],
    ids=["end", "over", "wrap", "times 512 wraps", "huge"],
)
def test_a_segment_behind_the_end_is_an_error(driver, disk, type_, sector, count):
    """B42."""
    before = disk.digest()
    assert driver.request(type_, 0, pack_segments([(sector, count)])).status == StatusByte.IOERR
    driver.flush()
    assert disk.digest() == before


@vhostd_only("qsd carries out what was not negotiated")
@pytest.mark.parametrize("type_", [Request.DISCARD, Request.WRITE_ZEROES], ids=lambda t: t.name)
def test_what_was_not_negotiated_is_unsupported(disk, type_):
    """B46; 2.2: a driver uses the features it has acknowledged; the rest is not there."""
    before = disk.digest()
    features = DEVICE_BITS & ~(blk.Feature.DISCARD | blk.Feature.WRITE_ZEROES) | RING_FEATURES
    with disk.session(features=features) as session:
        done = session.block().request(type_, 0, pack_segments([(0, 8)]))
        assert done.status == StatusByte.UNSUPP
    assert disk.digest() == before


@pytest.mark.parametrize("type_", [Request.DISCARD, Request.WRITE_ZEROES], ids=lambda t: t.name)
@pytest.mark.parametrize("flags", [2, 0x8000_0000], ids=hex)
def test_reserved_flags_of_a_segment_are_unsupported(driver, disk, type_, flags):
    """B43; 5.2.6.2: MUST be UNSUPP."""
    before = disk.digest()
    assert driver.request(type_, 0, pack_segments([(0, 8)], flags)).status == StatusByte.UNSUPP
    assert disk.digest() == before


def test_unmap_on_discard_is_unsupported(driver, disk):
    """B44; 5.2.6.2: MUST be UNSUPP."""
    before = disk.digest()
    assert driver.discard((0, 8), flags=blk.WRITE_ZEROES_UNMAP).status == StatusByte.UNSUPP
    assert disk.digest() == before


def test_more_segments_than_told_are_an_error(session, disk):
    """B41."""
    limit = struct.unpack_from("<I", session.frontend.config(), blk.ConfigOffset.MAX_WRITE_ZEROES_SEG)[0]
    before = disk.digest()
    done = session.block().write_zeroes(*((8 * n, 8) for n in range(limit + 1)))
    assert done.status in {StatusByte.IOERR, StatusByte.UNSUPP}
    session.block().flush()
    assert disk.digest() == before


def test_as_many_segments_as_told_are_done(session):
    """5.2.6: each of max_write_zeroes_seg."""
    limit = struct.unpack_from("<I", session.frontend.config(), blk.ConfigOffset.MAX_WRITE_ZEROES_SEG)[0]
    count = min(limit, 16)
    assert session.block().write_zeroes(*((16 * n, 8) for n in range(count))).ok
    for n in range(count):
        assert zeroed(session.block(), 16 * n, 8)
        assert not zeroed(session.block(), 16 * n + 8, 8)


BAD_CHAINS = {
    "header of 15 bytes and no status": ([(16, 15)], []),
    "header alone": ([(0, 16)], []),
    "status alone": ([], [(64, 1)]),
    "status of no bytes": ([(0, 16)], [(64, 0)]),
}


@vhostd_only("qsd leaves the ring in silence")
@pytest.mark.parametrize("chain", BAD_CHAINS)
def test_a_request_that_is_none_breaks_the_ring_loudly(session, chain):
    """B23 to B25: a request whose status has no place is a driver's error; the error eventfd tells it."""
    queue = session.queues[0]
    at = session.arena.alloc(128)
    readable, writable = ([(at + offset, length) for offset, length in part] for part in BAD_CHAINS[chain])
    queue.add(readable, writable)
    queue.kick()
    with pytest.raises(RingError):
        queue.wait(5)


@vhostd_only("qsd leaves the ring in silence")
@pytest.mark.parametrize("length", [1, 15])
def test_a_header_that_is_too_short_is_answered_where_there_is_a_status(driver, length):
    """B23: IOERR, and the ring goes on."""
    queue, at = driver.queue, driver.arena.alloc(64)
    driver.arena.fill(at + 32, 1, POISON)
    queue.add([(at, length)], [(at + 32, 1)])
    queue.kick()
    assert [used.length for used in queue.wait()] == [1]
    assert driver.arena.read(at + 32, 1) == bytes([StatusByte.IOERR])
    assert driver.read(0, 512)


@vhostd_only("qsd counts the bytes of the chain, written or not")
@pytest.mark.parametrize(
    ("type_", "room", "status", "used_len"),
    [
        (Request.GET_ID, 4096, StatusByte.OK, 20),
        (Request.GET_ID, 20, StatusByte.OK, 21),
        (Request.GET_ID, 5, StatusByte.OK, 6),
        (Request.FLUSH, 0, StatusByte.OK, 1),
        (0x1234, 0, StatusByte.UNSUPP, 1),
        (0x1234, 512, StatusByte.UNSUPP, 0),
        (Request.IN, 511, StatusByte.IOERR, 0),
    ],
)
def test_used_lengths_count_what_was_written_without_a_gap(driver, type_, room, status, used_len):
    """2.7.8.2: at least `len` bytes were written, from the first device-writable one on."""
    done = driver.request(type_, read_len=room)
    assert (done.status, done.used_len) == (status, used_len)


def test_depth_of_the_whole_ring_in_any_order(disk, image_bytes):
    """2.7.8: more requests in flight than a batch takes, each answered once."""
    with disk.session(size=256) as session:
        driver = session.block()
        flying = [driver.submit(Request.IN, n % 2048, read_len=512, kick=False) for n in range(256)]
        session.queues[0].kick()
        for n, pending in enumerate(flying):
            assert driver.complete(pending).data == image_bytes[n * 512 :][:512]
        assert session.queues[0].free == 256


def test_writes_and_reads_of_one_sector_in_flight_tear_no_sector(driver):
    """B50: any serial order."""
    flying = []
    for n in range(16):
        flying.append(driver.submit(Request.OUT, 40, bytes([n]) * 512))
        flying.append(driver.submit(Request.IN, 40, read_len=512))
    for pending in flying:
        data = driver.complete(pending).data
        assert not data or len(set(data)) == 1 or data == pattern(40 * 512, 512)
