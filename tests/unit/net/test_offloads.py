"""Checksums and segments left undone: the header crosses, and only to who negotiated it."""

import ctypes
import fcntl
import socket
import struct

import pytest

from tests.support.net import GUEST, HOST, frame, tcp_segment
from tests.unit.net.rig import FULL, MODERN
from vhostd.backends.net.backend import effective
from vhostd.driver.net import NetHeader
from vhostd.spec.net import Feature

SIOCETHTOOL = 0x8946
ETHTOOL_GTXCSUM, ETHTOOL_GTSO = 0x16, 0x1E
OFFLOADS = MODERN | int(Feature.MRG_RXBUF)


def asked_of_the_tap(netns, command, name="tap0"):
    """What ethtool says the kernel may leave to the reader of a tap: its transmit offloads."""

    def ask():
        value = bytearray(struct.pack("II", command, 0))
        address = ctypes.addressof((ctypes.c_char * 8).from_buffer(value))
        request = struct.pack("16sQ16x", name.encode(), address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control.fileno(), SIOCETHTOOL, request)
        return struct.unpack("II", value)[1]

    return netns.call(ask)


@pytest.mark.parametrize(
    ("features", "offloads", "csum", "tso"),
    [
        (0, [], 0, 0),
        (Feature.GUEST_CSUM, ["csum"], 1, 0),
        (Feature.GUEST_CSUM | Feature.GUEST_TSO4, ["csum", "tso4"], 1, 1),
        (Feature.GUEST_CSUM | Feature.GUEST_TSO6 | Feature.GUEST_ECN, ["csum", "tso6"], 1, 1),
        (
            Feature.GUEST_CSUM | Feature.GUEST_TSO4 | Feature.GUEST_TSO6 | Feature.GUEST_ECN,
            ["csum", "tso4", "tso6"],
            1,
            1,
        ),
        (Feature.GUEST_TSO4 | Feature.GUEST_TSO6 | Feature.GUEST_ECN, [], 0, 0),
        (Feature.GUEST_CSUM | Feature.GUEST_ECN, ["csum"], 1, 0),
    ],
    ids=str,
)
async def test_the_tap_leaves_undone_what_the_driver_can_do(open_card, netns, features, offloads, csum, tso):
    """5.1.4.2: the mask of TUNSETOFFLOAD follows the GUEST_ bits, each with what it requires (5.1.3.1)."""
    card = await open_card()
    card.backend.set_features(MODERN | int(features))
    assert card.backend.describe()["offloads"] == offloads
    assert asked_of_the_tap(netns, ETHTOOL_GTXCSUM) == csum
    assert asked_of_the_tap(netns, ETHTOOL_GTSO) == tso
    card.backend.on_session_end()
    assert asked_of_the_tap(netns, ETHTOOL_GTXCSUM) == 0


def test_f_requirements_of_features():
    """5.1.3.1, line by line."""
    everything = int(
        Feature.CSUM
        | Feature.HOST_TSO4
        | Feature.HOST_TSO6
        | Feature.HOST_ECN
        | Feature.GUEST_CSUM
        | Feature.GUEST_TSO4
        | Feature.GUEST_TSO6
        | Feature.GUEST_ECN
    )
    assert effective(everything) == everything
    assert effective(everything & ~Feature.CSUM) & (Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.HOST_ECN) == 0
    assert (
        effective(everything & ~Feature.GUEST_CSUM) & (Feature.GUEST_TSO4 | Feature.GUEST_TSO6 | Feature.GUEST_ECN) == 0
    )
    assert effective(int(Feature.CSUM | Feature.HOST_ECN)) == Feature.CSUM
    assert effective(int(Feature.GUEST_CSUM | Feature.GUEST_ECN)) == Feature.GUEST_CSUM
    assert (
        effective(int(Feature.CSUM | Feature.HOST_TSO6 | Feature.HOST_ECN))
        == Feature.CSUM | Feature.HOST_TSO6 | Feature.HOST_ECN
    )


