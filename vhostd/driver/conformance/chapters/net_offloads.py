"""Checksums and segmentation (virtio 5.1.6.2, 5.1.6.4)."""

import struct

from vhostd.driver.conformance.case import NET, Mark, NetFeature, Row, case
from vhostd.driver.conformance.chapters.net_frames import GUEST_OFFLOADS
from vhostd.driver.conformance.check import ALL_FEATURES, Check
from vhostd.driver.frames import GUEST, HOST, TCP_HEADERS_LEN, tcp_segment, transport_sum, udp_partial
from vhostd.driver.net import NetHeader
from vhostd.spec.net import GsoType, HeaderFlag

N = NetFeature
WIRE = [Mark.WIRE]
TX, RX = "virtio 5.1.6.2", "virtio 5.1.6.4"
CSUM, TSO4 = int(N.CSUM), int(N.HOST_TSO4)
GUEST_CSUM, GUEST_TSO4 = int(N.GUEST_CSUM), int(N.GUEST_TSO4)
PAYLOADS = {str(n): n for n in (0, 1, 2, 100, 1001, 1400)}


def _mine(data: bytes) -> bool:
    return data[:12] == HOST + GUEST and data[12:14] == b"\x08\x00"


@case("NET-CSUM-01", TX, kinds=NET, marks=WIRE, features=CSUM, rows=PAYLOADS)
def udp_checksum(check: Check, length: int) -> None:
    """With NEEDS_CSUM the device computes the checksum from csum_start on and stores it at csum_offset: UDP."""
    wire = check.wire(vnet=True)
    with check.guest() as guest:
        header, data = udp_partial(bytes(range(256))[: length % 256] * (1 + length // 256), to=HOST, source=GUEST)
        guest.net().send(data, NetHeader.unpack(header))
        got = wire.expect(lambda seen: _mine(seen[10:]), check.timeout)
        _checksum_is_right(check, got)


@case("NET-CSUM-02", TX, kinds=NET, marks=WIRE, features=CSUM, rows=PAYLOADS)
def tcp_checksum(check: Check, length: int) -> None:
    """With NEEDS_CSUM the device computes the checksum from csum_start on and stores it at csum_offset: TCP."""
    wire = check.wire(vnet=True)
    with check.guest() as guest:
        header, data = tcp_segment(length, to=HOST, source=GUEST)
        guest.net().send(data, NetHeader.unpack(header))
        got = wire.expect(lambda seen: _mine(seen[10:]), check.timeout)
        _checksum_is_right(check, got)


def _checksum_is_right(check: Check, got: bytes) -> None:
    """Hold a frame to a right checksum, or to the word of the host's stack that it is still to be computed."""
    flags, _, _, _, start, offset = struct.unpack("<BBHHHH", got[:10])
    data = got[10:]
    if flags & HeaderFlag.NEEDS_CSUM:
        want = 16 if data[23] == 6 else 6
        check.equal((start, offset), (34, want), "csum_start and csum_offset as they were given,")
    else:
        check.equal(transport_sum(data), 0, "a sum over the frame of")


@case("NET-CSUM-03", TX, kinds=NET, marks=WIRE, features=CSUM)
def complete_checksum(check: Check) -> None:
    """Without NEEDS_CSUM the frame goes out as it is, its checksum right or wrong."""
    wire = check.wire(vnet=True)
    with check.guest() as guest:
        _, data = tcp_segment(100, to=HOST, source=GUEST)
        guest.net().send(data)
        got = wire.expect(lambda seen: _mine(seen[10:]), check.timeout)
        check.equal(got[10:], data, "the frame, as it was transmitted,")


SEGMENTS = {str(n): n for n in (1449, 3000, 9000, 30000, 64000)}


@case("NET-TSO-01", TX, kinds=NET, marks=WIRE, features=CSUM | TSO4, rows=SEGMENTS)
def tcp_segmentation(check: Check, length: int) -> None:
    """A frame with GSO_TCPV4 is sent in segments of gso_size: together they are its payload."""
    wire = check.wire(vnet=True)
    with check.guest(memory_len=64 << 20) as guest:
        header, data = tcp_segment(length, to=HOST, source=GUEST)
        guest.net().send(data, NetHeader.unpack(header))
        got = b""
        while len(got) < length:
            seen = wire.expect(lambda seen: _mine(seen[10:]), check.timeout)
            got += seen[10 + TCP_HEADERS_LEN :]
        check.equal(got, data[TCP_HEADERS_LEN:], "the payload")


@case("NET-TSO-02", TX, kinds=NET, features=CSUM | TSO4, rows={"3000": 3000, "64000": 64000})
def segmentation_is_returned(check: Check, length: int) -> None:
    """A frame of many segments is returned once, with a used length of 0."""
    with check.guest(memory_len=64 << 20) as guest:
        header, data = tcp_segment(length, to=HOST, source=GUEST)
        card = guest.net()
        card.send(data, NetHeader.unpack(header))
        card.drain(check.timeout)


@case("NET-RXO-01", RX, kinds=NET, marks=WIRE, features=GUEST_CSUM)
def partial_checksum(check: Check) -> None:
    """With GUEST_CSUM a frame whose checksum is partial comes with NEEDS_CSUM, or complete."""
    wire = check.wire(vnet=True)
    with check.guest() as guest:
        card = guest.net()
        card.post(8, 2048)
        header, data = udp_partial(b"partial checksum")
        wire.send(header + data)
        got = card.receive(check.timeout)
        if got.header.flags & HeaderFlag.NEEDS_CSUM:
            check.equal((got.header.csum_start, got.header.csum_offset), (34, 6), "csum_start and csum_offset")
        else:
            check.equal(transport_sum(got.frame), 0, "a sum over the frame of")


@case("NET-RXO-02", "virtio 5.1.6.4.1", kinds=NET, marks=WIRE, rows={"udp": 0, "tcp": 1})
def complete_without_guest_csum(check: Check, tcp: int) -> None:
    """Without GUEST_CSUM the device MUST supply a fully checksummed packet."""
    wire = check.wire(vnet=True)
    with check.guest(features=ALL_FEATURES & ~GUEST_OFFLOADS) as guest:
        card = guest.net()
        card.post(8, 2048)
        header, data = tcp_segment(200) if tcp else udp_partial(b"to be complete")
        wire.send(header + data)
        got = card.receive(check.timeout)
        check.equal((got.header.flags, got.header.gso_type), (0, 0), "flags and gso_type")
        check.equal(transport_sum(got.frame), 0, "a sum over the frame of")


@case(
    "NET-RXO-03",
    "virtio 5.1.6.4.1",
    kinds=NET,
    marks=WIRE,
    features=GUEST_TSO4 | int(N.MRG_RXBUF),
    rows={"3000": 3000, "20000": 20000, "64000": 64000},
)
def large_receive(check: Check, length: int) -> None:
    """With GUEST_TSO4 a large TCP frame comes in one, with gso_type and gso_size, or in segments."""
    wire = check.wire(vnet=True)
    with check.guest(memory_len=64 << 20) as guest:
        card = guest.net()
        card.post(120, 2048)
        header, data = tcp_segment(length)
        wire.send(header + data)
        got = b""
        while len(got) < length:
            part = card.receive(check.timeout)
            if part.header.gso_type & 0x7F == GsoType.TCPV4:
                check.expect(part.header.gso_size, "a gso_size with GSO_TCPV4", "0")
                check.expect(part.header.flags & HeaderFlag.NEEDS_CSUM, "NEEDS_CSUM with GSO", "it is clear")
            got += part.frame[TCP_HEADERS_LEN:]
        check.equal(got, data[TCP_HEADERS_LEN:], "the payload")


@case("NET-RXO-04", "virtio 5.1.6.4.1", kinds=NET, marks=WIRE, features=int(N.MRG_RXBUF))
def no_large_receive(check: Check) -> None:
    """Without GUEST_TSO4 the device MUST NOT set gso_type to GSO_TCPV4: a large frame comes in segments, or not."""
    wire = check.wire(vnet=True)
    with check.guest(features=ALL_FEATURES & ~(GUEST_OFFLOADS & ~GUEST_CSUM)) as guest:
        card = guest.net()
        card.post(32, 2048)
        header, data = tcp_segment(6000)
        wire.send(header + data)
        end, small = tcp_segment(10)
        wire.send(end + small)
        while True:
            part = card.receive(check.timeout)
            check.equal(part.header.gso_type, GsoType.NONE, "gso_type")
            if part.frame[:54][:34] == small[:34] or len(part.frame) == len(small):
                return


OFF = {
    "csum": Row(ALL_FEATURES & ~int(N.CSUM | N.HOST_TSO4 | N.HOST_TSO6 | N.HOST_ECN | N.HOST_UFO | N.HOST_USO)),
    "guest-offloads": Row(ALL_FEATURES & ~GUEST_OFFLOADS),
    "all": Row(
        ALL_FEATURES
        & ~GUEST_OFFLOADS
        & ~int(N.CSUM | N.HOST_TSO4 | N.HOST_TSO6 | N.HOST_ECN | N.HOST_UFO | N.HOST_USO | N.MRG_RXBUF)
    ),
}


@case("NET-OFF-01", "virtio 2.2.2, 5.1.3", kinds=NET, rows=OFF)
def without_offloads(check: Check, features: int) -> None:
    """A driver may take no offloads at all: the card works."""
    with check.guest(features=features) as guest:
        guest.works(4)
