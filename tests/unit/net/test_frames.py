"""Frames both ways, through the compiled handler and a real tap."""

import hashlib
import itertools
import os

import pytest

from tests.support.net import GUEST, HOST, frame, udp_frame, udp_port
from tests.unit.net.rig import FULL, MODERN, RING
from vhostd.spec import virtio
from vhostd.spec.net import Feature

LEGACY = int(RING)
MODES = {
    "legacy": LEGACY,
    "legacy merged": LEGACY | int(Feature.MRG_RXBUF),
    "modern": MODERN,
    "modern merged": MODERN | int(Feature.MRG_RXBUF),
    "all": FULL,
    "no event index": FULL & ~int(virtio.Feature.EVENT_IDX),
}


@pytest.mark.parametrize("mode", MODES)
async def test_frames_cross_both_ways(open_card, wire, mode):
    """5.1.6: header of 10 or 12 bytes, then the frame, unchanged but for padding to Ethernet's 60 bytes, in order."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(MODES[mode])
    assert guest.header_len == (10 if mode == "legacy" else 12)
    lengths = (14, 15, 60, 64, 590, 1513, 1514)
    guest.post(32, 2048)
    for length in lengths:
        sent = frame(os.urandom(min(8, length - 14)), length=length)
        host.send(sent)
        got = guest.receive()
        assert got.frame == sent.ljust(60, b"\0")
        assert got.used_lens == (guest.header_len + max(length, 60),)
        assert got.header.flags == got.header.gso_type == 0
        sent = frame(os.urandom(min(8, length - 14)), to=HOST, source=GUEST, length=length)
        guest.send(sent)
        assert host.receive() == sent
    guest.drain()
    padded = sum(max(length, 60) for length in lengths)
    assert (card.count("rx_frames"), card.count("rx_bytes")) == (len(lengths), padded)
    assert (card.count("tx_frames"), card.count("tx_bytes")) == (len(lengths), sum(lengths))
    assert await card.stop() == [len(lengths), len(lengths)]


async def test_a_short_frame_in_buffers_of_every_kind(open_card, wire):
    """ILLUMOS E.5: zeroes to 60 bytes, after a large frame too, where they fit; nothing behind them is touched."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(FULL)
    short = frame(b"arp", length=42)
    guest.post(1, 12 + 60)
    host.send(short)
    assert guest.receive().frame == short.ljust(60, b"\0")
    guest.post(1, 12 + 50)  # without room for all, what there is
    host.send(short)
    got = guest.receive()
    assert (got.frame, got.used_lens) == (short, (12 + 42,))
    guest.post(20, 600)
    host.send(frame(b"large", length=1514))
    assert len(guest.receive().used_lens) == 3
    host.send(short)  # is read straight into guest memory now
    assert guest.receive().frame == short.ljust(60, b"\0")
    guest.post(1, 12 + 60, [12, 7, 30])
    await card.stop()


def returned(virtqueue, count):
    """Wait for so many used elements."""
    used = []
    while len(used) < count:
        used += virtqueue.wait(3)
    return used


@pytest.mark.parametrize("uring", [None, False], ids=["uring", "sync"])
@pytest.mark.parametrize("mode", ["modern", "all", "no event index"])
async def test_a_flood_arrives_whole_and_in_order(open_card, wire, mode, uring):
    """P7: nothing is duplicated, reordered or corrupted; indices wrap past 2**16."""
    card = await open_card(uring=uring)
    host = wire()
    (guest,) = await card.start(MODES[mode], size=64, base=65500)
    sent, got = hashlib.sha256(), hashlib.sha256()
    guest.post(64, 1600)
    for _ in range(8):
        batch = [frame(os.urandom(16), length=60 + 23 * n) for n in range(60)]
        for data in batch:
            host.send(data)
            sent.update(data)
        for _ in batch:
            got.update(guest.receive().frame)
        guest.post(60, 1600)
    assert sent.digest() == got.digest()
    sent, got = hashlib.sha256(), hashlib.sha256()
    for _ in range(8):
        for n in range(30):
            data = frame(os.urandom(16), to=HOST, source=GUEST, length=60 + 23 * n)
            sent.update(data)
            gpa = guest.arena.alloc(12 + len(data))
            guest.arena.write(gpa + 12, data)
            guest.tx.add([(gpa, 12 + len(data))], [], token=[(gpa, 0)])
        guest.tx.kick()
        assert len(returned(guest.tx, 30)) == 30
        for _ in range(30):
            got.update(host.receive())
    assert sent.digest() == got.digest()


