"""Rows N1 to N46 of the catalogue of hostile input: a guest that does what it must not."""

import struct

import pytest

from tests.support.net import GUEST, HOST, frame, tcp_segment
from tests.unit.net.rig import FULL, MODERN
from vhostd.driver.arena import Arena, Region
from vhostd.driver.net import NetHeader
from vhostd.queues.queue import Code
from vhostd.spec.net import Feature

OUT = frame(b"out", to=HOST, source=GUEST, length=100)
TCP_HEADER, TCP_FRAME = tcp_segment(4000, to=HOST, source=GUEST)


def raw(guest, header, data, *, pieces=None, writable=()):
    """Offer a header of 12 bytes and a frame as given."""
    content = header.ljust(12, b"\0")[:12] + data if header is not None else data
    lengths = pieces or [len(content)]
    readable = []
    at = 0
    for length in lengths:
        gpa = guest.arena.alloc(max(length, 1))
        guest.arena.write(gpa, content[at : at + length])
        readable.append((gpa, length))
        at += length
    guest.tx.add(readable, list(writable), token=[])
    guest.tx.kick()


async def dropped(card, guest, host, why=1):
    """The chain came back with length 0, the frame went nowhere, the next one does."""
    (used,) = guest.tx.wait(3)
    assert used.length == 0
    assert card.count("tx_dropped") + card.count("tx_errors") == why
    raw(guest, bytes(12), OUT)
    assert host.receive() == OUT
    guest.tx.wait(3)
    assert card.count("ring_errors", 1) == 0


