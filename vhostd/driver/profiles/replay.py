"""Plays the order of a profile against a back-end, and hands out what came of it as a Session."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from vhostd.driver.arena import PAGE_LEN, Arena, Region
from vhostd.driver.blk import BlockDriver
from vhostd.driver.frontend import DEVICE_BITS, PROTOCOL_FEATURES, RING_FEATURES, Frontend
from vhostd.driver.layout import RingLayout, legacy_layout, modern_layout
from vhostd.driver.profiles.scene import Ring, Scene, Sent
from vhostd.driver.profiles.steps import Kind, Order, Profile, Steps
from vhostd.driver.session import Session
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, LocalProtocolError, RemoteProtocolError
from vhostd.fds import Fd
from vhostd.protocol.messages import Config, Empty, MemRegion, Message
from vhostd.protocol.wire import decode_reply
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, VERSION, FrontendRequest
from vhostd.spec.virtio import Feature

R = FrontendRequest
REPLIED = {
    R.GET_FEATURES,
    R.GET_PROTOCOL_FEATURES,
    R.GET_QUEUE_NUM,
    R.GET_MAX_MEM_SLOTS,
    R.GET_STATUS,
    R.GET_CONFIG,
    R.GET_VRING_BASE,
    R.GET_INFLIGHT_FD,
}
GPA = 0x1000_0000
GAP = 0x1000_0000  # between the regions
FLAT_UVA = 0x7E00_0000_0000  # where a process without a guest has its memory
_named: dict[str, Profile] = {}


def register(*profiles: Profile) -> dict[str, Profile]:
    """Return profiles by name, under which `open_profile` knows them."""
    _named.update({profile.name: profile for profile in profiles})
    return dict(_named)


class Called(Protocol):
    """Something with a call descriptor."""

    @property
    def call_fd(self) -> Fd:
        """The descriptor the back-end signals."""


@dataclass
class ProfileSession(Session):
    """A Session whose every message is one of its profile's.

    `start` is the restart after `stop`. Raises LocalProtocolError for what this front-end never does.
    """

    profile: Profile
    kind: Kind
    scene: Scene
    path: str
    connect: Callable[..., Frontend] = Frontend.connect
    inflight_fd: Fd | None = None
    pipes: dict[int, Fd] = field(default_factory=dict)
    early: dict[str, Fd] = field(default_factory=dict)

    def close_fds(self) -> None:
        """Close the descriptors that are neither the queues' nor the connection's."""
        for fd in (*self.pipes.values(), *self.early.values(), self.inflight_fd):
            if fd is not None:
                fd.close()

    @property
    def order(self) -> Order:
        """What this front-end says to this kind of device."""
        return self.profile.orders[self.kind]

    def block(self, index: int = 0, *, poll: bool | None = None) -> BlockDriver:
        """Return a block driver of one queue; it polls where the profile's driver does."""
        return super().block(index, poll=self.profile.polls if poll is None else poll)

    def start(self, *, enable: int | None = None) -> None:
        """Go on from where `stop` left the rings."""
        if enable is not None:
            raise LocalProtocolError("a profile says itself which rings are enabled")
        self.play(self._has("restart", self.order.restart))

    def stop(self) -> list[int]:
        """Stop the device; return the bases that were asked for, by ring."""
        self.scene.bases.clear()
        self.play(self.order.stop)
        return [base for _, base in sorted(self.scene.bases.items())]

    def reset(self) -> None:
        """Reset the device as the guest's driver does, and start it with empty rings."""
        self.play(self._has("reset", self.order.reset))
        self.scene.was_reset()
        if self.inflight_fd is not None:
            self.inflight_fd.close()
            self.inflight_fd = None
        for queue in self.queues:
            queue.reset()
        self.play(self.order.again if self.order.again is not None else self.order.start)

    def pause(self) -> None:
        """Disable the rings of a device that stays started."""
        self.play(self._has("pause", self.order.pause))

    def resume(self) -> None:
        """Enable them again."""
        self.play(self._has("resume", self.order.resume))

    def reconnect(self) -> None:
        """Lose the connection while the rings run, and start on a new one."""
        order = self._has("reconnect", self.order.reconnect)
        self.frontend.close()
        self.frontend = self.connect(self.path, timeout=self.timeout)
        self.scene.status = 0
        self.play(order)

    def disconnect(self) -> None:
        """Close the connection there is now; a second time does nothing."""
        self.frontend.close()

    def play(self, steps: Steps) -> None:
        """Send these messages, waiting where the front-end waits.

        Raises Refused for a reply that says no, DeviceError for one that is none, DeviceTimeout for none.
        """
        self.frontend.queues = tuple(self.queues)
        for queue in self.queues:
            queue.watch_fd = self.frontend.fileno()
        for sent in self.scene.plan(steps):
            self._send(sent)
        known = self.scene
        self.frontend.offered, self.frontend.features = known.offered, known.features
        self.frontend.protocol_offered, self.frontend.protocol_features = known.protocol_offered, known.protocol
        self.frontend.queue_num, self.frontend.mem_slots = known.queue_num, known.mem_slots
        self.frontend.regions = list(self.arena.regions)

    def _send(self, sent: Sent) -> None:
        flags = VERSION | (FLAG_NEED_REPLY if sent.need_reply else 0)
        if sent.request is R.SET_BACKEND_REQ_FD:
            self._open_channel(sent, flags)
            return
        self.frontend.send(sent.request, sent.payload, [self._fd(name) for name in sent.fds], flags=flags)
        if sent.request in REPLIED:
            self.scene.answered(sent, self._reply(sent))
        elif sent.need_reply:
            self.frontend.acked(sent.request)

    def _reply(self, sent: Sent) -> Message:
        frame = self.frontend.reply(sent.request)
        try:
            answer = decode_reply(sent.request, frame.payload)
        except RemoteProtocolError as error:
            frame.close_fds()
            raise DeviceError(str(error)) from error
        if sent.request is R.GET_INFLIGHT_FD and len(frame.fds) == 1:
            self.inflight_fd = frame.fds[0]
        else:
            frame.close_fds()
        if len(frame.payload) != len(sent.payload) and isinstance(answer, Config | Empty):
            raise DeviceError(f"{sent.request.name}: asked with {len(sent.payload)} bytes, got {len(frame.payload)}")
        return answer

    def _open_channel(self, sent: Sent, flags: int) -> None:
        if self.profile.pipes:
            read, write = (Fd(number) for number in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
            self.frontend.send(sent.request, b"", [write.number], flags=flags)
            write.close()
            read.close()  # nothing of ours reads it
            if sent.need_reply:
                self.frontend.acked(sent.request)
        else:
            self.frontend.open_channel(ack=sent.need_reply)

    def _fd(self, name: str) -> int:
        what, at = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
        if what == "region":
            return self.arena.fd(self.arena.regions[int(at)])
        if what == "inflight":
            assert self.inflight_fd is not None
            return self.inflight_fd.number
        if not self.queues:  # a front-end has notifiers before the guest's driver has rings
            return self.early.setdefault(name, Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))).number
        queue = self.queues[int(at)]
        if what == "call" and int(at) in self.pipes:
            return self.pipes[int(at)].number
        fd: Fd = {"kick": queue.kick_fd, "call": queue.call_fd, "err": queue.err_fd}[what]
        return fd.number

    def _has(self, what: str, steps: Steps | None) -> Steps:
        if steps is None:
            raise LocalProtocolError(f"{self.profile.name} has no {what} of a {self.kind} device")
        return steps


