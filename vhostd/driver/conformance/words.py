"""Messages, descriptors and replies in words, for evidence."""

from collections.abc import Sequence

from vhostd.errors import RemoteProtocolError
from vhostd.protocol.messages import Config, Empty, MemRegion, MemTable, Message, SingleRegion
from vhostd.protocol.rules import name_of
from vhostd.protocol.wire import decode, decode_reply
from vhostd.spec import blk, render
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import DeviceId, Status

R = FrontendRequest
_FEATURES = {R.GET_FEATURES, R.SET_FEATURES}
_PROTOCOL = {R.GET_PROTOCOL_FEATURES, R.SET_PROTOCOL_FEATURES}
_STATUS = {R.GET_STATUS, R.SET_STATUS}


def frame(request: int, flags: int, payload: bytes, fds: int, device: DeviceId | None) -> str:
    """Return a message of the front-end in one line."""
    words = [name_of(request), _payload(request, payload, device)]
    if flags & FLAG_NEED_REPLY:
        words.append("need_reply")
    if flags & ~FLAG_NEED_REPLY != VERSION:
        words.append(f"flags {flags:#x}")
    if fds:
        words.append(f"[{fds} descriptor{'s' * (fds > 1)}]")
    return " ".join(filter(None, words))


def reply(request: int, flags: int, payload: bytes, fds: int, device: DeviceId | None) -> str:
    """Return a message of the back-end in one line."""
    words = ["  answer:", name_of(request)]
    try:
        answer: Message = decode_reply(FrontendRequest(request), payload)
    except (RemoteProtocolError, ValueError, KeyError):
        words.append(f"payload {payload[:64].hex() or 'empty'}")
    else:
        words.append(_message(request, answer, device))
    if flags != VERSION | FLAG_REPLY:
        words.append(f"flags {flags:#x}")
    if fds:
        words.append(f"[{fds} descriptor{'s' * (fds > 1)}]")
    return " ".join(filter(None, words))


def _payload(request: int, payload: bytes, device: DeviceId | None) -> str:
    try:
        return _message(request, decode(request, payload), device)
    except RemoteProtocolError:
        return f"payload of {len(payload)} bytes: {payload[:64].hex()}" if payload else ""


def _message(request: int, message: Message, device: DeviceId | None) -> str:
    value = getattr(message, "value", None)
    if value is not None:
        if request in _FEATURES:
            return render.features(value, device)
        if request in _PROTOCOL:
            return render.flags(value, ProtocolFeature)
        if request in _STATUS:
            return render.flags(value, Status)
        return f"{value:#x}" if value > 9 else str(value)
    if isinstance(message, Empty):
        return ""
    if isinstance(message, MemTable):
        return "; ".join(map(_region, message.regions)) or "no regions"
    if isinstance(message, SingleRegion):
        return _region(message.region)
    if isinstance(message, Config):
        body = f" payload {message.payload.hex()}" if any(message.payload) else ""
        return f"offset {message.offset} size {message.size} flags {message.flags}{body}"
    fields = [f"{name} {_number(name, part)}" for name, part in vars(message).items()]
    return " ".join(fields)


def _region(region: MemRegion) -> str:
    return (
        f"region gpa {region.gpa:#x} size {render.size(region.length)} uva {region.uva:#x} "
        f"mmap offset {region.mmap_offset:#x}"
    )


def _number(name: str, part: object) -> str:
    if isinstance(part, int) and not isinstance(part, bool):
        return f"{part:#x}" if name.endswith(("uva", "gpa", "address")) else str(part)
    return part[:32].hex() if isinstance(part, bytes) else str(part)


def lengths(buffers: Sequence[tuple[int, int]]) -> str:
    """Return the lengths of a chain's buffers: `16, 512, 1`, cut short when there are many."""
    shown = ", ".join(str(length) for _, length in buffers[:8])
    return (shown + (f" ... ({len(buffers)} buffers)" if len(buffers) > 8 else "")) or "nothing"


def request_name(kind: int) -> str:
    """Return a block request type by name."""
    return render.name(kind, blk.Request)


def status_name(status: int) -> str:
    """Return a status byte by name; 0xff is what the buffer held before."""
    return "not written" if status == 0xFF else render.name(status, blk.StatusByte)