@pytest.fixture
async def trio(open_card, wire):
    """A card with everything negotiated, its guest and the host."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(FULL)
    return card, guest, host


@pytest.mark.parametrize("length", [1, 10, 11, 12])
async def test_n1_a_chain_without_a_frame(trio, length):
    card, guest, host = trio
    raw(guest, None, bytes(length))
    await dropped(card, guest, host)


@pytest.mark.parametrize("length", range(1, 14))
async def test_n3_a_frame_without_an_ethernet_header(trio, length):
    card, guest, host = trio
    raw(guest, bytes(12), bytes(length))
    await dropped(card, guest, host)


async def test_n4_writable_descriptors_in_a_transmit_chain(trio):
    """Ignored behind a frame, whose used length is 0 still; without anything readable there is no frame."""
    card, guest, host = trio
    gpa = guest.arena.alloc(64)
    guest.arena.fill(gpa, 64, 0x77)
    raw(guest, bytes(12), OUT, writable=[(gpa, 64)])
    assert host.receive() == OUT
    assert guest.tx.wait(3)[0].length == 0
    guest.tx.add([], [(gpa, 64)])
    guest.tx.kick()
    await dropped(card, guest, host)
    assert guest.arena.read(gpa, 64) == b"\x77" * 64


@pytest.mark.parametrize(
    ("length", "passes"), [(1514, True), (1522, True), (1523, False), (9000, False), (65535, False)]
)
async def test_n10_a_frame_longer_than_the_mtu(trio, length, passes):
    """Two VLAN tags do not count towards the MTU of 1500."""
    card, guest, host = trio
    data = frame(to=HOST, source=GUEST, length=length)
    raw(guest, bytes(12), data)
    if passes:
        assert host.receive() == data
    else:
        await dropped(card, guest, host)


async def test_n10_the_longest_gso_frame_and_one_longer(open_card, wire):
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    header, data = tcp_segment(65535 - 40, to=HOST, source=GUEST)
    raw(guest, header, data)
    assert host.receive()[10:] == data
    guest.tx.wait(3)
    raw(guest, header, data + bytes(5))
    (used,) = guest.tx.wait(3)
    assert used.length == 0
    assert card.count("tx_dropped") == 1


async def test_n13_a_chain_of_many_megabytes(trio):
    """A length is compared, not allocated."""
    card, guest, host = trio
    gpa = guest.arena.alloc(1 << 20)
    guest.tx.add([(gpa, 1 << 20)] * 200, [], indirect=True)
    guest.tx.kick()
    await dropped(card, guest, host)


async def test_n13_a_chain_of_four_gigabytes_breaks_the_ring(trio):
    """2.7.5: the driver MUST NOT."""
    card, guest, _ = trio
    guest.tx.add([(guest.arena.regions[0].gpa, 0xFFFFFFFF)] * 2, [])
    guest.tx.kick()
    card.wait_for("ring_errors", 1, ring=1)
    assert card.queues[1].broken is Code.E_LENGTH
    assert guest.tx.take_err() == 1


@pytest.mark.parametrize("fragments", [1000, 1023, 1024])
async def test_n14_a_frame_in_one_byte_fragments(trio, fragments):
    _card, guest, host = trio
    data = frame(to=HOST, source=GUEST, length=fragments - 12)
    content = bytes(12) + data
    gpa = guest.arena.alloc(4 * len(content))
    readable = []
    for n, byte in enumerate(content):
        guest.arena.write(gpa + 4 * n, bytes([byte]))
        readable.append((gpa + 4 * n, 1))
    guest.tx.add(readable, [], indirect=True)
    guest.tx.kick()
    assert host.receive() == data


@pytest.mark.parametrize("rest", [1 << 10, 1 << 9], ids=["linearised", "not"])
async def test_n16_more_fragments_than_one_write_takes(trio, rest):
    """IOV_MAX is 1024, and the header of ours counts."""
    card, guest, host = trio
    data = frame(to=HOST, source=GUEST, length=1500)
    content = bytes(12) + data
    gpa = guest.arena.alloc(len(content))
    guest.arena.write(gpa, content)
    # the header in one, then `rest` - 1 single bytes and what is left
    singles = [(gpa + 12 + n, 1) for n in range(rest - 2)]
    guest.tx.add([(gpa, 12), *singles, (gpa + 12 + rest - 2, 1500 - rest + 2)], [], indirect=True)
    guest.tx.kick()
    assert host.receive() == data
    # a header within the first byte's descriptor leaves every entry for the frame
    singles = [(gpa + 13 + n, 1) for n in range(rest - 1)]
    guest.tx.add([(gpa, 13), *singles[:-1], (gpa + 13 + rest - 2, 1500 - 1 - (rest - 2))], [], indirect=True)
    guest.tx.kick()
    assert host.receive() == data
    assert card.count("tx_linearised") == (1 if rest == 1024 else 0)


@pytest.mark.parametrize(
    ("start", "offset"), [(200, 16), (84, 15), (85, 14), (98, 1), (99, 0), (65535, 0), (65535, 3), (0, 65535), (0, 0)]
)
async def test_n20_a_checksum_beyond_the_frame(trio, start, offset):
    """start + offset + 2 within the frame of 100 bytes, in more than 16 bits; not in the Ethernet header."""
    card, guest, host = trio
    raw(guest, NetHeader(1, 0, 0, 0, start, offset).pack(12), OUT)
    await dropped(card, guest, host)
    assert card.count("tx_errors") == 0  # by us: the kernel's check is not relied upon


async def test_n20_a_checksum_in_the_last_bytes(open_card, wire):
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    raw(guest, NetHeader(1, 0, 0, 0, 34, 64).pack(12), OUT)
    got = host.receive()
    assert got[10:][:98] == OUT[:98]
    card.wait_for("tx_frames", 1)


@pytest.mark.parametrize("flags", [1, 2, 4, 0xFE, 0xFF])
async def test_n21_flags_that_were_not_negotiated_are_ignored(open_card, wire, flags):
    """5.1.6.2.2: the device MUST ignore flag bits it does not recognise; without CSUM the fields mean nothing."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(MODERN)
    raw(guest, NetHeader(flags, 0, 7, 9, 60000, 60000).pack(12), OUT)
    got = host.receive()
    assert got[10:] == OUT
    assert got[0] & 1 == 0


