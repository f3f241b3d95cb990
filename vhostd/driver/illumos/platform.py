"""What stands between the guest's driver and a back-end's socket: a front-end of its own, or one of the profiles."""

import os
from collections.abc import Sequence
from typing import cast

from vhostd.driver.arena import Arena
from vhostd.driver.frontend import PROTOCOL_FEATURES, Frontend
from vhostd.driver.illumos.ring import Ring
from vhostd.driver.illumos.startup import IllumosGuest
from vhostd.driver.profiles import PROFILES, Profile, ProfileSession, Scene, walk
from vhostd.driver.profiles.replay import pipe_for, region_message
from vhostd.driver.profiles.scene import Ring as Told
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import LocalProtocolError
from vhostd.fds import Fd
from vhostd.protocol.messages import U64, VringAddr
from vhostd.spec import net
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

MTU_DEFAULT = 1500


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
        self._connect()
        self.offered = frontend.offered
        if guest.device == "net":
            self.offered &= ~int(self.OF_FRONT_END)
            if guest.mac is not None:
                self.offered |= net.Feature.MAC
            if guest.pairs > 1:
                self.offered |= net.Feature.CTRL_VQ | net.Feature.CTRL_RX

    def _connect(self) -> None:
        self._frontend.negotiate(features=(1 << 64) - 1, protocol_features=PROTOCOL_FEATURES)

    def _served(self, rings: Sequence[Ring]) -> list[Ring]:
        """Return the rings the back-end has; a control queue stays here."""
        return [ring for ring in rings if ring.index < 2 * self._guest.pairs or self._guest.device == "block"]

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
        served = self._served(rings)
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


class ProfilePlatform(SocketPlatform):
    """A front-end that speaks as a profile does, to whose guest the driver belongs."""

    def __init__(self, frontend: Frontend, arena: Arena, guest: IllumosGuest, profile: Profile) -> None:
        total = 2 * guest.pairs if guest.device == "net" else 1
        nowhere = Told(guest.size, 0, 0, 0, 0, lambda: 0, lambda: 0)
        regions = [region_message(region) for region in arena.regions]
        self._scene = Scene(profile, guest.device, [nowhere] * total, regions, total)
        self._scene.protocol_limit = PROTOCOL_FEATURES
        self._session = ProfileSession(frontend, arena, [], guest.timeout, profile, guest.device, self._scene, "")
        super().__init__(frontend, arena, guest)
        self.offered &= profile.features[guest.device] | int(self.OF_FRONT_END)

    def _connect(self) -> None:
        self._session.play(self._session.order.connect)

    def running(self, features: int, rings: Sequence[Ring], indexes: Sequence[int]) -> None:
        """DRIVER_OK: the profile's start, with the guest's features and the rings the back-end has."""
        profile, served = self._scene.profile, self._served(rings)
        self._indexes = [ring.index for ring in served]
        self._scene.rings = [_told(ring, profile) for ring in served]
        self._scene.total = len(served)
        self._scene.features = features & self._frontend.offered
        if profile.features[self._guest.device] & Feature.PROTOCOL_FEATURES:
            self._scene.features |= self._frontend.offered & Feature.PROTOCOL_FEATURES
        self._session.queues[:] = cast("list[Virtqueue]", served)  # their descriptors are what is used of them
        if profile.pipes:
            self._session.pipes = {n: pipe_for(ring) for n, ring in enumerate(served)}
        self._session.play(self._session.order.start)

    def vectors(self, rings: Sequence[Ring]) -> None:
        """Now a call is an interrupt of the guest; of a pipe it was from the beginning."""
        if not self._scene.profile.pipes:
            super().vectors(rings)

    def pairs(self, count: int) -> None:
        """The front-end serves the control queue: it enables the rings."""
        if self._scene.features & Feature.PROTOCOL_FEATURES:
            super().pairs(count)

    def reset(self) -> None:
        """The profile's reset, or its stop where the guest's reset is no more than that."""
        order = self._session.order
        self._session.play(order.stop if order.reset is None else order.reset)

    def close(self) -> None:
        """Close what is not the rings'."""
        super().close()
        self._session.close_fds()


def _told(ring: Ring, profile: Profile) -> Told:
    desc, avail, used = ring.uvas
    log = ring.used_gpa if profile.log_gpa is None else profile.log_gpa
    return Told(ring.size, desc, avail, used, log, lambda: ring.used_idx, lambda: ring.avail_idx)


def front_end_of(name: str, guest: IllumosGuest) -> Profile:
    """Return a profile whose front-end has a guest of this kind. Raises LocalProtocolError for another."""
    profile = PROFILES.get(name)
    if profile is None or guest.device not in profile.orders:
        raise LocalProtocolError(f"there is no profile {name!r} with a {guest.device} device")
    if any(step.request is FrontendRequest.SET_FEATURES for step in walk(profile.orders[guest.device].connect)):
        raise LocalProtocolError(f"{name} drives its device itself: there is no guest in it")
    if guest.device == "block" and not profile.protocol_features["block"] & ProtocolFeature.CONFIG:
        raise LocalProtocolError(f"{name} cannot read a disk's configuration space")
    return profile
