"""What a session asks its host to do: a frozen dataclass for each.

Everything that can be checked without I/O has been. The host performs the action and calls `BackendSession.done`, or
gives its error to `refuse`; either way it then closes what the frame still holds. A descriptor in an action belongs to
the frame until the host takes it (`Fd.take`). While the host performs, the session is as it was before the message:
what the message will change stands in the action.
"""

from dataclasses import dataclass

from vhostd.fds import Fd
from vhostd.protocol.messages import MemRegion, Message


@dataclass(frozen=True)
class Action:
    """The base of all actions."""


@dataclass(frozen=True)
class Nothing(Action):
    """The session itself has all that is needed. `reply` is the message's own reply, where it has one."""

    reply: Message | None = None


@dataclass(frozen=True)
class SetFeatures(Action):
    """The virtio features that both ends have from now on.

    While a ring is started they are the same as before. `enable_all`: PROTOCOL_FEATURES is not among them, so that
    every ring is enabled from now on, started ones as well ("Ring states").
    """

    features: int
    enable_all: bool


@dataclass(frozen=True)
class SetMemTable(Action):
    """Replace all of guest memory; a descriptor for each region, in the same order. Rings may be started."""

    regions: tuple[MemRegion, ...]
    fds: tuple[Fd, ...]


@dataclass(frozen=True)
class AddRegion(Action):
    """Add a region to guest memory. Rings may be started."""

    region: MemRegion
    fd: Fd


@dataclass(frozen=True)
class RemoveRegion(Action):
    """Take a region out of guest memory; it is one that was added. Rings may be started, in this region too."""

    region: MemRegion


@dataclass(frozen=True)
class SetKick(Action):
    """Start the ring: it has a size, addresses, memory and features; whether it is enabled, its vring says.

    `started`: the ring runs already, and only its kick changes.
    """

    index: int
    fd: Fd
    started: bool


@dataclass(frozen=True)
class SetCall(Action):
    """Where to signal used buffers; None: the driver polls. Before or after the start, and again while it runs."""

    index: int
    fd: Fd | None


@dataclass(frozen=True)
class SetErr(Action):
    """Where to signal that the ring broke; None: nowhere."""

    index: int
    fd: Fd | None


@dataclass(frozen=True)
class StopRing(Action):
    """Stop the started ring and drain it; `done(action, value=)` takes the next available index, 0 to 65535."""

    index: int


@dataclass(frozen=True)
class EnableRing(Action):
    """Enable or disable a ring, be it started, stopped, or never set up. It may be so already."""

    index: int
    enabled: bool


@dataclass(frozen=True)
class GetConfig(Action):
    """Read configuration space; `done(action, value=)` takes exactly `size` bytes, zeros past the end of the space."""

    offset: int
    size: int


@dataclass(frozen=True)
class SetConfig(Action):
    """Write configuration space. `flags` is 0 or 1, a ConfigFlag: without MIGRATION only writable fields may change."""

    offset: int
    flags: int
    payload: bytes


@dataclass(frozen=True)
class SetBackendChannel(Action):
    """The socket on which our own requests go to the front-end; it replaces an earlier one."""

    fd: Fd


@dataclass(frozen=True)
class SetStatus(Action):
    """The driver's device status, not 0: a status of 0 is ResetDevice."""

    status: int


@dataclass(frozen=True)
class ResetDevice(Action):
    """Stop and drain all rings; forget the virtio features. Memory, call and error descriptors stay.

    The value is where each ring stood that was running, by its index.
    """


@dataclass(frozen=True)
class SetMtu(Action):
    """The guest's MTU in bytes, 68 to 65535 (virtio 5.1.4.1)."""

    mtu: int


@dataclass(frozen=True)
class SendRarp(Action):
    """Announce the guest's MAC, six bytes, on the wire."""

    mac: bytes
