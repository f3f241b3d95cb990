"""Block and net requests against the reference device: framing, gathering, and what a device may not do."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference_device import ReferenceDevice
from vhostd.driver.arena import Arena
from vhostd.driver.blk import BlockDriver, pack_segments
from vhostd.driver.buffers import POISON, cut
from vhostd.driver.net import NetDriver, NetHeader, header_len
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec import net
from vhostd.spec.virtio import Feature


@pytest.fixture
def arena():
    with Arena.of(1 << 20) as arena:
        yield arena


def serve_block(arena, device, content, status=0, spill=0):
    """Answer one request: `content` and the status into the writable bytes, wherever they lie."""
    head, readable, writable = device.pop()
    data = content + bytes([status])
    at = 0
    for n, (gpa, length) in enumerate(writable):
        extra = spill if n + 1 == len(writable) else 0
        arena.write(gpa, data[at : at + length] + bytes(extra))
        at += length
    device.push(head, len(data))
    device.publish()
    return b"".join(arena.read(gpa, length) for gpa, length in readable)


@given(
    st.binary(max_size=64),
    st.lists(st.integers(1, 8), max_size=6),
    st.lists(st.integers(1, 8), max_size=6),
    st.booleans(),
)
@settings(deadline=None)
def test_any_framing_carries_the_same_bytes(data, readable, writable, indirect):
    """2.7.4.2: bytes, not descriptors, frame a request."""
    with Arena.of(1 << 18) as arena, Virtqueue(arena, 64) as queue:
        idle = arena.allocated
        driver, device = BlockDriver(queue), ReferenceDevice(arena, queue)
        readable = readable if sum(readable) <= 16 + len(data) else [1] * 16
        writable = writable if sum(writable) <= 49 else []
        pending = driver.submit(1, 77, data, read_len=48, readable=readable, writable=writable, indirect=indirect)
        assert serve_block(arena, device, bytes(range(48))) == struct.pack("<IIQ", 1, 0, 77) + data
        done = driver.complete(pending)
        assert (done.status, done.used_len, done.data) == (0, 49, bytes(range(48)))
        assert arena.allocated == idle


def test_what_the_device_did_not_write_stays_poison(arena):
    with Virtqueue(arena, 8) as queue:
        driver, device = BlockDriver(queue), ReferenceDevice(arena, queue)
        pending = driver.submit(0, 0, read_len=4)
        head, _, _ = device.pop()
        device.push(head, 0)
        device.publish()
        done = driver.complete(pending)
        assert (done.status, done.data) == (POISON, bytes([POISON]) * 4)
        assert not done.ok


def test_a_byte_behind_a_buffer_is_found(arena):
    with Virtqueue(arena, 8) as queue:
        driver, device = BlockDriver(queue), ReferenceDevice(arena, queue)
        pending = driver.submit(4)
        serve_block(arena, device, b"", spill=1)
        with pytest.raises(DeviceError, match="wrote behind"):
            driver.complete(pending)


def test_a_wrong_status_or_length_is_an_error_of_the_device(arena):
    """2.7.8.2."""
    with Virtqueue(arena, 8) as queue:
        driver, device = BlockDriver(queue, timeout=0.01), ReferenceDevice(arena, queue)
        driver.submit(0, 0, read_len=512)
        with pytest.raises(DeviceTimeout):
            driver.read(0, 512)
        serve_block(arena, device, bytes(512))
        serve_block(arena, device, bytes(512), status=1)
        assert [pending.completion.status for pending in driver.collect()] == [0, 1]


def test_pieces_that_are_longer_than_the_whole_are_refused():
    assert cut(10, [3, 3]) == [3, 3, 4]
    assert cut(6, [3, 3]) == [3, 3]
    assert cut(0, []) == []
    with pytest.raises(LocalProtocolError, match="longer than"):
        cut(5, [3, 3])


def test_a_full_ring_gives_its_buffers_back(arena):
    with Virtqueue(arena, 2) as queue:
        idle = arena.allocated
        with pytest.raises(LocalProtocolError, match="do not fit"):
            BlockDriver(queue).submit(0, 0, read_len=512)
        assert arena.allocated == idle


def test_segments_are_sixteen_bytes_each():
    """5.2.6: le64 sector, le32 num_sectors, le32 flags. ILLUMOS E.4's example."""
    assert pack_segments([(0x1000, 0x800)]).hex(" ") == "00 10 00 00 00 00 00 00 00 08 00 00 00 00 00 00"
    assert len(pack_segments([(0, 1), (2, 3)], 1)) == 32


