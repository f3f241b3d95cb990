"""What a start order is made of: steps, loops over rings, and the profile of one front-end."""

import enum
from dataclasses import dataclass
from typing import Literal

from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

Kind = Literal["block", "net"]
NONE = ProtocolFeature(0)


class Over(enum.Enum):
    """What a loop runs over. Rings are those the driver configures, unless it says otherwise."""

    RINGS = enum.auto()
    RINGS_DOWN = enum.auto()  # the last one first
    ALL = enum.auto()  # every ring the device was given, configured or not
    OF_PAIR = enum.auto()  # the two rings of the pair of the loop around this one
    RX = enum.auto()
    TX = enum.auto()
    PAIRS = enum.auto()
    FIRST_PAIR = enum.auto()
    FURTHER_PAIRS = enum.auto()
    REGIONS = enum.auto()
    FIRST_REGION = enum.auto()
    FURTHER_REGIONS = enum.auto()


class Base(enum.Enum):
    """What SET_VRING_BASE says."""

    ZERO = enum.auto()
    RETURNED = enum.auto()  # what GET_VRING_BASE returned last, 0 before that
    USED = enum.auto()  # used.idx, read from guest memory
    AVAIL = enum.auto()  # avail.idx, read from guest memory


@dataclass(frozen=True)
class ConfigRead:
    """The head of a GET_CONFIG; lengths in bytes."""

    length: int
    offset: int = 0
    flags: int = 0


Value = int | Base | ConfigRead


@dataclass(frozen=True)
class Step:
    """One message, and the source that says it is sent.

    `value`: 0 or 1 of SET_VRING_ENABLE; the bits SET_STATUS adds to those GET_STATUS returned, 0 for a reset; the Base
    of SET_VRING_BASE; the ConfigRead of GET_CONFIG. What else a message holds follows from the rings and what was
    agreed. `ack`: NEED_REPLY is set once REPLY_ACK was agreed. `needs`, `lacks`: sent only with, or without, this
    agreed protocol feature. `once`: not again on this connection or the next.
    """

    request: FrontendRequest
    source: str
    value: Value | None = None
    ack: bool = False
    needs: ProtocolFeature = NONE
    lacks: ProtocolFeature = NONE
    once: bool = False


@dataclass(frozen=True)
class Each:
    """Steps for each of something, in order."""

    over: Over
    steps: "tuple[Step | Each, ...]"


Steps = tuple[Step | Each, ...]


@dataclass(frozen=True)
class Order:
    """What a front-end says, by occasion; None where it never comes to that on the same device.

    `restart` goes on from where `stop` left the rings. `reset` is the guest's reset of the device: `again` starts it
    with new rings, None being `start`. `reconnect` is the whole order on a new connection after the back-end went away
    while rings ran. `pause` and `resume` leave the rings started.
    """

    connect: Steps
    start: Steps
    stop: Steps
    restart: Steps | None = None
    reset: Steps | None = None
    again: Steps | None = None
    reconnect: Steps | None = None
    pause: Steps | None = None
    resume: Steps | None = None


@dataclass(frozen=True)
class Profile:
    """One front-end.

    `features` bounds what is acknowledged of a device, by kind; `protocol_features` likewise. `align` of a ring's
    parts in bytes; `size` its usual entries. `flat`: guest addresses are the front-end's own. `ring_region`: the rings
    lie in a region of their own. `pipes`: calls, and the back-end's own requests, come by a pipe. `polls`: the driver
    asks for no calls. `table_places`: the memory table always has so many places, filled or not. `log_gpa`: of
    SET_VRING_ADDR; None is the used ring's guest address.
    """

    name: str
    orders: dict[Kind, Order]
    features: dict[Kind, int]
    protocol_features: dict[Kind, ProtocolFeature]
    size: int
    align: int = 16
    flat: bool = False
    ring_region: bool = False
    pipes: bool = False
    polls: bool = False
    table_places: int = 0
    log_gpa: int | None = 0


def walk(steps: Steps) -> list[Step]:
    """Return every step once, loops opened."""
    found: list[Step] = []
    for step in steps:
        found += [step] if isinstance(step, Step) else walk(step.steps)
    return found
