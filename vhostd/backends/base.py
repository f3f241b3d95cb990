"""What a device type offers: features, config space, and a handler for each of its rings."""

from typing import Protocol

from vhostd.backends.ringset import RingSet
from vhostd.workers.loop import Loop


class Backend(Protocol):
    """A device type over an opened host object. All of it is called on the control thread.

    kind: "block" or "net". features: virtio bits offered, as a mask. rings: how many vrings there are. queue_num: what
    GET_QUEUE_NUM answers (net: pairs). mtu_settable: NET_SET_MTU is served. tells_config: the front-end should read
    the configuration space. counter_names: of its own counters, per ring.
    """

    kind: str
    features: int
    rings: int
    queue_num: int
    mtu_settable: bool
    tells_config: bool
    counter_names: tuple[str, ...]

    @property
    def config_space(self) -> bytes:
        """The whole configuration space as it is now. Empty: there is none."""

    def write_config(self, offset: int, payload: bytes) -> None:
        """SET_CONFIG by the guest. Raises RemoteProtocolError for a field that is not the driver's to write."""

    def set_features(self, features: int) -> None:
        """The driver's features are known, or known anew. BackendError when the host cannot do what was offered."""

    def set_mtu(self, mtu: int) -> None:
        """NET_SET_MTU. Raises RemoteProtocolError for a value that cannot be served."""

    def announce(self, mac: bytes) -> None:
        """SEND_RARP: have the network learn where `mac` is. Raises RemoteProtocolError for no card's address."""

    def handler_count(self) -> int:
        """How many handlers serve all rings."""

    def place(self, ring: int) -> tuple[int, int]:
        """Which handler serves `ring`, and in which of its slots."""

    def make_handler(self, number: int, loop: Loop, user: int) -> RingSet:
        """Make handler `number`, to be run by the worker of `loop`, reporting as `user`."""

    def describe(self) -> dict[str, object]:
        """What an operator wants to know of it, JSON-able."""

    def on_session_end(self) -> None:
        """The front-end has gone, all rings are stopped."""

    def close(self) -> None:
        """Give everything back. All handlers are stopped."""
