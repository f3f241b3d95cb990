"""A guest attached to a device: the order of its start-up, its reset, and that memory stays as it was after that."""

import contextlib
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vhostd.driver.arena import Arena
from vhostd.driver.frontend import Frontend
from vhostd.driver.illumos.block import BlockDriver
from vhostd.driver.illumos.control import Control
from vhostd.driver.illumos.failures import GuestCorrupted, NoAttach
from vhostd.driver.illumos.memory import REGION, GuestMemory
from vhostd.driver.illumos.net import NetDriver, Receive, Transmit, check_interface
from vhostd.driver.illumos.platform import MTU_DEFAULT, ProfilePlatform, SocketPlatform, front_end_of
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
from vhostd.spec import net
from vhostd.spec.virtio import Feature

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


@contextlib.contextmanager
def boot(path: str | os.PathLike[str], guest: IllumosGuest, profile: str | None = None) -> Iterator[Attached]:
    """Boot a guest on a back-end's socket, up to where its driver is attached; unplug it at the end.

    `profile` names the front-end that speaks for it; None is a plain one. Raises LocalProtocolError for one that has no
    guest in it.
    """
    with contextlib.ExitStack() as stack:
        platform: SocketPlatform
        if profile is None:
            arena = stack.enter_context(Arena([REGION]))
            frontend = stack.enter_context(Frontend.connect(path, timeout=guest.timeout))
            platform = SocketPlatform(frontend, arena, guest)
        else:
            front = front_end_of(profile, guest)
            arena = stack.enter_context(Arena([replace(REGION, uva=REGION.gpa if front.flat else None)]))
            frontend = stack.enter_context(Frontend.connect(path, timeout=guest.timeout))
            platform = ProfilePlatform(frontend, arena, guest, front)
        memory = GuestMemory(arena, guest.layout, guest.seed)
        device = attach(guest, platform, memory)
        stack.callback(device.close)
        stack.callback(platform.close)  # before the rings' memory goes
        yield device
