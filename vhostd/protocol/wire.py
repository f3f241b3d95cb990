"""Payloads to messages and back, and the header of a frame.

What comes in is checked for its length and decoded; whatever its bytes, the outcome is a message or
RemoteProtocolError. What goes out is ours: a message that does not fit its layout is LocalProtocolError.
Codecs are put together when a message is first met, so that importing this module costs nothing.
Spec: vhost-user, "Message Specification".
"""

import io
import struct
from typing import Any

from construct import Adapter, ConstructError, Int64ul, Pass, ValidationError

from vhostd.errors import LocalProtocolError, RemoteProtocolError
from vhostd.protocol.messages import U64, Empty, Layout, Message, VringFd
from vhostd.protocol.rules import BACKEND_RULES, RULES, Rule, backend_name_of, name_of
from vhostd.spec.vhost_user import HEADER_LEN, VRING_INDEX_MASK, VRING_NO_FD, BackendRequest, FrontendRequest

_HEADER = struct.Struct("<III")


class _VringFd(Adapter):  # type: ignore[type-arg]  # generic in its stubs only
    """SET_VRING_KICK and its kin: an index and a flag in one u64."""

    def _decode(self, obj: int, context: Any, path: Any) -> VringFd:
        if obj & ~(VRING_INDEX_MASK | VRING_NO_FD):
            raise ValidationError(f"bits 9 to 63 of {obj:#x} are not zero", path)
        return VringFd(obj & VRING_INDEX_MASK, bool(obj & VRING_NO_FD))

    def _encode(self, obj: VringFd, context: Any, path: Any) -> int:
        if not 0 <= obj.index <= VRING_INDEX_MASK:
            raise ValidationError(f"{obj.index} is not an index of eight bits", path)
        return obj.index | (VRING_NO_FD if obj.no_fd else 0)


_codecs: dict[type[Message], Any] = {}


def _codec(kind: type[Message]) -> Any:
    codec = _codecs.get(kind)
    if codec is None:
        special = {VringFd: _VringFd(Int64ul), Empty: Pass}
        codec = _codecs[kind] = special.get(kind) or Layout(kind)
    return codec


def _decode(kind: type[Message], payload: bytes, name: str) -> Message:
    if len(payload) not in kind.LENGTHS:
        raise RemoteProtocolError(f'{name}: {len(payload)} bytes of payload (vhost-user, "Payload")')
    if kind is Empty:
        return Empty()
    stream = io.BytesIO(payload)
    try:
        message = _codec(kind).parse_stream(stream)
    except ConstructError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RemoteProtocolError(f'{name}: the payload does not decode: {reason} (vhost-user, "Payload")') from None
    left = len(payload) - stream.tell()
    if left > kind.PADDING:
        raise RemoteProtocolError(f'{name}: {left} bytes after the end of the payload (vhost-user, "Payload")')
    assert isinstance(message, Message)  # the codec's doing, not the peer's
    return message


def _request_kind(rule: Rule, payload: bytes) -> type[Message]:
    if rule.older is not None and len(payload) in rule.older.LENGTHS:
        return rule.older
    return rule.payload


def decode(request: int, payload: bytes) -> Message:
    """Return the message of a front-end's request.

    Raises RemoteProtocolError for an unknown request, a wrong length, or bytes that are no such message.
    """
    name = name_of(request)
    rule = RULES.get(request)  # type: ignore[call-overload]  # an IntEnum hashes as its number
    if rule is None:
        raise RemoteProtocolError(f'{name}: there is no such request (vhost-user, "Front-end message types")')
    return _decode(_request_kind(rule, payload), payload, name)


def decode_reply(request: FrontendRequest, payload: bytes) -> Message:
    """Return the message of the own reply of `request`; see `decode_ack` for REPLY_ACK's.

    No payload answers GET_CONFIG when it failed. Raises RemoteProtocolError as `decode` does.
    """
    if not payload and request is FrontendRequest.GET_CONFIG:
        return Empty()
    return _decode(RULES[request].answer, payload, f"reply to {request.name}")


def decode_backend(request: int, payload: bytes) -> Message:
    """Return the message of a back-end's request on the back-end channel; raises as `decode` does."""
    name = backend_name_of(request)
    rule = BACKEND_RULES.get(request)  # type: ignore[call-overload]
    if rule is None:
        raise RemoteProtocolError(f'{name}: there is no such request (vhost-user, "Back-end message types")')
    return _decode(rule.payload, payload, name)


def decode_backend_reply(request: BackendRequest, payload: bytes) -> Message:
    """Return the message of the reply to a back-end's request: the document has a u64 for each; raises as `decode`."""
    return _decode(BACKEND_RULES[request].answer, payload, f"reply to BACKEND_{request.name}")


def decode_ack(name: str, payload: bytes) -> int:
    """Return the u64 of a REPLY_ACK: 0 is success. `name` is the request's, for the error; raises as `decode` does."""
    message = _decode(U64, payload, f"reply to {name}")
    assert isinstance(message, U64)
    return message.value


def encode(message: Message, length: int | None = None) -> bytes:
    """Return the payload of a message; with `length`, zeros follow it up to so many bytes (GET_INFLIGHT_FD's reply).

    Raises LocalProtocolError for a field that does not fit its width, or a length that is not the message's.
    """
    try:
        payload = _codec(type(message)).build(message) if type(message) is not Empty else b""
    except (ConstructError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise LocalProtocolError(f"{message!r} cannot be put in a payload: {reason}") from error
    assert isinstance(payload, bytes)
    if length is not None:
        payload = payload.ljust(length, b"\0")
    if len(payload) not in type(message).LENGTHS or (length is not None and len(payload) != length):
        raise LocalProtocolError(f"{type(message).__name__} cannot be {len(payload)} bytes long")
    return payload


def frame_bytes(request: int, flags: int, payload: bytes) -> bytes:
    """Return a whole frame; `flags` includes the version."""
    return _HEADER.pack(request, flags, len(payload)) + payload


def parse_header(header: bytes) -> tuple[int, int, int]:
    """Return request, flags and payload length (bytes) of the twelve bytes of a header."""
    if len(header) != HEADER_LEN:
        raise LocalProtocolError(f"a header has {HEADER_LEN} bytes, not {len(header)}")
    request, flags, size = _HEADER.unpack(header)
    return request, flags, size
