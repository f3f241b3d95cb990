"""A device on its socket: listening, in session, draining, closed."""

import asyncio
import contextlib
import enum
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from vhostd.backends.base import Backend
from vhostd.devices.channel import Channel
from vhostd.devices.listen import Acceptor
from vhostd.devices.perform import Performer, Rings
from vhostd.errors import BackendError, GuestMemoryError, RemoteProtocolError, VhostdError
from vhostd.protocol.backend_session import BackendSession, Offer
from vhostd.queues.queue import EXPLAIN, Code
from vhostd.spec import blk, net, virtio
from vhostd.spec.vhost_user import ProtocolFeature
from vhostd.workers.pool import WorkerPool

log = logging.getLogger(__name__)

MEM_SLOTS = 509  # what the kernel's vhost and libvhost-user have: QEMU plans with it
ACCEPT_PAUSE_S = 0.1  # after an accept that failed for want of something

_MEMORY_LOST = "guest memory vanished: the file behind it was truncated"

EventHook = Callable[[str, dict[str, Any]], None]


def offer_of(backend: Backend) -> Offer:
    """Return what a device with this back-end offers a front-end, bit by bit."""
    features = (
        ProtocolFeature.MQ
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.BACKEND_SEND_FD
        | ProtocolFeature.RESET_DEVICE
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
        | ProtocolFeature.STATUS
    )
    if backend.tells_config:
        features |= ProtocolFeature.CONFIG
    if backend.mtu_settable:
        features |= ProtocolFeature.NET_MTU
    if backend.kind == "net":
        features |= ProtocolFeature.RARP
    return Offer(
        features=backend.features,
        protocol_features=features,
        queue_num=backend.queue_num,
        rings=backend.rings,
        mem_slots=MEM_SLOTS,
        config_len=len(backend.config_space),
    )


class _Session:
    """One connection: its channel, what the protocol knows of it, what it has given us."""

    def __init__(self, connection: socket.socket, offer: Offer, backend: Backend, rings: Rings, device: str) -> None:
        self.channel = Channel(connection)
        self.protocol = BackendSession(offer)
        self.performer = Performer(self.protocol, backend, rings, device, connection.getsockname())
        self.pid, self.uid, _ = self.channel.peer()
        self.ending = False
        self.task: asyncio.Task[None] | None = None
        self.broken: set[int] = set()


