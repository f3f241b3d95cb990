"""The other end of the socket: requests out, replies in, and what comes on the back-end channel.

It knows which reply each request has, and holds a back-end to it: the request it answers, the flags, the length, the
descriptors. Requests may be sent before earlier ones are answered; replies come in their order.
Spec: vhost-user, "Communication", "VHOST_USER_PROTOCOL_F_REPLY_ACK", "Back-end communication".
"""

from collections import deque
from dataclasses import dataclass

from vhostd.errors import LocalProtocolError, RemoteProtocolError
from vhostd.fds import Fd
from vhostd.protocol import wire
from vhostd.protocol.checks import count, span
from vhostd.protocol.framing import Frame
from vhostd.protocol.messages import U64, Config, Empty, Message, VringState
from vhostd.protocol.rules import BACKEND_RULES, RULES, ReplyKind, Rule, backend_name_of
from vhostd.spec import vhost_user as spec
from vhostd.spec.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature

_FLAGS_OF_REPLY = spec.VERSION_MASK | spec.FLAG_REPLY | spec.FLAG_NEED_REPLY


@dataclass(frozen=True)
class Outgoing:
    """Bytes to send, and descriptors to send with their first byte, which stay the caller's."""

    data: bytes
    fds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a back-end replied. `is_ack`: `message` is REPLY_ACK's u64, not the request's own reply.

    `fds` belong to the frame until they are taken.
    """

    request: FrontendRequest
    message: Message
    is_ack: bool
    fds: tuple[Fd, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the back-end says that it could not: an acknowledgement that is not 0, no configuration."""
        if self.is_ack:
            return self.message != U64(0)
        return self.request is FrontendRequest.GET_CONFIG and isinstance(self.message, Empty)


@dataclass(frozen=True)
class BackendCall:
    """A request of the back-end on its channel. `fds` belong to the frame until they are taken."""

    request: BackendRequest
    message: Message
    fds: tuple[Fd, ...]
    wants_reply: bool


@dataclass(frozen=True)
class _Expected:
    request: FrontendRequest
    message: Message
    length: int
    is_ack: bool


