"""A guest attached to a device: the order of its start-up, its reset, and that memory stays as it was after that."""

import contextlib
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vhostd.driver.arena import Arena
from vhostd.driver.frontend import PROTOCOL_FEATURES, Frontend
from vhostd.driver.illumos.block import BlockDriver
from vhostd.driver.illumos.control import Control
from vhostd.driver.illumos.failures import GuestCorrupted, NoAttach
from vhostd.driver.illumos.memory import REGION, GuestMemory
from vhostd.driver.illumos.net import NetDriver, Receive, Transmit, check_interface
from vhostd.driver.illumos.ring import Ring
from vhostd.driver.illumos.startup import (
    PAIRS_MAX,
    Card,
    IllumosGuest,
    Platform,
    learn_disk,
    learn_limits,
)
from vhostd.errors import LocalProtocolError
from vhostd.fds import Fd
from vhostd.protocol.messages import U64, VringAddr
from vhostd.spec import net
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

MTU_DEFAULT = 1500
GUARD = 0x5A  # what the guest's next owner of the memory writes


@dataclass
class Attached:
    """A device with its driver attached."""

    guest: IllumosGuest
    platform: Platform
    memory: GuestMemory
    features: int
    rings: list[Ring]
    block: BlockDriver | None = None
    net: NetDriver | None = None
    control: Control | None = None

    @property
    def disk(self) -> BlockDriver:
        """The block driver. Raises LocalProtocolError on a card."""
        if self.block is None:
            raise LocalProtocolError("this guest has no disk")
        return self.block

    @property
    def card(self) -> NetDriver:
        """The network driver. Raises LocalProtocolError on a disk."""
        if self.net is None:
            raise LocalProtocolError("this guest has no card")
        return self.net

    def reset(self, settle: float = 0.05) -> None:
        """Write 0 to the status, and use the memory for something else at once.

        Raises GuestCorrupted when it changes within `settle` seconds: whatever was in flight is over by then.
        """
        self.platform.reset()
        taken = self.memory.taken()
        for gpa, length in taken:
            self.memory.arena.fill(gpa, length, GUARD)
        time.sleep(settle)
        for gpa, length in taken:
            if self.memory.arena.read(gpa, length) != bytes([GUARD]) * length:
                raise GuestCorrupted("illumos_R2.40", f"memory at {gpa:#x} changed after the reset")

    def close(self) -> None:
        """Close the rings' descriptors."""
        for ring in self.rings:
            ring.close()


def attach(guest: IllumosGuest, platform: Platform, memory: GuestMemory) -> Attached:
    """Attach the driver, in the order of its start-up. Raises NoAttach, and GuestHangs for a GET_ID not answered."""
    features = guest.choose(platform.offered)
    if not guest.legacy and not platform.offered & Feature.VERSION_1:
        raise NoAttach("illumos_E2", "VERSION_1 is not offered")
    device = Attached(guest, platform, memory, features, [])
    try:
        platform.negotiated(features)
        _ATTACH[guest.device](device)
    except BaseException:
        device.close()
        raise
    return device


def _ring(device: Attached, index: int) -> Ring:
    guest = device.guest
    indirect = bool(device.features & Feature.INDIRECT_DESC)
    ring = Ring(device.memory, index, guest.size, legacy=guest.legacy, indirect=indirect, fence=guest.fence)
    device.rings.append(ring)
    device.platform.queue(ring)
    return ring


def _attach_block(device: Attached) -> None:
    limits = learn_limits(device.platform, device.guest, device.features)
    ring = _ring(device, 0)
    device.platform.running(device.features, device.rings, [0])
    disk = learn_disk(device.platform, device.guest, device.features, limits)
    device.block = BlockDriver(device.guest, device.memory, ring, disk)
    device.platform.vectors(device.rings)
    device.block.get_id()


def _attach_net(device: Attached) -> None:
    guest, platform = device.guest, device.platform
    most, pairs = 1, 1
    if device.features & net.Feature.MQ:
        most = int.from_bytes(platform.config(net.ConfigOffset.MAX_VIRTQUEUE_PAIRS, 2), "little")
        if not 1 <= most <= 0x8000:
            raise NoAttach("illumos_D11", f"{most} pairs are not 1..0x8000")
        pairs = min(most, PAIRS_MAX, guest.pairs)
    for index in range(2 * pairs):
        _ring(device, index)
    control = None
    if device.features & net.Feature.CTRL_VQ:
        control = _ring(device, 2 * most if device.features & net.Feature.MQ else 2)
    platform.running(device.features, device.rings, [ring.index for ring in device.rings])
    card = Card(device.features, _mac(device), _mtu(device), pairs)
    check_interface(card)
    device.net = NetDriver(card)
    for pair in range(pairs):
        device.net.rx.append(Receive(guest, device.memory, device.rings[2 * pair], card))
        device.net.tx.append(Transmit(guest, device.memory, device.rings[2 * pair + 1], card))
    if control is not None:
        device.control = Control(device.memory, control, poison=guest.poison)
    if pairs > 1:
        platform.pairs(pairs)
    platform.vectors(device.rings)
    if device.features & net.Feature.STATUS:
        platform.config(net.ConfigOffset.STATUS, 2)