@pytest.mark.parametrize(
    ("features", "length"), [(0, 10), (net.Feature.MRG_RXBUF, 12), (Feature.VERSION_1, 12)], ids=["old", "mrg", "new"]
)
def test_the_header_has_the_length_that_was_negotiated(features, length):
    """5.1.6.1; ILLUMOS E.7.6."""
    assert header_len(features) == length
    header = NetHeader(1, 1, 66, 1448, 34, 16, 2)
    assert header.pack(12).hex(" ") == "01 01 42 00 a8 05 22 00 10 00 02 00"
    assert NetHeader.unpack(header.pack(length)) == NetHeader(1, 1, 66, 1448, 34, 16, 2 if length == 12 else 0)


def make_net(arena, features):
    rx, tx = Virtqueue(arena, 16), Virtqueue(arena, 16)
    return NetDriver(rx, tx, features, timeout=0.01), ReferenceDevice(arena, rx), ReferenceDevice(arena, tx)


def test_a_frame_in_several_buffers_is_gathered(arena):
    """5.1.6.4: num_buffers in the first, no header in the others."""
    driver, rx, _ = make_net(arena, Feature.VERSION_1 | net.Feature.MRG_RXBUF)
    driver.post(3, 64, [20])
    parts = [NetHeader(num_buffers=3).pack(12) + b"a" * 52, b"b" * 64, b"c" * 9]
    for part in parts:
        head, _, writable = rx.pop()
        at = 0
        for gpa, length in writable:
            arena.write(gpa, part[at : at + length])
            at += length
        rx.push(head, len(part))
    rx.publish()
    got = driver.receive()
    assert got.frame == b"a" * 52 + b"b" * 64 + b"c" * 9
    assert got.used_lens == (64, 64, 9)
    with pytest.raises(DeviceTimeout):
        driver.receive()


@pytest.mark.parametrize(
    ("features", "num_buffers", "length"),
    [(Feature.VERSION_1 | net.Feature.MRG_RXBUF, 0, 20), (Feature.VERSION_1, 2, 20), (Feature.VERSION_1, 1, 11)],
    ids=["none", "two without MRG_RXBUF", "shorter than a header"],
)
def test_a_header_that_cannot_be_is_found(arena, features, num_buffers, length):
    """5.1.6.4.1: MUST be 1 without MRG_RXBUF, and never 0."""
    driver, rx, _ = make_net(arena, features)
    driver.post(1, 64)
    head, _, writable = rx.pop()
    arena.write(writable[0][0], NetHeader(num_buffers=num_buffers).pack(12))
    rx.push(head, length)
    rx.publish()
    with pytest.raises(DeviceError):
        driver.receive()


def test_frames_are_sent_in_any_framing_and_reclaimed(arena):
    """5.1.6.2: header and frame, over descriptors in any way."""
    driver, _, tx = make_net(arena, 0)
    idle = arena.allocated
    for pieces in (None, [], [3, 10, 1], [24]):
        driver.send(b"f" * 14, NetHeader(flags=1), pieces)
        head, readable, writable = tx.pop()
        assert not writable
        sent = b"".join(arena.read(gpa, length) for gpa, length in readable)
        assert sent == bytes([1]) + bytes(9) + b"f" * 14
        tx.push(head, 0)
        tx.publish()
    driver.drain()
    assert arena.allocated == idle
