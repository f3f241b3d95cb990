"""virtio-net: features, configuration space (5.1.4), and a handler for each pair of queues."""

import logging
import struct
from typing import Self

from vhostd.backends.net import tap as tap_module
from vhostd.backends.net.options import NetOptions
from vhostd.backends.net.pair import NetHandler
from vhostd.backends.net.tap import Tap, default_mac
from vhostd.errors import BackendError, ConfigError, RemoteProtocolError
from vhostd.spec import net, virtio
from vhostd.spec.net import Feature
from vhostd.workers.loop import Loop

log = logging.getLogger(__name__)

_STATUS_LINK_UP = 1
_VLAN_LEN = 8  # two tags: they do not count towards the MTU

# 5.1.3.1: a feature is of no use without one of these. A driver that acks it alone is served without it.
_NEEDS: tuple[tuple[Feature, Feature], ...] = (
    (Feature.HOST_TSO4, Feature.CSUM),
    (Feature.HOST_TSO6, Feature.CSUM),
    (Feature.HOST_ECN, Feature.HOST_TSO4 | Feature.HOST_TSO6),
    (Feature.GUEST_TSO4, Feature.GUEST_CSUM),
    (Feature.GUEST_TSO6, Feature.GUEST_CSUM),
    (Feature.GUEST_ECN, Feature.GUEST_TSO4 | Feature.GUEST_TSO6),
)

_OFFLOADS = (
    (Feature.GUEST_CSUM, tap_module.F_CSUM),
    (Feature.GUEST_TSO4, tap_module.F_TSO4),
    (Feature.GUEST_TSO6, tap_module.F_TSO6),
    (Feature.GUEST_ECN, tap_module.F_TSO_ECN),
)

# In the order of pair.pxd.
COUNTER_NAMES: tuple[str, ...] = (
    "rx_frames",
    "rx_bytes",
    "rx_dropped",  # for this guest: too long for its buffers, or waited too long for more
    "rx_no_buffer",  # times the ring ran dry; what the kernel then drops is in the tap's own statistics
    "rx_bad_buffers",  # returned empty: unmapped, or without room for a header
    "rx_errors",
    "rx_merged",  # frames over several buffers
    "rx_delayed",  # frames set aside until there were enough buffers
    "tx_frames",
    "tx_bytes",
    "tx_dropped",  # malformed, too long, not negotiated, or the tap was down
    "tx_errors",  # refused by the kernel
    "tx_gso",
    "tx_linearised",
)


def effective(features: int) -> int:
    """Return `features` without those whose requirements were not acknowledged (5.1.3.1)."""
    for feature, needed in _NEEDS:
        if not features & needed:
            features &= ~feature
    return features


def _parse_mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise ConfigError(f"mac {text}: not an address of one card: six hex pairs with colons, the first even")
    return mac


