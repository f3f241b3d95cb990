"""What the proxy has seen, one value each, for whoever prints, counts or keeps it."""

import enum
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vhostd.spec.virtio import DeviceId

Kind = Literal["open", "close", "note"]
Fields = dict[str, Any]  # of a payload, in order: int, str, or a list of these or of more Fields


class Side(enum.IntEnum):
    """Who sends."""

    FRONT_END = 0
    BACK_END = 1

    @property
    def words(self) -> Literal["front-end", "back-end"]:
        """As the document writes it."""
        return "front-end" if self is Side.FRONT_END else "back-end"


class Channel(enum.IntEnum):
    """On which socket: the connection itself, or the one that SET_BACKEND_REQ_FD passed on it."""

    MAIN = 0
    BACKEND = 1

    @property
    def asker(self) -> Side:
        """Who sends requests there; the other one replies ("Back-end communication")."""
        return Side.FRONT_END if self is Channel.MAIN else Side.BACK_END


class Fault(enum.IntEnum):
    """What a rule did to a message."""

    NONE = 0
    DROP = 1
    DELAY = 2
    DISCONNECT = 3


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A message, or bytes that are none.

    time_ns: when its last byte was read, since the epoch. number: a request counts up from 1 in its channel, a reply
    bears the number of what it answers; 0 for a reply to nothing, and for bytes. took_ns: from the request to this
    reply. request: the name. code, flags: of the header, None for bytes. data: all of it, header included.
    fields: the payload, decoded; `problem` says why it is not. notes: what is odd about it.
    """

    time_ns: int
    connection: int
    channel: Channel
    sender: Side
    data: bytes
    number: int = 0
    request: str = ""
    code: int | None = None
    flags: int | None = None
    is_reply: bool = False
    took_ns: int | None = None
    fields: Fields = field(default_factory=dict)
    problem: str = ""
    fds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    device: DeviceId | None = None
    fault: Fault = Fault.NONE
    fault_words: str = ""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a connection. kind: what, for machines; text: for people."""

    time_ns: int
    connection: int
    kind: Kind
    text: str


class Sink(Protocol):
    """Takes what was seen."""

    def seen(self, record: Seen) -> None:
        """Take a message."""

    def event(self, event: Event) -> None:
        """Take an event."""