@pytest.mark.parametrize(
    "change",
    [
        {"gso_type": 1, "gso_size": 0},
        {"gso_type": 1, "gso_size": 1},
        {"gso_type": 1, "gso_size": 65535},
        {"gso_type": 1, "flags": 0},
        {"gso_type": 0x80},
        {"gso_type": 2},
        {"gso_type": 3},
        {"gso_type": 5},
        {"gso_type": 0x21},
        {"gso_type": 0x41},
        {"gso_type": 0x61},
        {"gso_type": 0x7F},
    ],
    ids=str,
)
async def test_n22_n25_segmentation_that_cannot_be(trio, change):
    """Unknown and UDP types, tunnels, ECN alone, sizes that only make work, no checksum."""
    card, guest, host = trio
    fields = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1448, "csum_start": 34, "csum_offset": 16} | change
    raw(guest, NetHeader(**fields).pack(12), TCP_FRAME)
    await dropped(card, guest, host)


@pytest.mark.parametrize(
    ("acked", "gso_type"), [(0, 1), (Feature.HOST_TSO6, 1), (Feature.HOST_TSO4, 4), (Feature.HOST_TSO4, 0x81)]
)
async def test_n22_segmentation_that_was_not_negotiated(open_card, wire, acked, gso_type):
    card = await open_card()
    host = wire()
    (guest,) = await card.start(MODERN | int(Feature.CSUM) | int(acked))
    raw(guest, NetHeader(1, gso_type, 54, 1448, 34, 16).pack(12), TCP_FRAME)
    await dropped(card, guest, host)


async def test_tso_without_csum_is_served_without_tso(open_card, wire):
    """5.1.3.1: HOST_TSO4 requires CSUM; a driver that acks it alone gets neither."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(MODERN | int(Feature.HOST_TSO4))
    raw(guest, TCP_HEADER, TCP_FRAME)
    await dropped(card, guest, host)


@pytest.mark.parametrize("payload", [b"\x88\xb5" + bytes(3000), b"\x86\xdd" + bytes(3000), b"\x08\x00" + bytes(30)])
async def test_n23_segmentation_of_what_is_not_tcp(trio, payload):
    """The kernel refuses, which is counted, or drops it."""
    card, guest, _ = trio
    raw(guest, NetHeader(1, 1, 54, 1448, 34, 16).pack(12), HOST + GUEST + payload)
    (used,) = guest.tx.wait(3)
    assert used.length == 0
    assert card.count("tx_frames") + card.count("tx_dropped") + card.count("tx_errors") == 1
    raw(guest, bytes(12), OUT)
    assert len(guest.tx.wait(3)) == 1


@pytest.mark.parametrize("hdr_len", [0, 1, 54, 4096, 65535])
async def test_n24_hdr_len_is_a_hint(open_card, wire, hdr_len):
    """5.1.6.2.2: the device MUST NOT rely on hdr_len."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    raw(guest, NetHeader(1, 1, hdr_len, 1448, 34, 16).pack(12), TCP_FRAME)
    assert host.receive()[10:] == TCP_FRAME
    card.wait_for("tx_gso", 1)


@pytest.mark.parametrize("address", [1 << 40, (1 << 64) - 1, (1 << 64) - 50])
async def test_r30_a_frame_outside_memory(trio, address):
    card, guest, host = trio
    guest.tx.add([(address, 100)], [])
    guest.tx.kick()
    await dropped(card, guest, host)


async def test_r10_a_loop_breaks_the_transmit_ring_and_only_it(trio, wire):
    card, guest, host = trio
    gpa = guest.arena.alloc(64)
    guest.tx.raw_desc(5, gpa, 64, 1, 5)
    guest.tx.raw_push(5)
    guest.tx.kick(force=True)
    card.wait_for("ring_errors", 1, ring=1)
    assert card.queues[1].broken is Code.E_LOOP
    assert guest.tx.take_err() == 1
    guest.post(1, 2048)
    host.send(frame(length=60))
    assert guest.receive().frame == frame(length=60)


@pytest.mark.parametrize("slot", [0, 1])
async def test_r1_a_head_outside_the_table(trio, slot):
    card, guest, host = trio
    queue = guest.rx if slot == 0 else guest.tx
    queue.raw_push(60000)
    queue.kick(force=True)
    if slot == 0:
        host.send(frame(length=60))
    card.wait_for("ring_errors", 1, ring=slot)
    assert card.queues[slot].broken is Code.E_HEAD
    assert queue.take_err() == 1
    assert card.count("ring_errors", slot) == 1