class NetBackend:
    """A network card over a tap. See backends/base.Backend for what each method must do."""

    kind = "net"
    mtu_settable = True
    counter_names = COUNTER_NAMES

    def __init__(self, options: NetOptions, tap: Tap) -> None:
        """Serve an open tap, which is closed with the back-end. `open` does both. Raises ConfigError."""
        self._tap = tap
        self._options = options
        # QEMU has its own idea of a card's address, and warns of a back-end that offers to tell it one.
        self.tells_config = options.mac is not None or options.mtu is not None
        self._mac = _parse_mac(options.mac) if options.mac else default_mac(options.name or tap.name)
        self._mtu = options.mtu  # what a front-end set wins: it is what the guest is told
        self._acked = 0
        self._handlers: list[NetHandler] = []
        self.queue_num = len(tap.fds)
        self.rings = 2 * self.queue_num
        self.features = self._offered()

    @classmethod
    async def open(cls, options: NetOptions) -> Self:
        """Open the tap and everything around it. Raises ConfigError."""
        tap = await Tap.open(options)
        try:
            return cls(options, tap)
        except BaseException:
            tap.close()
            raise

    def _offered(self) -> int:
        o = self._options
        v = virtio.Feature
        offered = v.VERSION_1 | v.INDIRECT_DESC | v.EVENT_IDX | v.ANY_LAYOUT | int(Feature.MAC)
        for wanted, features in (
            (o.csum, Feature.CSUM),
            (o.csum and o.host_tso, Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.HOST_ECN),
            (o.guest_csum, Feature.GUEST_CSUM),
            (o.guest_csum and o.guest_tso, Feature.GUEST_TSO4 | Feature.GUEST_TSO6 | Feature.GUEST_ECN),
            (o.mrg_rxbuf, Feature.MRG_RXBUF),
            (o.mtu is not None, Feature.MTU),
            (self.queue_num > 1, Feature.MQ),
        ):
            if wanted:
                offered |= int(features)
        return int(offered)

    @property
    def config_space(self) -> bytes:
        """MAC, link status, pairs, MTU: 12 bytes (5.1.4)."""
        return struct.pack("<6sHHH", self._mac, _STATUS_LINK_UP, self.queue_num, self._mtu or 0)

    def write_config(self, offset: int, payload: bytes) -> None:
        """Refuse: nothing in it is the driver's, but a legacy driver's MAC, which is the operator's here (5.1.4)."""
        raise RemoteProtocolError(
            f"SET_CONFIG: {len(payload)} bytes at {offset}: the configuration space is read-only (virtio 5.1.4)"
        )

    def set_features(self, features: int) -> None:
        """Have the tap leave to the guest what the guest said it can do. BackendError when it cannot."""
        self._acked = effective(features)
        self._tap.set_offload(sum(flag for feature, flag in _OFFLOADS if self._acked & feature))
        self._tell_handlers()

    def set_mtu(self, mtu: int) -> None:
        """NET_SET_MTU, in bytes. Raises RemoteProtocolError beyond 68..65535 (5.1.4.1) or what the tap can have."""
        if not net.MIN_MTU <= mtu <= net.MAX_MTU:
            raise RemoteProtocolError(f"NET_SET_MTU: {mtu} is not in {net.MIN_MTU}..{net.MAX_MTU} (virtio 5.1.4.1)")
        if not self._tap.try_mtu(mtu):
            raise RemoteProtocolError(f"NET_SET_MTU: {mtu}: the tap has {self._tap.mtu}, and it is not ours to set")
        self._mtu = mtu
        self._tell_handlers()

    def announce(self, mac: bytes) -> None:
        """SEND_RARP: have the network learn where `mac` (6 bytes) is now. Raises RemoteProtocolError, BackendError."""
        if len(mac) != 6 or mac[0] & 1 or not any(mac):
            raise RemoteProtocolError(f"SEND_RARP: {mac.hex(':')} is not the address of a card")
        # RFC 903, a "request reverse" about itself, as guests and VM monitors send after a migration.
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 3, mac, bytes(4), mac, bytes(4))
        self._tap.send((b"\xff" * 6 + mac + b"\x80\x35" + body).ljust(60, b"\0"))

    def handler_count(self) -> int:
        """One for each pair."""
        return self.queue_num

    def place(self, ring: int) -> tuple[int, int]:
        """Receive rings are even, transmit rings odd (5.1.2)."""
        return ring // 2, ring % 2

    def make_handler(self, number: int, loop: Loop, user: int) -> NetHandler:
        """Make the handler of pair `number`, to be run by the worker of `loop`, reporting as `user`."""
        handler = NetHandler(loop, number, self._tap.fds[number].number, self._tap.multi_queue, user)
        self._handlers.append(handler)
        self._tell_handlers()
        return handler

    def _tell_handlers(self) -> None:
        """Pass on what was negotiated, and the longest frame that is not a GSO one: MTU, Ethernet, two VLAN tags."""
        mtu = max(self._mtu or 0, self._tap.mtu or 0) or net.MAX_MTU
        frame_len_max = min(mtu + net.ETH_HEADER_LEN + _VLAN_LEN, net.FRAME_LEN_MAX)
        for handler in self._handlers:
            handler.set_mode(self._acked, frame_len_max)

    def describe(self) -> dict[str, object]:
        """Return the tap, and what was negotiated with it."""
        offloads = (("csum", tap_module.F_CSUM), ("tso4", tap_module.F_TSO4), ("tso6", tap_module.F_TSO6))
        return {
            "tap": self._tap.name,
            "netns": self._options.netns,
            "bridge": self._options.bridge,
            "queue-pairs": self.queue_num,
            "multi-queue": self._tap.multi_queue,
            "mac": self._mac.hex(":"),
            "mtu": self._tap.mtu,
            "offloads": [name for name, flag in offloads if self._tap.offload & flag],
        }

    def on_session_end(self) -> None:
        """Nobody understands unfinished checksums and segments any more."""
        self._acked = 0
        try:
            self._tap.set_offload(0)
        except BackendError as error:
            log.warning("the tap is gone", extra={"tap": self._tap.name, "why": error})
        self._tell_handlers()

    def close(self) -> None:
        """Close the tap. All handlers are stopped."""
        self._handlers.clear()
        self._tap.close()