@pytest.mark.parametrize("features", [MODERN, LEGACY], ids=["12", "10"])
async def test_n2_a_header_and_frame_split_anywhere(open_card, wire, features):
    """N2, N5; 2.7.4: the device does not look at framing, in either direction."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(features)
    ways = [[n] for n in range(1, 64)] + [[1] * 12, [1] * 30, [4, 4, 4], [5, 5, 5, 50]]
    for number, pieces in enumerate(ways):
        data = frame(bytes([number]), to=HOST, source=GUEST, length=200)
        guest.send(data, pieces=pieces)
        assert host.receive() == data
        guest.post(1, 300, pieces)
        data = frame(bytes([number]), length=200)
        host.send(data)
        assert guest.receive().frame == data
    guest.drain()


async def test_n6_indirect_chains(open_card, wire):
    """2.7.5.3: a whole chain in a table of its own."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(FULL)
    header, body = guest.arena.alloc(12), guest.arena.alloc(100)
    data = frame(b"indirect", to=HOST, source=GUEST, length=100)
    guest.arena.write(body, data)
    guest.tx.add([(header, 12), (body, 100)], [], indirect=True)
    guest.tx.kick()
    assert host.receive() == data
    assert [used.length for used in guest.tx.wait(3)] == [0]
    guest.arena.fill(body, 100, 0)
    guest.rx.add([], [(header, 12), (body, 100)], indirect=True)
    guest.rx.kick()
    data = frame(b"indirect", length=90)
    host.send(data)
    assert [used.length for used in guest.rx.wait(3)] == [102]
    assert guest.arena.read(body, 100) == data + bytes(10)