@pytest.mark.parametrize("buffer_len", [1536, 4096, 70000])
@pytest.mark.parametrize("length", [3000, 20000, 65400])
async def test_a_segment_reaches_the_guest_whole(open_card, wire, length, buffer_len):
    """5.1.6.4: 64 KiB in one frame, its header as the kernel had it, over merged buffers."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    guest.post(60 if buffer_len < 70000 else 3, buffer_len)
    header, data = tcp_segment(length)
    for _ in range(2):  # small mode, then wide mode
        host.send(header + data)
        got = guest.receive()
        assert got.frame == data
        assert (got.header.flags, got.header.gso_type, got.header.gso_size) == (1, 1, 1448)
        assert (got.header.csum_start, got.header.csum_offset) == (34, 16)
        assert len(got.used_lens) == -(-(len(data) + 12) // buffer_len)
        guest.post(len(got.used_lens), buffer_len)
    assert (card.count("rx_dropped"), card.count("rx_delayed")) == (0, 0)


async def test_small_frames_behind_a_large_one_take_a_buffer_each(open_card, wire):
    """Wide mode: what was taken for a large frame and not needed serves the next ones, in order."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    header, data = tcp_segment(40000)
    for _ in range(3):
        guest.post(80, 2048)
        host.send(header + data)
        for n in range(20):
            host.send(bytes(10) + frame(bytes([n]), length=61))
        assert guest.receive().frame == data
        for n in range(20):
            assert guest.receive().frame == frame(bytes([n]), length=61)
    assert card.count("rx_dropped") == 0
    assert (await card.stop())[0] == 3 * (20 + -(-(len(data) + 12) // 2048))


async def test_a_segment_is_cut_by_the_kernel_for_a_guest_that_cannot(open_card, wire):
    """5.1.6.4: without GUEST_TSO4 gso_type is NONE, without GUEST_CSUM flags are zero and checksums complete."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(OFFLOADS)
    guest.post(64, 2048)
    header, data = tcp_segment(20000)
    host.send(header + data)
    payload = b""
    while len(payload) < 20000:
        got = guest.receive()
        assert (got.header.flags, got.header.gso_type) == (0, 0)
        payload += got.frame[54:]
    assert payload == data[54:]
    assert card.count("rx_dropped") == 0


@pytest.mark.parametrize("ecn", [0, 0x80])
async def test_a_segment_of_the_guest_reaches_the_host_whole(open_card, wire, ecn):
    """5.1.6.2: one write of 64 KiB, header and all."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    _, data = tcp_segment(65495, to=HOST, source=GUEST)
    guest.send(data, NetHeader(1, 1 | ecn, 54, 1448, 34, 16))
    got = host.receive()
    assert got[10:] == data
    crossed = NetHeader.unpack(got[:10])
    assert (crossed.flags, crossed.gso_type, crossed.gso_size) == (1, 1 | ecn, 1448)
    assert (crossed.csum_start, crossed.csum_offset) == (34, 16)
    guest.drain()
    assert (card.count("tx_gso"), card.count("tx_dropped")) == (1, 0)


async def test_a_frame_from_before_a_change_of_offloads_is_dropped(open_card, wire):
    """What waits in the tap with a checksum undone is not for a driver that cannot do it."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL, enable=False)
    header, data = tcp_segment(4000)
    host.send(header + data)
    host.send(bytes(10) + frame(length=60))
    await card.stop()
    (guest,) = await card.start(OFFLOADS)
    guest.post(16, 2048)
    assert guest.receive().frame == frame(length=60)
    assert card.count("rx_dropped") == 1


async def test_the_control_plane_of_a_card(open_card):
    """5.1.4: mac, status, pairs, MTU; what is offered bit by bit."""
    card = await open_card(mac="52:54:00:12:34:56", mtu=9000, queues=3)
    backend = card.backend
    assert backend.config_space == bytes.fromhex("525400123456") + struct.pack("<HHH", 1, 3, 9000)
    assert (backend.rings, backend.queue_num, backend.handler_count()) == (6, 3, 3)
    assert [backend.place(ring) for ring in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert backend.features == FULL | Feature.MAC | Feature.MTU | Feature.MQ
    assert backend.describe()["mtu"] == 9000


async def test_what_is_offered_follows_the_options(open_card):
    card = await open_card(csum=False, guest_csum=False, mrg_rxbuf=False)
    assert card.backend.features == MODERN | Feature.MAC