@contextlib.contextmanager
def open_profile(
    path: str | os.PathLike[str],
    profile: str | Profile,
    kind: Kind,
    *,
    queues: int = 1,
    size: int | None = None,
    memory_len: int = 32 << 20,
    timeout: float = 5.0,
    start: bool = True,
    connect: Callable[..., Frontend] = Frontend.connect,
) -> Iterator[ProfileSession]:
    """Start a device as a front-end does; close the connection at the end, as it is then.

    `profile` is one of PROFILES or its name. `queues` are rings of a disk, pairs of a card; `size` their entries, the
    front-end's own when None. `memory_len` in bytes, `timeout` in seconds, for each message and request. `connect` is
    another way to connect, called with `path` and `timeout`.
    Raises LocalProtocolError for a profile or kind that there is not.
    """
    known = profile if isinstance(profile, Profile) else _named.get(profile)
    if known is None:
        raise LocalProtocolError(f"there is no profile {profile!r}: {', '.join(_named)}")
    if kind not in known.orders:
        raise LocalProtocolError(f"{known.name} has no {kind} device")
    entries = known.size if size is None else size
    rings = 2 * queues if kind == "net" else queues
    with contextlib.ExitStack() as stack:
        arena = stack.enter_context(Arena(_regions(known, entries, rings, memory_len)))
        frontend = connect(path, timeout=timeout)
        scene = Scene(known, kind, [], [region_message(region) for region in arena.regions], rings)
        scene.limit = DEVICE_BITS | RING_FEATURES
        scene.protocol_limit = PROTOCOL_FEATURES
        session = ProfileSession(frontend, arena, [], timeout, known, kind, scene, os.fspath(path), connect)
        stack.callback(session.close_fds)
        stack.callback(session.disconnect)
        # The rings' number and size are known before what is agreed; how they are used only after it.
        scene.rings = [_planned(known, entries) for _ in range(rings)]
        session.play(session.order.connect)
        made = []
        for index in range(rings):
            queue = Virtqueue(
                arena,
                entries,
                event_idx=bool(scene.features & Feature.EVENT_IDX),
                indirect=bool(scene.features & Feature.INDIRECT_DESC),
                layout=_layout(known, entries, scene.features),
            )
            stack.callback(queue.close)
            made.append(queue)
            if known.pipes:
                session.pipes[index] = pipe_for(queue)
            if known.polls:
                queue.disarm()
        session.queues[:] = made
        scene.rings = [_ring(known, queue) for queue in made]
        # The socket goes before the rings' memory does: a back-end may use a ring until it is stopped.
        stack.callback(session.disconnect)
        if start:
            session.play(session.order.start)
        yield session