@pytest.mark.parametrize("length", [1, 10, 11])
async def test_n31_a_receive_buffer_without_room_for_a_header(trio, length):
    card, guest, host = trio
    gpa = guest.arena.alloc(2048)
    guest.rx.add([], [(gpa, length)])
    guest.rx.kick()
    guest.post(1, 2048)
    host.send(frame(length=60))
    used = guest.rx.wait(3)
    while len(used) < 2:
        used += guest.rx.wait(3)
    assert [u.length for u in used] == [0, 72]
    assert card.count("rx_bad_buffers") == 1
    assert card.count("rx_frames") == 1


@pytest.mark.parametrize("length", [12, 13])
async def test_n31_a_receive_buffer_with_little_more_than_a_header(trio, length):
    """Good for a merged frame."""
    _card, guest, host = trio
    guest.post(1, length)
    guest.post(1, 2048)
    host.send(frame(length=60))
    got = guest.receive()
    assert got.used_lens == (length, 72 - length)
    assert got.header.num_buffers == 2


@pytest.mark.parametrize("length", [12, 13, 71])
async def test_n32_a_buffer_smaller_than_the_frame_without_merging(open_card, wire, length):
    """The frame is dropped, the buffer stays for a smaller one."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(MODERN)
    guest.post(1, length)
    host.send(frame(length=60))
    card.wait_for("rx_dropped", 1)
    assert guest.rx.reap() == []
    if length == 71:
        host.send(frame(length=59))
        assert guest.receive().frame == frame(length=59)
    assert await card.stop() == [1 if length == 71 else 0, 0]


async def test_n33_one_of_several_buffers_is_unmapped(trio):
    """The frame is dropped, everything before the bad buffer comes back empty, nothing is half-published."""
    card, guest, host = trio
    good = [guest.arena.alloc(100) for _ in range(2)]
    for gpa in good:
        guest.arena.fill(gpa, 100, 0xA5)
        guest.rx.add([], [(gpa, 100)])
    guest.rx.add([], [(1 << 40, 2048)])
    guest.rx.add([], [(guest.arena.alloc(2048), 2048)])
    guest.rx.kick()
    host.send(frame(length=600))
    host.send(frame(length=90))
    used = []
    while len(used) < 4:
        used += guest.rx.wait(3)
    assert [u.length for u in used] == [0, 0, 0, 102]
    assert (card.count("rx_dropped"), card.count("rx_frames"), card.count("rx_bad_buffers")) == (1, 1, 1)


async def test_n33_more_buffers_than_there_are(trio):
    """The frame waits for a while: when the driver gives enough, it is delivered; nothing is half-published."""
    card, guest, host = trio
    guest.post(2, 100)
    data = frame(b"patience", length=600)
    host.send(data)
    card.wait_for("rx_delayed", 1)
    assert guest.rx.reap() == []
    guest.post(8, 100)
    got = guest.receive()
    assert got.frame == data
    assert len(got.used_lens) == 7
    assert (card.count("rx_dropped"), card.count("rx_frames")) == (0, 1)


async def test_n33_a_frame_that_never_fits_is_dropped_and_the_next_arrives(trio):
    """A driver with few and small buffers: large frames are lost, small ones are not, and nobody waits for a kick."""
    card, guest, host = trio
    guest.post(2, 100)
    host.send(frame(length=600))
    card.wait_for("rx_delayed", 1)
    host.send(frame(b"small", length=80))
    assert guest.receive(1).frame == frame(b"small", length=80)
    assert (card.count("rx_dropped"), card.count("rx_frames")) == (1, 1)


async def test_n34_a_frame_of_64k_into_tiny_buffers(open_card, wire):
    """More buffers than are ever taken for one frame: dropped at once, and the ring goes on."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL, size=2048)
    gpa = guest.arena.alloc(2048 * 13)
    for n in range(2048):
        guest.rx.add([], [(gpa + 13 * n, 13)])
    guest.rx.kick()
    header, data = tcp_segment(60000)
    host.send(header + data)
    card.wait_for("rx_dropped", 1)
    host.send(bytes(10) + frame(length=60))
    card.wait_for("rx_frames", 1)
    used = guest.rx.wait(3)
    assert sum(u.length for u in used) == 72
    assert len(used) == 6


