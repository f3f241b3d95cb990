"""What a case has in its hands: connections, sessions and work on the target, each of which goes into the evidence.

Everything that is opened is closed when the case ends, and cut off when its time is over.
"""

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from vhostd.driver.arena import Arena
from vhostd.driver.conformance import words
from vhostd.driver.conformance.case import DEVICE_IDS, Case
from vhostd.driver.conformance.target import Scratch, Target
from vhostd.driver.conformance.told import ToldBlockDriver, ToldFrontend
from vhostd.driver.conformance.verdict import Evidence, Failed, Fault, Needs, NotOffered
from vhostd.driver.conformance.work import Reads, Transmits, Work
from vhostd.driver.frontend import DEVICE_BITS, PROTOCOL_FEATURES, RING_FEATURES
from vhostd.driver.net import NetDriver
from vhostd.driver.profiles import PROFILES, open_profile, walk
from vhostd.driver.session import Session, open_session
from vhostd.driver.virtqueue import Virtqueue
from vhostd.driver.wire import Wire
from vhostd.errors import DeviceGone, DeviceTimeout, LocalProtocolError
from vhostd.protocol.messages import Message
from vhostd.protocol.wire import encode
from vhostd.spec import net, render
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature

ALL_FEATURES = DEVICE_BITS | RING_FEATURES
# The operator's own front-ends take no control queue over vhost-user, nor does ours.
NOT_DRIVEN = net.Feature.CTRL_VQ | net.Feature.RSS | net.Feature.HASH_REPORT | net.Feature.RSC_EXT
QUIET = 0.15  # seconds in which nothing may happen


class _Closes(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closes)


def _never_stops() -> list[int]:
    raise NotOffered("this front-end stops no ring")


class Guest:
    """A started device in the hands of a case; its fields may be used directly."""

    def __init__(self, check: "Check", session: Session) -> None:
        self.check = check
        self.session = session

    @property
    def frontend(self) -> ToldFrontend:
        """The connection, for what the case says itself. Raises NotOffered behind a profile, which says all."""
        profile = self.check.target.profile
        if profile is not None:
            raise NotOffered(f"{profile} says nothing of its own accord")
        assert isinstance(self.session.frontend, ToldFrontend)
        return self.session.frontend

    @property
    def arena(self) -> Arena:
        """The memory."""
        return self.session.arena

    @property
    def queues(self) -> list[Virtqueue]:
        """The rings."""
        return self.session.queues

    @property
    def queue(self) -> Virtqueue:
        """The ring on which something can be done without a wire."""
        return self.queues[self.check.target.work_ring]

    def block(self, index: int = 0, *, poll: bool = False) -> ToldBlockDriver:
        """Return a block driver of one ring."""
        return ToldBlockDriver(self.queues[index], self.check.evidence, timeout=self.check.timeout, poll=poll)

    def net(self, pair: int = 0) -> NetDriver:
        """Return a network driver of one pair."""
        return self.session.net(pair)

    def work(self, ring: int | None = None) -> Work:
        """Return work for a ring, the usual one when None."""
        target = self.check.target
        queue = self.queues[target.work_ring if ring is None else ring]
        if target.kind == "net":
            return Transmits(queue, self.session.frontend.features, self.check.evidence, self.check.timeout)
        area = self.check.scratch
        driver = ToldBlockDriver(queue, self.check.evidence, timeout=self.check.timeout)
        return Reads(driver, area.first, area.known)

    def works(self, count: int = 4, ring: int | None = None) -> None:
        """Have the ring do `count` pieces of work, one by one. Raises Failed or DeviceError where it does not."""
        work = self.work(ring)
        for number in range(count):
            work.finish(work.submit(number))

    def rebuild(self, size: int) -> None:
        """Start stopped rings again with other ones of `size`, as the next driver of the device does."""
        for ring, queue in enumerate(self.queues):
            queue.close()
            made = Virtqueue(self.arena, size, event_idx=queue.event_idx, indirect=queue.indirect)
            self.session.queues[ring] = self.check.keep(made)
        self.frontend.bases.clear()
        self.session.start()

    def add(
        self, queue: Virtqueue, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]], **how: Any
    ) -> int:
        """Put a chain of any buffers, (gpa, length) each, into a ring, kick, and write it down; return its head."""
        self.check.note(f"chain: device-readable {words.lengths(readable)}; device-writable {words.lengths(writable)}")
        head = queue.add(readable, writable, **how)
        queue.kick()
        return head