class Device:
    """One device: a back-end, its rings, and the front-end of the moment.

    events: called with an event's name and its data: FRONTEND_CONNECTED, FRONTEND_DISCONNECTED, RING_STARTED,
    RING_STOPPED, RING_BROKEN.
    """

    def __init__(self, name: str, backend: Backend, pool: WorkerPool) -> None:
        self.name = name
        self.backend = backend
        self.events: EventHook | None = None
        self._pool = pool
        self._rings = Rings(backend, pool, self._ring_broke)
        self._offer = offer_of(backend)
        self._session: _Session | None = None
        self._closing = False
        self._sessions = 0
        self._refused = 0

    # Connections.

    async def serve(self, acceptor: Acceptor) -> None:
        """Accept front-ends, one at a time, until cancelled."""
        spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while not self._closing:
                try:
                    connection = await acceptor.accept()
                except OSError as error:
                    # Out of descriptors: what waits is taken with the spare one and turned away, or we would spin on
                    # it.
                    if error.errno in (errno.EMFILE, errno.ENFILE):
                        os.close(spare)
                        acceptor.turn_away()
                        spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
                    log.warning("cannot accept", extra={"device": self.name, "why": error})
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                await self._admit(connection)
        finally:
            os.close(spare)

    async def _admit(self, connection: socket.socket) -> None:
        current = self._session
        if current is not None and not current.ending and not current.channel.hung_up():
            self._refused += 1
            log.warning("a second front-end was turned away", extra={"device": self.name, "first": current.pid})
            connection.close()
            return
        if current is not None and current.task is not None:
            await asyncio.wait([current.task])  # bounded: an end is
        self._begin(connection)

    def _begin(self, connection: socket.socket) -> "asyncio.Task[None]":
        session = _Session(connection, self._offer, self.backend, self._rings, self.name)
        self._session = session
        self._sessions += 1
        session.task = asyncio.create_task(self._run(session), name=f"session of {self.name}")
        return session.task

    async def attach(self, connection: socket.socket) -> None:
        """Serve one connected socket to its end."""
        await self._begin(connection)

    async def _run(self, session: _Session) -> None:
        log.info("front-end connected", extra={"device": self.name, "pid": session.pid})
        self._tell("FRONTEND_CONNECTED", {"pid": session.pid})
        reason = "closed by the front-end"
        try:
            while not self._closing:
                frame = await session.channel.receive()
                if frame is None:
                    break
                try:
                    await self._message(session, frame)
                finally:
                    frame.close_fds()
                if session.performer.memory_lost:
                    raise RemoteProtocolError(_MEMORY_LOST, fatal=True)
        except VhostdError as error:
            reason = str(error)
            log.warning("connection ended", extra={"device": self.name, "why": reason})
        except asyncio.CancelledError:
            reason = _MEMORY_LOST if session.performer.memory_lost else "shutting down"
        finally:
            session.ending = True
            await self._end(session, reason)

    async def _end(self, session: _Session, reason: str) -> None:
        # Its own task, so that a cancellation of ours cannot leave workers in memory that is about to go.
        end = asyncio.ensure_future(session.performer.end())
        while not end.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(end)
        session.channel.close()
        if self._session is session:
            self._session = None
        log.info("front-end gone", extra={"device": self.name, "pid": session.pid})
        self._tell("FRONTEND_DISCONNECTED", {"pid": session.pid, "reason": reason})

    async def _message(self, session: _Session, frame: Any) -> None:
        before = session.performer.started
        try:
            action = session.protocol.receive(frame)
            value = await session.performer.perform(action)
            reply = session.protocol.done(action, value)
        except (RemoteProtocolError, GuestMemoryError, BackendError) as error:
            self._refused += 1
            log.warning("message refused", extra={"device": self.name, "why": error})
            reply = session.protocol.refuse(frame, error)
        if reply is not None:
            await session.channel.send(reply.data, reply.fds)
        after = session.performer.started
        for ring in sorted(after - before):
            session.broken.discard(ring)
            self._tell("RING_STARTED", {"ring": ring})
        for ring in sorted(before - after):
            self._tell("RING_STOPPED", {"ring": ring})

    # Rings.

    def _ring_broke(self, ring: int, result: int) -> None:
        """A worker reports that the guest broke a ring: told once, to the front-end and to the operator."""
        why = EXPLAIN.get(Code(result), Code(result).name)
        log.warning("ring broken", extra={"device": self.name, "ring": ring, "why": why})
        session = self._session
        if session is not None and not session.ending:
            session.broken.add(ring)
            session.protocol.needs_reset = True
            # virtio 2.1.2: a device that needs a reset tells a driver that has set DRIVER_OK.
            if session.performer.back_channel is not None:
                session.performer.back_channel.config_changed()
            if session.performer.memory_lost and session.task is not None:
                session.task.cancel()
        self._tell("RING_BROKEN", {"ring": ring, "reason": why})

    def config_changed(self) -> bool:
        """Have the front-end read the configuration space again. Whether it could be told."""
        session = self._session
        return (
            session is not None
            and session.performer.back_channel is not None
            and (session.performer.back_channel.config_changed())
        )

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        if self.events is not None:
            self.events(event, {"device": self.name, **data})

    # What an operator asks.

    @property
    def state(self) -> str:
        """listening, connected, running or broken."""
        session = self._session
        if session is None:
            return "listening"
        if session.broken:
            return "broken"
        return "running" if session.performer.started else "connected"

    def query(self) -> dict[str, Any]:
        """Return what is known of the device, JSON-able."""
        session = self._session
        rings = []
        if session is not None:
            for vring in session.protocol.vrings:
                if not vring.configured and not vring.enabled:
                    continue
                queue = self._rings.queue(vring.index)
                code = None if queue is None else queue.broken
                rings.append(
                    {
                        "ring": vring.index,
                        "size": vring.num,
                        "started": vring.started,
                        "enabled": vring.enabled,
                        "base": vring.base if queue is None else queue.base,
                        "in_flight": 0 if queue is None else queue.in_flight,
                        "broken": None if code is None else EXPLAIN.get(code, code.name),
                    }
                )
        return {
            "name": self.name,
            "type": self.backend.kind,
            "state": self.state,
            "engine": self._pool.uring,
            "queues": self.backend.queue_num,
            "workers": len(self._pool.workers),
            "frontend": None if session is None else {"pid": session.pid, "uid": session.uid},
            "features": [] if session is None else feature_names(self.backend.kind, session.protocol.features),
            "protocol_features": []
            if session is None
            else [flag.name or "" for flag in session.protocol.protocol_features],
            "memory_bytes": 0 if session is None else sum(region.length for region in session.protocol.regions),
            "rings": rings,
            **self.backend.describe(),
        }

    def stats(self) -> dict[str, Any]:
        """Return counters: of each ring that ever ran, their sums, and of the workers. They outlive front-ends."""
        rings = {ring: c.snapshot(self.backend.counter_names) for ring, c in sorted(self._rings.counters.items())}
        total = dict.fromkeys((*(() if not rings else next(iter(rings.values()))),), 0)
        for counts in rings.values():
            for name, value in counts.items():
                total[name] += value
        return {
            "name": self.name,
            "sessions": self._sessions,
            "refused": self._refused,
            "total": total,
            "rings": {str(ring): counts for ring, counts in rings.items()},
            "workers": [worker.loop.counters() for worker in self._pool.workers],
        }

    async def close(self) -> None:
        """Let the front-end go, drain, and give the back-end back. Bounded; a second time does nothing."""
        if self._closing:
            return
        self._closing = True
        session = self._session
        if session is not None and session.task is not None:
            if not session.ending:
                session.task.cancel()
            await asyncio.wait([session.task])
        self.backend.close()


def feature_names(kind: str, features: int) -> list[str]:
    """Return the names of feature bits, lowest first; bits without a name in hex."""
    own: type[enum.IntFlag] = blk.Feature if kind == "block" else net.Feature
    known = {flag.value: flag.name or "" for flag in (*virtio.Feature, *own)}
    return [known.get(1 << bit, hex(1 << bit)) for bit in range(64) if features >> bit & 1]
