"""A stream of bytes and descriptors to whole frames.

The stream is read piece by piece and never past the end of the message at hand, for a descriptor belongs to the
message whose bytes it came with. The length in a header is believed only up to the longest payload there is, before
anything is read or allocated for it.
Spec: vhost-user, "Message Specification".
"""

from dataclasses import dataclass

from vhostd.errors import LocalProtocolError, RemoteProtocolError
from vhostd.fds import Fd, close_all
from vhostd.protocol.wire import parse_header
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, HEADER_LEN, PAYLOAD_LEN_MAX


@dataclass(frozen=True, slots=True)
class Frame:
    """A header, its payload, and the descriptors that came with them; it owns these until they are taken."""

    request: int
    flags: int
    payload: bytes = b""
    fds: tuple[Fd, ...] = ()

    @property
    def is_reply(self) -> bool:
        """Whether the reply flag is set ("Header")."""
        return bool(self.flags & FLAG_REPLY)

    @property
    def need_reply(self) -> bool:
        """Whether the sender asks for an acknowledgement ("VHOST_USER_PROTOCOL_F_REPLY_ACK")."""
        return bool(self.flags & FLAG_NEED_REPLY)

    def close_fds(self) -> None:
        """Close each descriptor that nobody took."""
        close_all(self.fds)


class Framer:
    """Builds frames: read at most `wanted` bytes, `feed` them, until a frame comes out.

    `limit` is the longest payload that is read, in bytes.
    """

    def __init__(self, limit: int = PAYLOAD_LEN_MAX) -> None:
        self._limit = limit
        self._header = b""
        self._payload = b""
        self._payload_len = 0
        self._fds: tuple[Fd, ...] = ()

    @property
    def wanted(self) -> int:
        """How many bytes to read next, at most and at least 1: none of them belongs to the next message."""
        if len(self._header) < HEADER_LEN:
            return HEADER_LEN - len(self._header)
        return self._payload_len - len(self._payload)

    @property
    def mid_message(self) -> bool:
        """Whether a message has begun and is not whole: the end of the stream would cut it."""
        return bool(self._header)

    def feed(self, data: bytes, fds: tuple[Fd, ...] = ()) -> Frame | None:
        """Take what was read, and the descriptors that came with it; return the frame when it is whole.

        The framer owns the descriptors until the frame does. Raises RemoteProtocolError (fatal) for a payload longer
        than the limit, LocalProtocolError for more bytes than were wanted; either closes all that it holds.
        """
        self._fds += fds
        if len(data) > self.wanted:
            wanted = self.wanted
            self.close()
            raise LocalProtocolError(f"{len(data)} bytes fed where {wanted} were wanted")
        if len(self._header) < HEADER_LEN:
            self._header += data
            if len(self._header) < HEADER_LEN:
                return None
            request, _, self._payload_len = parse_header(self._header)
            if self._payload_len > self._limit:
                error = RemoteProtocolError(
                    f"request {request}: {self._payload_len} bytes of payload announced, no message has more than "
                    f'{self._limit} (vhost-user, "Header")',
                    fatal=True,
                )
                self.close()
                raise error
        else:
            self._payload += data
        if len(self._payload) < self._payload_len:
            return None
        request, flags, _ = parse_header(self._header)
        frame = Frame(request, flags, self._payload, self._fds)
        self._header, self._payload, self._payload_len, self._fds = b"", b"", 0, ()
        return frame

    def close(self) -> None:
        """Drop a message that is not whole, and close its descriptors."""
        close_all(self._fds)
        self._header, self._payload, self._fds = b"", b"", ()
        self._payload_len = 0
