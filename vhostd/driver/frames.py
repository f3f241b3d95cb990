"""Ethernet frames for tests of cards: of a type that nobody answers, and TCP and UDP with checksums left to others."""

import struct

ETHERTYPE = b"\x88\xb5"  # IEEE local experimental: no stack answers
HOST = b"\x02\x00\x00\x00\x00\x01"
GUEST = b"\x02\x00\x00\x00\x00\x02"
_FROM, _TO = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])  # RFC 5737: documentation
TCP_HEADERS_LEN = 14 + 20 + 20
UDP_HEADERS_LEN = 14 + 20 + 8


def frame(payload: bytes = b"", *, to: bytes = GUEST, source: bytes = HOST, length: int | None = None) -> bytes:
    """Return an Ethernet frame of a type that nobody answers, filled up to `length` bytes."""
    data = to + source + ETHERTYPE + payload
    if length is not None:
        block = bytes(range(1, 252))
        data += (block * (length // 251 + 1))[: length - len(data)]
    return data


def tcp_segment(length: int, *, mss: int = 1448, to: bytes = GUEST, source: bytes = HOST) -> tuple[bytes, bytes]:
    """Return the virtio_net_hdr of 10 bytes and a TCP frame of `length` payload bytes, its checksum left to others."""
    payload = (bytes(range(256)) * (length // 256 + 1))[:length]
    ip = _ip(6, 20 + length)
    tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 65535, _pseudo(6, 20 + length), 0)
    gso = (1, mss) if length > mss else (0, 0)
    header = struct.pack("<BBHHHH", 1, gso[0], TCP_HEADERS_LEN, gso[1], 34, 16)
    return header, to + source + b"\x08\x00" + ip + tcp + payload


def udp_frame(port: int, payload: bytes = b"", *, to: bytes = GUEST, source: bytes = HOST) -> bytes:
    """Return a small UDP frame from `port`, one flow for each, without a checksum."""
    udp = struct.pack("!HHHH", port, 2000, 8 + len(payload), 0)
    return (to + source + b"\x08\x00" + _ip(17, 8 + len(payload)) + udp + payload).ljust(60, b"\0")


def udp_partial(payload: bytes, *, to: bytes = GUEST, source: bytes = HOST) -> tuple[bytes, bytes]:
    """Return the virtio_net_hdr of 10 bytes and a UDP frame whose checksum is left to others (5.1.6.2)."""
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", 1000, 2000, length, _pseudo(17, length))
    return struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 6), to + source + b"\x08\x00" + _ip(17, length) + udp + payload


def udp_port(data: bytes) -> int:
    """Return the port a UDP frame comes from."""
    return int.from_bytes(data[34:36])


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport_sum(data: bytes) -> int:
    """Return the checksum over pseudo-header, TCP or UDP header and data of an IPv4 frame: 0 when it is right."""
    length = int.from_bytes(data[16:18]) - 20
    pseudo = data[26:34] + struct.pack("!BBH", 0, data[23], length)
    return checksum(pseudo + data[34 : 34 + length])


def _ip(protocol: int, length: int) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0, 64, protocol, 0, _FROM, _TO)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def _pseudo(protocol: int, length: int) -> int:
    return ~checksum(_FROM + _TO + struct.pack("!BBH", 0, protocol, length)) & 0xFFFF