class Check:
    """The hands of one case."""

    def __init__(self, target: Target, case: Case) -> None:
        self.target = target
        self.case = case
        self.evidence = Evidence()
        self.timeout = target.timeout
        self._stack = contextlib.ExitStack()
        self._sockets: list[ToldFrontend] = []

    # What is there.

    @property
    def offered(self) -> int:
        """The feature bits that are offered."""
        return self.target.offer.features

    @property
    def is_block(self) -> bool:
        """Whether it is a disk."""
        return self.target.kind == "block"

    @property
    def scratch(self) -> Scratch:
        """The part of the disk that may be used."""
        assert self.target.scratch is not None
        return self.target.scratch

    def wire(self, *, vnet: bool = False) -> Wire:
        """Open the host's end of the card, with virtio_net_hdr in front of frames if `vnet`. Raises Needs."""
        if self.target.interface is None:
            raise Needs("--interface NAME, the tap or other interface behind the card")
        try:
            opened = self.target.wire(vnet=vnet)
        except OSError as error:
            raise Needs(f"--interface {self.target.interface} to be usable: {error.strerror}") from error
        self._stack.callback(opened.close)
        return opened

    # Connections.

    def config(self) -> bytes:
        """Return the whole configuration space as it is now: the last front-end may have set the MTU."""
        frontend = self.negotiated()
        try:
            return frontend.config(0, len(self.target.offer.config))
        finally:
            frontend.close()

    def connect(self, *, wait: float = 2.0) -> ToldFrontend:
        """Open a connection on which nothing has been said. Raises DeviceTimeout when nobody listens."""
        made = ToldFrontend.telling(
            self.target.path, self.evidence, DEVICE_IDS[self.target.kind], timeout=self.timeout, wait=wait
        )
        self._sockets.append(made)
        self._stack.callback(made.close)
        return made

    def negotiated(self, features: int = ALL_FEATURES, protocol: ProtocolFeature = PROTOCOL_FEATURES) -> ToldFrontend:
        """Open a connection and do QEMU's connection phase."""
        made = self.connect()
        made.negotiate(features & ~NOT_DRIVEN if self.target.kind == "net" else features, protocol)
        return made

    @contextlib.contextmanager
    def guest(self, *, queues: int = 1, features: int = ALL_FEATURES, **options: Any) -> Iterator[Guest]:
        """Start a device with so many rings of a disk or pairs of a card; options are those of open_session.

        With a profile its order is followed. Raises NotOffered where its front-end does not go that way.
        """
        if self.target.kind == "net":
            features &= ~NOT_DRIVEN
            options.setdefault("size", 256)
        if self.target.profile is None:
            rings = queues * (2 if self.target.kind == "net" else 1)
            options.setdefault("timeout", self.timeout)
            opened = open_session(self.target.path, queues=rings, features=features, connect=self._reconnect, **options)
        else:
            opened = self._profiled(queues, features, options)
        with opened as session:
            if self.target.profile is not None:
                # Not every front-end waits for an answer: what is on the wire now would come before the rings run.
                session.frontend.ask_u64(FrontendRequest.GET_FEATURES)
            yield Guest(self, session)

    def _reconnect(self, path: str | os.PathLike[str], *, timeout: float) -> ToldFrontend:
        del path
        made = self.connect()
        made.timeout = timeout
        return made

    @contextlib.contextmanager
    def _profiled(self, queues: int, features: int, options: dict[str, Any]) -> Iterator[Session]:
        name = self.target.profile
        assert name is not None
        own = [key for key in options if key not in {"size", "timeout", "memory_len"}]
        if own:
            raise NotOffered(f"{name} has its own way: {', '.join(own)}")
        profile = PROFILES[name]
        kind = self.target.kind
        profile = dataclasses.replace(profile, features={kind: profile.features[kind] & features})
        missing = self.case.needs.features & ~profile.features[kind]
        if missing:
            raise NotOffered(f"{name} does not take {render.features(missing, DEVICE_IDS[kind])}")
        options.setdefault("timeout", self.timeout)
        try:
            with open_profile(
                self.target.path, profile, kind, queues=queues, connect=self._reconnect, **options
            ) as session:
                if not any(step.request is FrontendRequest.GET_VRING_BASE for step in walk(session.order.stop)):
                    session.stop = _never_stops  # type: ignore[method-assign]
                yield session
        except LocalProtocolError as error:
            raise NotOffered(str(error)) from error

    def arena(self, *regions: Any, **options: Any) -> Arena:
        """Make memory of these regions, which ends with the case."""
        return self._stack.enter_context(Arena(regions, **options))

    def keep(self, thing: C) -> C:
        """Have something that is closed by `close` end with the case."""
        self._stack.callback(thing.close)
        return thing

    # What is sent, expected and seen.

    def note(self, line: str) -> None:
        """Write down what is sent or done."""
        self.evidence.note(line)

    def expect(self, holds: object, expected: str, seen: str, fault: Fault = Fault.WRONG_ANSWER) -> None:
        """End the case as failed unless `holds`; `expected` and `seen` in words."""
        if not holds:
            raise Failed(expected, seen, fault)

    def equal(self, seen: Any, expected: Any, what: str) -> None:
        """End the case as failed unless both are equal."""
        if seen != expected:
            raise Failed(f"{what} {_shown(expected)}", _shown(seen))

    def at_most(self, seen: int, limit: int, what: str) -> None:
        """End the case as failed when a number is greater."""
        self.expect(seen <= limit, f"{what} at most {limit}", f"{seen}")

    def offers(self, holds: object, what: str) -> None:
        """End the case as not offered unless `holds`."""
        if not holds:
            raise NotOffered(what)

    def acked(
        self, frontend: ToldFrontend, request: FrontendRequest, message: Message | bytes, fds: Sequence[int] = ()
    ) -> int | None:
        """Send a request with need_reply; return the u64 that answers, or None when the connection is closed."""
        payload = message if isinstance(message, bytes) else encode(message)
        try:
            frontend.send(request, payload, fds, flags=VERSION | FLAG_NEED_REPLY)
            frame = frontend.reply(request)
        except DeviceGone:
            self.note("  the back-end closed the connection")
            return None
        frame.close_fds()
        self.equal(len(frame.payload), 8, "a payload of so many bytes")
        return int.from_bytes(frame.payload, "little")

    def quiet(self, queue: Virtqueue, seconds: float = QUIET, *, since: int | None = None) -> bool:
        """Whether the device uses nothing of a ring for a while: used.idx stays at `since`, or at what was reaped."""
        before = queue.last_used if since is None else since
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if queue.used_idx != before:
                return False
            time.sleep(0.005)
        return True

    def until(self, holds: Callable[[], object], expected: str, seen: str, seconds: float | None = None) -> None:
        """Wait until `holds`; end the case as failed when it does not in time."""
        deadline = time.monotonic() + (self.timeout if seconds is None else seconds)
        while not holds():
            if time.monotonic() > deadline:
                raise Failed(expected, seen)
            time.sleep(0.002)

    def answers(self, frontend: ToldFrontend) -> None:
        """Hold the connection to answering GET_FEATURES as at first."""
        try:
            seen = frontend.ask_u64(FrontendRequest.GET_FEATURES)
        except DeviceTimeout:
            raise Failed("an answer to GET_FEATURES", "none in time", Fault.WEDGE) from None
        self.equal(seen, self.offered, "the features offered at first,")

    # The end.

    def abandon(self) -> None:
        """Cut off whatever the case waits for; any thread may call it."""
        for each in self._sockets:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(each.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything."""
        self._stack.close()


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"{value[:48].hex(' ')}{' ...' if len(value) > 48 else ''} ({len(value)} bytes)"
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) and value > 9 else str(value)