async def test_n35_a_receive_buffer_that_is_only_readable(trio):
    _card, guest, host = trio
    gpa = guest.arena.alloc(2048)
    guest.arena.fill(gpa, 2048, 0xA5)
    guest.rx.add([(gpa, 2048)], [])
    guest.rx.kick()
    guest.post(1, 2048)
    host.send(frame(length=60))
    used = []
    while len(used) < 2:
        used += guest.rx.wait(3)
    assert [u.length for u in used] == [0, 72]
    assert guest.arena.read(gpa, 2048) == b"\xa5" * 2048


async def test_r46_a_receive_chain_over_adjacent_regions(open_card, wire):
    """R40-R42, R46: borders between regions cut buffers, not frames."""
    lengths = [1 << 20, 4096, 4096, 4096, 1 << 20]
    regions, gpa = [], 0x1000_0000
    for length in lengths:
        regions.append(Region(gpa, length))
        gpa += length
    arena = Arena(regions)
    card = await open_card(mtu=9000)
    host = wire()
    (guest,) = await card.start(MODERN, arena=arena)
    at = arena.reserve(0x1000_0000 + (1 << 20) - 6, 3 * 4096 + 20)
    data = frame(b"borders", length=9014)
    guest.rx.add([], [(at, 3 * 4096 + 20)])
    guest.rx.kick()
    host.send(data)
    (used,) = guest.rx.wait(3)
    assert used.length == 12 + 9014
    assert arena.read(at + 12, 9014) == data
    arena.write(at, bytes(12) + HOST + GUEST + data[12:])
    guest.tx.add([(at, 12 + 9014)], [])
    guest.tx.kick()
    assert host.receive() == HOST + GUEST + data[12:]


async def test_s_memory_truncated_under_the_rings(open_card, wire):
    """A memfd cut short under a buffer: the ring breaks, the process and the other ring live."""
    region, small = Region(0x1000_0000, 8 << 20), Region(0x2000_0000, 1 << 20)
    arena = Arena([region, small], seal=False)
    card = await open_card()
    host = wire()
    (guest,) = await card.start(MODERN, arena=arena)
    at = arena.alloc(4096, region=small)
    arena.truncate(small, 0)
    guest.tx.add([(at, 112)], [])
    guest.tx.kick()
    card.wait_for("ring_errors", 1, ring=1)
    assert card.queues[1].broken is Code.E_FAULT
    guest.rx.add([], [(at, 2048)])
    guest.rx.kick()
    host.send(frame(length=60))
    card.wait_for("ring_errors", 1, ring=0)
    assert card.queues[0].broken is Code.E_FAULT


async def test_random_headers_never_get_more_than_was_negotiated(open_card, wire):
    """What reaches the tap has NEEDS_CSUM alone, in bounds, and a gso_type that was negotiated."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(MODERN | int(Feature.CSUM) | int(Feature.HOST_TSO4))
    state = 12345
    passed = 0
    for _ in range(400):
        fields = []
        for bits in (8, 8, 16, 16, 16, 16):
            state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            value = state >> 40
            small = (value >> 20) & 1
            fields.append(value % (4 if small and bits == 8 else 120 if small else 1 << bits))
        before = card.count("tx_frames")
        raw(guest, struct.pack("<BBHHHHH", *fields, 0), TCP_FRAME if fields[1] else OUT)
        assert guest.tx.wait(3)[0].length == 0
        if card.count("tx_frames") > before:
            passed += 1
            assert fields[1] in (0, 1)
            if fields[0] & 1:
                assert fields[4] + fields[5] + 2 <= len(TCP_FRAME if fields[1] else OUT)
        while not host.silent(0):
            host.receive()
    assert passed > 10
