"""What an operator may say of a network device, checked by config.py and by the tap itself."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NetOptions:
    """One network device over a tap.

    tap: the interface's name; or tap_fds: open descriptors, one for each of `queues` pairs (taken over, closed at the
    end). name: the device's, for its MAC and its messages. create: make the tap if it is not there; it goes with its
    last descriptor. bridge: the tap joins it (create: made if not there). netns: name or path of the tap's namespace.
    address: the host's, with prefix length, on the bridge if there is one, else on the tap. mac: the guest's (None:
    derived from the host and `name`). mtu: in bytes, set on the tap and told to the guest (None: the tap's stays, the
    guest is told nothing). The rest: features that may be offered.
    """

    tap: str | None = None
    name: str = ""
    queues: int = 1
    create: bool = False
    bridge: str | None = None
    netns: str | None = None
    address: str | None = None
    mac: str | None = None
    mtu: int | None = None
    tap_fds: tuple[int, ...] = ()
    mrg_rxbuf: bool = True
    csum: bool = True
    guest_csum: bool = True
    host_tso: bool = True
    guest_tso: bool = True