def _regions(profile: Profile, size: int, rings: int, length: int) -> list[Region]:
    lengths = [length]
    if profile.ring_region:
        each = modern_layout(size, event_idx=True, align=profile.align).length + profile.align
        lengths.insert(0, -(-each * rings // PAGE_LEN) * PAGE_LEN)
    at, found = FLAT_UVA if profile.flat else GPA, []
    for part in lengths:
        found.append(Region(at, part, at if profile.flat else None))
        at += part + GAP
    return found


def region_message(region: Region) -> MemRegion:
    """Return what a memory table says of a region."""
    return MemRegion(region.gpa, region.length, region.front_uva, region.mmap_offset)


def _layout(profile: Profile, size: int, features: int) -> RingLayout:
    if not features & Feature.VERSION_1:
        return legacy_layout(size)
    return modern_layout(size, event_idx=bool(features & Feature.EVENT_IDX), align=profile.align)


def _ring(profile: Profile, queue: Virtqueue) -> Ring:
    desc, avail, used = queue.uvas
    log = queue.used_gpa if profile.log_gpa is None else profile.log_gpa
    return Ring(queue.size, desc, avail, used, log, lambda: queue.used_idx, lambda: queue.avail_idx)


def _planned(profile: Profile, size: int) -> Ring:
    return Ring(size, 0, 0, 0, profile.log_gpa or 0, lambda: 0, lambda: 0)


def pipe_for(queue: Called) -> Fd:
    """Make the queue's call descriptor the read end of a pipe; return the write end."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.dup2(read, queue.call_fd.number, inheritable=False)
    os.close(read)
    return Fd(write)