def _mac(device: Attached) -> bytes:
    platform, legacy = device.platform, device.guest.legacy
    if device.features & net.Feature.MAC:
        before = None if legacy else platform.generation()
        for _ in range(1000):
            told = b"".join(platform.config(net.ConfigOffset.MAC + n, 1) for n in range(6))
            if before is None or platform.generation() == before:
                return told
        raise NoAttach("illumos_F7", "the generation changed once, and the driver waits for it to change back")
    address = bytearray(random.Random(device.guest.seed).randbytes(6))  # noqa: S311 - as random as it needs to be
    address[0] &= ~1
    address[1] |= 2  # the byte beside the one that was meant
    platform.write_config(net.ConfigOffset.MAC, bytes(address))
    return bytes(address)


def _mtu(device: Attached) -> int:
    if device.features & net.Feature.MTU:
        return int.from_bytes(device.platform.config(net.ConfigOffset.MTU, 2), "little")
    return MTU_DEFAULT


_ATTACH = {"block": _attach_block, "net": _attach_net}


class SocketPlatform:
    """A front-end over a vhost-user socket, which keeps the PCI bus, the status, a card's address and control queue.

    The call descriptor there is first is not the guest's vector: it is replaced when the guest has set that up, while
    the rings run. What was signalled in between must not be lost.
    """

    OF_FRONT_END = net.Feature.MAC | net.Feature.STATUS | net.Feature.CTRL_VQ | net.Feature.CTRL_RX

    def __init__(self, frontend: Frontend, arena: Arena, guest: IllumosGuest) -> None:
        self._frontend = frontend
        self._arena = arena
        self._guest = guest
        self._early: list[Fd] = []
        self._indexes: list[int] = []
        frontend.negotiate(features=(1 << 64) - 1, protocol_features=PROTOCOL_FEATURES)
        self.offered = frontend.offered
        if guest.device == "net":
            self.offered &= ~int(self.OF_FRONT_END)
            if guest.mac is not None:
                self.offered |= net.Feature.MAC
            if guest.pairs > 1:
                self.offered |= net.Feature.CTRL_VQ | net.Feature.CTRL_RX

    def config(self, offset: int, length: int) -> bytes:
        """Read configuration space: the back-end's for a disk, the front-end's own for a card."""
        if self._guest.device == "block":
            return self._frontend.config(0, offset + length)[offset:]
        space = (self._guest.mac or bytes(6)) + bytes(2)
        space += self._frontend.queue_num.to_bytes(2, "little")
        space += (self._guest.mtu or MTU_DEFAULT).to_bytes(2, "little")
        return space[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> None:
        """The front-end keeps a card's address; the back-end is not told."""

    def generation(self) -> int:
        """Nothing changes while the driver reads: each read is a message of its own."""
        return 0

    def negotiated(self, features: int) -> None:
        """A front-end tells the back-end when the driver runs."""

    def queue(self, ring: Ring) -> None:
        """So it does with the rings."""

    def running(self, features: int, rings: Sequence[Ring], indexes: Sequence[int]) -> None:
        """DRIVER_OK: features, memory, and each ring the device itself has; a control queue stays here."""
        front = self._frontend
        ours = features & front.offered | front.offered & Feature.PROTOCOL_FEATURES
        front.features = ours
        front.set_features(ours)
        front.share(self._arena)
        served = [ring for ring in rings if ring.index < 2 * self._guest.pairs or self._guest.device == "block"]
        self._indexes = [index for index in indexes if any(ring.index == index for ring in served)]
        if features & net.Feature.MTU and front.protocol_features & ProtocolFeature.NET_MTU and self._guest.mtu:
            front.tell(FrontendRequest.NET_SET_MTU, U64(self._guest.mtu))
        for ring in served:
            desc, avail, used = ring.uvas
            front.set_num(ring.index, ring.size)
            front.set_base(ring.index, 0)
            front.tell(FrontendRequest.SET_VRING_ADDR, VringAddr(ring.index, 0, desc, used, avail, ring.used_gpa))
            front.set_kick(ring.index, ring.kick_fd)
            early = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._early.append(early)
            front.set_call(ring.index, early)
            front.set_err(ring.index, ring.err_fd)
        for index in self._indexes:
            if self._guest.device == "block" or index < 2:
                front.enable(index)

    def vectors(self, rings: Sequence[Ring]) -> None:
        """Now a call is an interrupt of the guest."""
        for ring in rings:
            if ring.index in self._indexes:
                self._frontend.set_call(ring.index, ring.call_fd)

    def pairs(self, count: int) -> None:
        """The front-end serves the control queue: it enables the rings."""
        for index in self._indexes:
            self._frontend.enable(index, index < 2 * count)

    def reset(self) -> None:
        """Stop each ring; when the last answer is here, the guest uses the memory."""
        for index in self._indexes:
            self._frontend.enable(index, enabled=False)
        for index in self._indexes:
            self._frontend.get_base(index)

    def close(self) -> None:
        """Close what is not the rings'."""
        self._frontend.close()
        for fd in self._early:
            fd.close()


@contextlib.contextmanager
def boot(path: str | os.PathLike[str], guest: IllumosGuest) -> Iterator[Attached]:
    """Boot a guest on a back-end's socket, up to where its driver is attached; unplug it at the end."""
    with contextlib.ExitStack() as stack:
        arena = stack.enter_context(Arena([REGION]))
        frontend = stack.enter_context(Frontend.connect(path, timeout=guest.timeout))
        platform = SocketPlatform(frontend, arena, guest)
        memory = GuestMemory(arena, guest.layout, guest.seed)
        device = attach(guest, platform, memory)
        stack.callback(device.close)
        stack.callback(platform.close)  # before the rings' memory goes
        yield device
