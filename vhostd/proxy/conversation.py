"""One connection as a conversation: numbers, replies with their requests, what was negotiated. No I/O.

A message is met twice: `begin` with its header, when rules are asked, and `end` when all of it is there.
"""

import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from vhostd.protocol.rules import ReplyKind, backend_name_of, name_of
from vhostd.protocol.wire import frame_bytes
from vhostd.proxy import decode
from vhostd.proxy.decode import View
from vhostd.proxy.detect import by_features, by_request
from vhostd.proxy.faults import Faults, Verdict
from vhostd.proxy.record import Channel, Event, Fault, Seen, Side, Sink
from vhostd.spec.vhost_user import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    VERSION,
    VERSION_MASK,
    FrontendRequest,
    ProtocolFeature,
)
from vhostd.spec.virtio import DeviceId

WAITING_MAX = 1024  # requests whose reply may still come, in a channel
_R = FrontendRequest


@dataclass
class Asked:
    """A request that a reply may still come to. time_ns: by the monotonic clock, 0 until all of it was there."""

    code: int
    number: int
    time_ns: int = 0


@dataclass
class Begun:
    """A message whose header has come. asked: the request, or the one this reply is to."""

    channel: Channel
    sender: Side
    code: int
    flags: int
    number: int
    asked: Asked | None
    verdict: Verdict
    notes: list[str] = field(default_factory=list)

    @property
    def is_reply(self) -> bool:
        """Whether the sender is the one that replies, on this channel."""
        return self.sender is not self.channel.asker


class Conversation:
    """What both ends of a connection have said so far."""

    def __init__(self, connection: int, sink: Sink, faults: Faults, device: DeviceId | None = None) -> None:
        self.connection = connection
        self._sink = sink
        self._faults = faults
        self._view = View(device)
        self._device_given = device is not None
        self._protocol_features = ProtocolFeature(0)
        self._waiting: dict[Channel, deque[Asked]] = {channel: deque(maxlen=WAITING_MAX) for channel in Channel}
        self._numbers: Counter[Channel] = Counter()
        self._counts: Counter[tuple[Channel, bool, int]] = Counter()

    def begin(self, channel: Channel, sender: Side, code: int, flags: int, *, rules: bool = True) -> Begun:
        """Take a header; say which number the message has and what the rules do to it, if they are asked."""
        is_reply = sender is not channel.asker
        if is_reply:
            asked = self._answered(channel, code)
        else:
            self._numbers[channel] += 1
            asked = Asked(code, self._numbers[channel])
        number = asked.number if asked is not None else 0
        nth = self._count(channel, is_reply=is_reply, code=code)
        verdict = Verdict()
        if rules:
            verdict = self._faults.judge(self.connection, channel, is_reply=is_reply, code=code, number=number, nth=nth)
        begun = Begun(channel, sender, code, flags, number, asked, verdict)
        dropped = verdict.fault is Fault.DROP
        if asked is not None and not is_reply and not dropped and self._awaits_reply(channel, code, flags):
            self._waiting[channel].append(asked)
        if is_reply and asked is None:
            begun.notes.append("answers no request")
        if is_reply != bool(flags & FLAG_REPLY):
            begun.notes.append("without the REPLY flag" if is_reply else "a request with the REPLY flag")
        if flags & VERSION_MASK != VERSION:
            begun.notes.append(f"version {flags & VERSION_MASK}, which is not {VERSION}")
        return begun

    def end(self, begun: Begun, payload: bytes, fds: tuple[str, ...]) -> None:
        """Take the rest of the message; hand it on, decoded."""
        now = time.monotonic_ns()
        self._learn(begun, payload)
        read = decode.reply if begun.is_reply else decode.request
        fields, problem = read(begun.channel, begun.code, payload, self._view)
        took_ns = None
        if begun.asked is not None:
            if begun.is_reply:
                took_ns = now - begun.asked.time_ns
            else:
                begun.asked.time_ns = now
        name = name_of if begun.channel is Channel.MAIN else backend_name_of
        self._sink.seen(
            Seen(
                time_ns=time.time_ns(),
                connection=self.connection,
                channel=begun.channel,
                sender=begun.sender,
                data=frame_bytes(begun.code, begun.flags, payload),
                number=begun.number,
                request=name(begun.code),
                code=begun.code,
                flags=begun.flags,
                is_reply=begun.is_reply,
                took_ns=took_ns,
                fields=fields,
                problem=problem,
                fds=fds,
                notes=tuple(begun.notes),
                device=self._view.device,
                fault=begun.verdict.fault,
                fault_words=begun.verdict.words,
            )
        )

    def raw(self, channel: Channel, sender: Side, data: bytes, fds: tuple[str, ...], why: str) -> None:
        """Take bytes that are no message, or only half of one."""
        self._sink.seen(
            Seen(
                time_ns=time.time_ns(),
                connection=self.connection,
                channel=channel,
                sender=sender,
                data=data,
                fds=fds,
                problem=why,
                device=self._view.device,
            )
        )

    def note(self, text: str) -> None:
        """Say something of the connection."""
        self._sink.event(Event(time_ns=time.time_ns(), connection=self.connection, kind="note", text=text))

    def unanswered(self) -> list[str]:
        """Return, in words, the requests to which a reply has not come."""
        found = []
        for channel, waiting in self._waiting.items():
            name = name_of if channel is Channel.MAIN else backend_name_of
            found += [f"#{asked.number} {name(asked.code)}" for asked in waiting]
        return found

    def restart_channel(self) -> None:
        """A new back-end channel: what was asked on the one before will not be answered."""
        self._waiting[Channel.BACKEND].clear()

    def _answered(self, channel: Channel, code: int) -> Asked | None:
        waiting = self._waiting[channel]
        for asked in waiting:
            if asked.code == code:
                waiting.remove(asked)
                return asked
        return None

    def _awaits_reply(self, channel: Channel, code: int, flags: int) -> bool:
        rule = decode.rule_of(channel, code)
        acks = bool(flags & FLAG_NEED_REPLY and self._protocol_features & ProtocolFeature.REPLY_ACK)
        if rule is None:
            return acks
        if rule.reply is ReplyKind.VALUE_WITH_FEATURE:
            return acks or bool(rule.needs & self._protocol_features)
        return acks or rule.reply is ReplyKind.VALUE

    def _count(self, channel: Channel, *, is_reply: bool, code: int) -> int:
        # Only what a rule can name is counted, so that a peer cannot make this grow.
        if decode.rule_of(channel, code) is None:
            return 0
        self._counts[channel, is_reply, code] += 1
        return self._counts[channel, is_reply, code]

    def _learn(self, begun: Begun, payload: bytes) -> None:
        """Keep what later payloads are read by."""
        if begun.channel is not Channel.MAIN:
            return
        value = int.from_bytes(payload, "little") if len(payload) == 8 else None
        device = self._view.device
        if begun.is_reply and begun.code == _R.GET_FEATURES and value is not None:
            device = device or by_features(value)
        elif not begun.is_reply:
            if begun.code == _R.SET_FEATURES and value is not None:
                self._view = replace(self._view, features=value)
            elif begun.code == _R.SET_PROTOCOL_FEATURES and value is not None:
                self._protocol_features = ProtocolFeature(value)
            device = device or by_request(begun.code, payload)
        if device is not self._view.device:
            self._view = replace(self._view, device=device)
            assert device is not None
            self.note(f"taken for a {device.name.lower()} device, by what was said (--device decides it)")
