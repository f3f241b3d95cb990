"""What the front-end has told us of a ring, and when it may tell us more.

A ring has two independent states: started or stopped, and enabled or disabled ("Ring states"). Enabled is a flag that
is kept whatever else the ring lacks; started is a table of states and events, below. A third word, configured, is not a
state but a question: has the ring all that a start needs?
Spec: vhost-user, "Ring states", "Front-end message types"; virtio 2.7.
"""

import enum
import itertools
from dataclasses import dataclass

from vhostd.protocol.messages import VringAddr
from vhostd.spec import virtio
from vhostd.spec.vhost_user import VRING_ADDR_LOG

ADDRESS_END = 1 << 64


class State(enum.Enum):
    """The first of the two ("Ring states")."""

    STOPPED = "stopped"
    STARTED = "started"


class Event(enum.Enum):
    """What happens to a ring."""

    NUM = "SET_VRING_NUM"
    ADDR = "SET_VRING_ADDR"
    BASE = "SET_VRING_BASE"
    KICK = "SET_VRING_KICK"
    CALL = "SET_VRING_CALL"
    ERR = "SET_VRING_ERR"
    ENABLE = "SET_VRING_ENABLE"
    STOP = "GET_VRING_BASE"
    RESET = "a reset"


_STOPPED, _STARTED = State.STOPPED, State.STARTED

TABLE: dict[tuple[State, Event], State | None] = {  # the next state, or None: refused
    (_STOPPED, Event.NUM): _STOPPED,
    (_STOPPED, Event.ADDR): _STOPPED,
    (_STOPPED, Event.BASE): _STOPPED,
    (_STOPPED, Event.KICK): _STARTED,
    (_STOPPED, Event.CALL): _STOPPED,
    (_STOPPED, Event.ERR): _STOPPED,
    (_STOPPED, Event.ENABLE): _STOPPED,
    (_STOPPED, Event.STOP): _STOPPED,
    (_STOPPED, Event.RESET): _STOPPED,
    # A worker reads the geometry of a ring that runs: it stays as it is until the ring is stopped.
    (_STARTED, Event.NUM): None,
    (_STARTED, Event.ADDR): None,
    (_STARTED, Event.BASE): None,
    (_STARTED, Event.KICK): _STARTED,
    (_STARTED, Event.CALL): _STARTED,
    (_STARTED, Event.ERR): _STARTED,
    (_STARTED, Event.ENABLE): _STARTED,
    (_STARTED, Event.STOP): _STOPPED,
    (_STARTED, Event.RESET): _STOPPED,
}


@dataclass
class Vring:
    """One ring, as it was told. Addresses are the front-end's own (`_uva`), `num` and `base` are in descriptors.

    `num` is 0 and `addr` None before they are set. `base` is the next index of the available ring, also after a stop.
    A reset makes it 0 again, and `stood` then says where the ring was: QEMU 7.2 resets (SET_STATUS 0) before it asks.
    `kick_set`, `call_set`, `err_set` say that the host holds such a descriptor; `was_enabled` that the ring has been
    enabled since it was started.
    """

    index: int
    num: int = 0
    addr: VringAddr | None = None
    base: int = 0
    stood: int | None = None
    kick_set: bool = False
    call_set: bool = False
    err_set: bool = False
    enabled: bool = False
    was_enabled: bool = False
    state: State = State.STOPPED

    @property
    def started(self) -> bool:
        """Whether the ring is started, enabled or not."""
        return self.state is State.STARTED

    @property
    def abandoned(self) -> bool:
        """Whether the ring was enabled and disabled again, and is not stopped."""
        return self.started and not self.enabled and self.was_enabled

    @property
    def configured(self) -> bool:
        """Whether the ring has a size and addresses."""
        return self.num > 0 and self.addr is not None

    @property
    def desc_uva(self) -> int:
        """Where the descriptor table lies; 0 before SET_VRING_ADDR."""
        return self.addr.desc_uva if self.addr else 0

    @property
    def avail_uva(self) -> int:
        """Where the available ring lies; 0 before SET_VRING_ADDR."""
        return self.addr.avail_uva if self.addr else 0

    @property
    def used_uva(self) -> int:
        """Where the used ring lies; 0 before SET_VRING_ADDR."""
        return self.addr.used_uva if self.addr else 0

    @property
    def log_gpa(self) -> int:
        """Where writes to the used ring are logged; 0 before SET_VRING_ADDR."""
        return self.addr.log_gpa if self.addr else 0

    @property
    def log_used(self) -> bool:
        """Whether writes to the used ring are logged."""
        return bool(self.addr and self.addr.flags & VRING_ADDR_LOG)

    def allows(self, event: Event) -> bool:
        """Whether the event may happen now."""
        return TABLE[self.state, event] is not None

    def move(self, event: Event) -> None:
        """Let an event happen that `allows` has let pass."""
        self.state = TABLE[self.state, event] or self.state
        if event is Event.KICK:
            self.kick_set = True
            self.stood = None
            self.was_enabled |= self.enabled
        elif event is Event.STOP:
            self.kick_set = self.was_enabled = False
        elif event is Event.RESET:
            self.num, self.addr, self.base = 0, None, 0
            self.kick_set = self.enabled = self.was_enabled = False


def misfit_of_num(num: int) -> str | None:
    """Say why `num` is no size of a split ring, or None when it is one (virtio 2.7)."""
    if num < 1 or num > virtio.QUEUE_SIZE_MAX or num & (num - 1):
        return f"{num} is not a power of two up to {virtio.QUEUE_SIZE_MAX} (virtio 2.7)"
    return None


def misfit_of_addr(addr: VringAddr) -> str | None:
    """Say why no ring can lie at these addresses, whatever its size, or None (virtio 2.7)."""
    for what, address, align in (
        ("descriptor table", addr.desc_uva, virtio.DESC_ALIGN),
        ("available ring", addr.avail_uva, virtio.AVAIL_ALIGN),
        ("used ring", addr.used_uva, virtio.USED_ALIGN),
    ):
        if address % align:
            return f"the {what} at {address:#x} is not aligned to {align} bytes (virtio 2.7)"
    return None


def misfit_of_geometry(num: int, addr: VringAddr, *, event_idx: bool) -> str | None:
    """Say why a ring of `num` descriptors cannot lie there, or None.

    The three areas, event fields included, end within the address space and do not share a byte (virtio 2.7).
    """
    areas = sorted(
        [
            (addr.desc_uva, addr.desc_uva + virtio.desc_table_len(num), "descriptor table"),
            (addr.avail_uva, addr.avail_uva + virtio.avail_ring_len(num, event_idx=event_idx), "available ring"),
            (addr.used_uva, addr.used_uva + virtio.used_ring_len(num, event_idx=event_idx), "used ring"),
        ]
    )
    for start, end, what in areas:
        if end > ADDRESS_END:
            return f"the {what} of {num} descriptors at {start:#x} ends beyond 64 bits (virtio 2.7)"
    for (_, end, what), (start, _, after) in itertools.pairwise(areas):
        if start < end:
            return f"the {after} at {start:#x} overlaps the {what}, which ends at {end:#x} (virtio 2.7)"
    return None