class FrontendSession:
    """One connection, from the front-end's end.

    Attributes, to read: `protocol_features`, those that were acknowledged, and `awaited`, how many replies are to come.
    """

    def __init__(self) -> None:
        self.protocol_features = ProtocolFeature(0)
        self._expected: deque[_Expected] = deque()

    @property
    def awaited(self) -> int:
        """How many replies are still to come."""
        return len(self._expected)

    def send(
        self,
        request: FrontendRequest,
        message: Message | None = None,
        fds: tuple[int, ...] = (),
        *,
        need_reply: bool | None = None,
        length: int | None = None,
    ) -> Outgoing:
        """Return the frame of a request, and note the reply that it will have.

        `need_reply` None asks for an acknowledgement whenever REPLY_ACK was negotiated. `length` pads the payload,
        where its layout allows that. Raises LocalProtocolError for a payload or descriptors that are not the request's.
        """
        rule = RULES[request]
        message = Empty() if message is None else message
        if type(message) not in {rule.payload, rule.older}:
            raise LocalProtocolError(f"{request.name} has a payload {rule.payload.__name__}, not {message!r}")
        if len(fds) not in rule.fds:
            raise LocalProtocolError(f"{request.name}: {count(len(fds), 'fd')}, it takes {span(rule.fds)}")
        payload = wire.encode(message, length)
        if request is FrontendRequest.SET_PROTOCOL_FEATURES and isinstance(message, U64):
            self.protocol_features = ProtocolFeature(message.value)  # the reply to this very message obeys them
        acks = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        asks = acks if need_reply is None else need_reply
        own = rule.reply is ReplyKind.VALUE or (
            rule.reply is ReplyKind.VALUE_WITH_FEATURE and bool(self.protocol_features & rule.needs)
        )
        if own or (acks and asks):
            self._expected.append(_Expected(request, message, len(payload), is_ack=not own))
        flags = spec.VERSION | (spec.FLAG_NEED_REPLY if asks else 0)
        return Outgoing(wire.frame_bytes(request, flags, payload), fds)

    def receive(self, frame: Frame) -> Answer:
        """Return the answer that a frame holds, to the oldest request that has none.

        Raises RemoteProtocolError (fatal) for a frame that nobody asked for, a wrong request, flags, length, content
        or number of descriptors; the frame keeps its descriptors.
        """
        if not self._expected:
            raise RemoteProtocolError(
                f'reply to {frame.request}: none is awaited (vhost-user, "Communication")', fatal=True
            )
        expected = self._expected[0]
        name = expected.request.name
        if frame.request != expected.request:
            raise RemoteProtocolError(f'reply to {name}: it says {frame.request} (vhost-user, "Header")', fatal=True)
        if frame.flags & ~_FLAGS_OF_REPLY or frame.flags & spec.VERSION_MASK != spec.VERSION or not frame.is_reply:
            raise RemoteProtocolError(f'reply to {name}: flags {frame.flags:#x} (vhost-user, "Header")', fatal=True)
        rule = RULES[expected.request]
        fds = range(1) if expected.is_ack else rule.answer_fds
        if len(frame.fds) not in fds:
            raise RemoteProtocolError(
                f'reply to {name}: {count(len(frame.fds), "fd")}, it has {span(fds)} (vhost-user, "Communication")',
                fatal=True,
            )
        try:
            message = self._answer_of(expected, frame.payload)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(str(error), fatal=True) from None
        self._expected.popleft()
        return Answer(expected.request, message, expected.is_ack, frame.fds)

    @staticmethod
    def _answer_of(expected: _Expected, payload: bytes) -> Message:
        name = expected.request.name
        if expected.is_ack:
            return U64(wire.decode_ack(name, payload))
        message = wire.decode_reply(expected.request, payload)
        if expected.request is FrontendRequest.GET_INFLIGHT_FD and len(payload) != expected.length:
            raise RemoteProtocolError(f"reply to {name}: {len(payload)} bytes, the request has {expected.length}")
        asked = expected.message
        if isinstance(message, Config) and isinstance(asked, Config):
            if (message.offset, message.size) != (asked.offset, asked.size):
                raise RemoteProtocolError(
                    f"reply to {name}: {message.size} bytes at {message.offset}, asked were {asked.size} at "
                    f'{asked.offset} (vhost-user, "GET_CONFIG")'
                )
        elif isinstance(message, VringState) and isinstance(asked, VringState) and message.index != asked.index:
            raise RemoteProtocolError(f"reply to {name}: ring {message.index}, asked was {asked.index}")
        return message

    def receive_call(self, frame: Frame) -> BackendCall:
        """Return a request of the back-end, from its channel.

        Raises RemoteProtocolError for wrong flags (fatal), an unknown request, a feature it needs and that was not
        negotiated, a wrong length or number of descriptors; the frame keeps its descriptors.
        """
        name = backend_name_of(frame.request)
        if frame.is_reply or frame.flags & spec.VERSION_MASK != spec.VERSION:
            raise RemoteProtocolError(f'{name}: flags {frame.flags:#x} (vhost-user, "Header")', fatal=True)
        message = wire.decode_backend(frame.request, frame.payload)
        request = BackendRequest(frame.request)
        rule = BACKEND_RULES[request]
        needed = ProtocolFeature.BACKEND_REQ | rule.needs
        if len(frame.fds) not in rule.fds:
            raise RemoteProtocolError(
                f"{name}: {count(len(frame.fds), 'fd')}, it takes {span(rule.fds)} "
                '(vhost-user, "Back-end message types")'
            )
        if frame.fds:
            needed |= ProtocolFeature.BACKEND_SEND_FD
        if missing := needed & ~self.protocol_features:
            raise RemoteProtocolError(
                f'{name}: needs {missing!r}, which was not negotiated (vhost-user, "Back-end message types")'
            )
        return BackendCall(request, message, frame.fds, self._replies_to(frame, rule))

    def _replies_to(self, frame: Frame, rule: Rule) -> bool:
        acks = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        return rule.reply is ReplyKind.VALUE or (acks and frame.need_reply)

    def reply_to_call(self, call: BackendCall, value: int = 0, fds: tuple[int, ...] = ()) -> Outgoing | None:
        """Return the reply to a back-end's request, 0 for success, or None when it wants none."""
        if not call.wants_reply:
            return None
        flags = spec.VERSION | spec.FLAG_REPLY
        return Outgoing(wire.frame_bytes(call.request, flags, wire.encode(U64(value))), fds)