@pytest.mark.parametrize("buffer_len", [12 + 1, 100, 500, 1024])
async def test_a_frame_is_merged_over_several_buffers(open_card, wire, buffer_len):
    """5.1.6.4: all but the last are full, num_buffers counts them, and they are used in order."""
    card = await open_card(mtu=1500)
    host = wire()
    (guest,) = await card.start(FULL, size=256)
    for length in (60, 900, 1514):
        need = -(-(length + 12) // buffer_len)
        if need > 250:
            continue
        guest.post(need, buffer_len)
        data = frame(os.urandom(9), length=length)
        host.send(data)
        got = guest.receive()
        assert got.frame == data
        assert got.header.num_buffers == len(got.used_lens) == need
        assert set(got.used_lens[:-1]) <= {buffer_len}
        assert sum(got.used_lens) == length + 12
        assert guest.rx.in_flight == 0
    assert card.count("rx_dropped") == 0


async def test_bytes_behind_a_frame_are_left_alone(open_card, wire):
    """2.7.8: the used length says what was written; nothing behind it was, neither header nor overflow."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(MODERN)
    gpa = guest.arena.alloc(2048)
    guest.arena.fill(gpa, 2048, 0xA5)
    guest.rx.add([], [(gpa, 2048)])
    guest.rx.kick()
    host.send(frame(length=100))
    (used,) = guest.rx.wait(3)
    assert used.length == 112
    assert guest.arena.read(gpa + 112, 2048 - 112) == b"\xa5" * (2048 - 112)


async def test_a_disabled_ring_is_left_alone(open_card, wire):
    """vhost-user, "Ring states": what waits is served once the ring is enabled, without a kick."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(FULL, enable=False)
    guest.post(8, 2048)
    data = frame(b"early", length=80)
    host.send(data)
    sent = frame(b"out", to=HOST, source=GUEST, length=80)
    guest.send(sent)
    assert host.silent()
    assert guest.rx.reap() == []
    await card.enable(0, enabled=True)
    assert guest.receive().frame == data
    await card.enable(1, enabled=True)
    assert host.receive() == sent
    await card.enable(0, enabled=False)
    host.send(data)
    assert host.silent()
    assert guest.rx.reap() == []
    await card.enable(0, enabled=True)
    assert guest.receive().frame == data


async def test_a_session_after_another(open_card, wire):
    """Rings stop at once and start again, with other features; what was negotiated before is forgotten."""
    card = await open_card()
    host = wire()
    for features in itertools.islice(itertools.cycle((FULL, LEGACY, MODERN)), 6):
        (guest,) = await card.start(features)
        guest.post(4, 2048)
        data = frame(os.urandom(8), length=777)
        host.send(data)
        assert guest.receive().frame == data
        guest.send(frame(b"x", to=HOST, source=GUEST, length=99))
        assert host.receive() == frame(b"x", to=HOST, source=GUEST, length=99)
        assert (await card.stop())[0] == 1
        assert card.backend.describe()["offloads"] == []


async def test_queue_pairs_each_have_their_own_queue(open_card, wire):
    """5.1.6.5.5: pairs that are not enabled get no frames; with more enabled, flows spread over them."""
    card = await open_card(queues=4, workers=2)
    host = wire()
    guests = await card.start(FULL | int(Feature.MQ), pairs=3)
    for guest in guests:
        guest.post(200, 256)
    for ring in (2, 3, 4, 5):
        await card.enable(ring, enabled=False)
    for n in range(100):
        host.send(udp_frame(1000 + n))
    assert [udp_port(guests[0].receive().frame) for _ in range(100)] == [1000 + n for n in range(100)]
    for ring in (2, 3, 4, 5):
        await card.enable(ring, enabled=True)
    for number, guest in enumerate(guests):
        guest.send(frame(bytes([number]), to=HOST, source=GUEST, length=70))
        assert host.receive()[14] == number
    for n in range(100):
        host.send(udp_frame(2000 + n))
    received = [100, 0, 0]
    ports = []
    while len(ports) < 100:
        for number, guest in enumerate(guests):
            if card.count("rx_frames", 2 * number) > received[number]:
                received[number] += 1
                ports.append(udp_port(guest.receive().frame))
    assert sorted(ports) == [2000 + n for n in range(100)]
    assert all(received)


@pytest.mark.parametrize("uring", [None, False], ids=["uring", "sync"])
async def test_a_burst_of_good_and_bad_frames_keeps_its_order(open_card, wire, uring):
    """P7, N13, N14: what is written in one go, by itself, from many buffers or not at all does not overtake."""
    card = await open_card(uring=uring)
    host = wire()
    (guest,) = await card.start(FULL)
    expected = []
    for n in range(100):
        data = frame(bytes([n]), to=HOST, source=GUEST, length=300)
        content = bytes(12) + data
        gpa = guest.arena.alloc(len(content))
        guest.arena.write(gpa, content)
        pieces = [(gpa, len(content))]
        if n % 10 == 3:  # more buffers than io_uring is given
            pieces = [(gpa + 5 * k, 5) for k in range(62)] + [(gpa + 310, 2)]
        elif n % 10 == 5:
            pieces = [(gpa, 20)]
        elif n % 10 == 6:
            guest.arena.write(gpa, b"\1\1")
        elif n % 10 == 7:
            pieces = [(1 << 40, 100)]
        if n % 10 < 5 or n % 10 > 7:
            expected.append(n)
        guest.tx.add(pieces, [], indirect=True)
    guest.tx.kick()
    assert [host.receive()[14] for _ in expected] == expected
    assert [used.length for used in returned(guest.tx, 100)] == [0] * 100
    assert (card.count("tx_frames"), card.count("tx_dropped")) == (70, 30)
    assert await card.stop() == [0, 100]
