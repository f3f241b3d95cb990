"""A capture file: pcapng, of a link type of its own.

A packet is a message, header and all, or a piece of a stream that is no message; before it stand sixteen bytes that say
what the socket does not: who sent it, on which channel and connection (docs/proxy.md). The descriptors that came with
it, and what is odd about it, are the packet's comment.
Spec: the pcapng Internet-Draft, "Section Header Block", "Interface Description Block", "Enhanced Packet Block".
"""

import io
import struct

from vhostd.errors import BackendError
from vhostd.proxy.record import Event, Seen

LINKTYPE = 157  # LINKTYPE_USER10: of those for private use
SNAP_LEN = 1 << 18
PSEUDO_VERSION = 1
PSEUDO = struct.Struct("<BBBBBBHII")  # version, sender, channel, device, kind, fault, fds, connection, number
KIND_MESSAGE, KIND_BYTES = 0, 1

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_MAGIC = 0x1A2B3C4D
_END, _COMMENT, _IF_NAME, _IF_TSRESOL, _USER_APPL = 0, 1, 2, 9, 4
_LENGTH_UNKNOWN = -1


class Capture:
    """Writes what was seen to an unbuffered file, a packet at once, so that it can be read while it grows."""

    def __init__(self, out: io.RawIOBase | io.BytesIO) -> None:
        self._out = out
        application = _option(_USER_APPL, b"vhostd proxy")
        self._write(
            _block(_SECTION, struct.pack("<IHHq", _MAGIC, 1, 0, _LENGTH_UNKNOWN) + application + _option(_END, b""))
            + _block(
                _INTERFACE,
                struct.pack("<HHI", LINKTYPE, 0, SNAP_LEN)
                + _option(_IF_NAME, b"vhost-user")
                + _option(_IF_TSRESOL, b"\x09")  # nanoseconds
                + _option(_END, b""),
            )
        )

    def seen(self, record: Seen) -> None:
        """Write a message. Raises BackendError when the file cannot take it."""
        data = pseudo_header(record) + record.data
        comment = "; ".join(
            [f"fd {number}: {name}" for number, name in enumerate(record.fds)]
            + [record.problem] * bool(record.problem)
            + [record.fault_words] * bool(record.fault_words)
            + list(record.notes)
        )
        options = b""
        if comment:
            options = _option(_COMMENT, comment.encode("utf-8", "backslashreplace")[:65535]) + _option(_END, b"")
        head = struct.pack("<IIIII", 0, record.time_ns >> 32, record.time_ns & 0xFFFFFFFF, len(data), len(data))
        self._write(_block(_PACKET, head + _padded(data) + options))

    def event(self, event: Event) -> None:
        """Events are not messages, and stand in no capture."""

    def _write(self, data: bytes) -> None:
        try:
            written = self._out.write(data)
        except OSError as error:
            raise BackendError("the capture file cannot be written", error) from error
        if written != len(data):
            raise BackendError("the capture file cannot be written: there is no space left, and its last packet is cut")


def pseudo_header(record: Seen) -> bytes:
    """Return what stands before the message in a packet."""
    return PSEUDO.pack(
        PSEUDO_VERSION,
        record.sender,
        record.channel,
        record.device or 0,
        KIND_BYTES if record.code is None else KIND_MESSAGE,
        record.fault,
        len(record.fds),
        record.connection & 0xFFFFFFFF,
        record.number & 0xFFFFFFFF,
    )


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
