"""Carries out a session's actions, a function each.

Each checks everything that can be refused before it changes anything. What a message passed is taken out of it only
then; the rest is closed with the message.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

from vhostd.backends.base import Backend
from vhostd.backends.ringset import RingSet
from vhostd.devices.back_channel import BackChannel
from vhostd.devices.eventfds import drain, take_call, take_eventfd
from vhostd.errors import BackendError, GuestMemoryError, LocalProtocolError, RemoteProtocolError
from vhostd.fds import Fd
from vhostd.protocol import actions as act
from vhostd.protocol.backend_session import BackendSession
from vhostd.protocol.messages import MemRegion
from vhostd.queues.counters import Counters
from vhostd.queues.memory import Fault, GuestMemory, Region
from vhostd.queues.queue import Queue
from vhostd.spec import virtio
from vhostd.workers.mailbox import Mail
from vhostd.workers.pool import Worker, WorkerPool

log = logging.getLogger(__name__)

ORDERS_MAX = 32  # mails that a worker may leave unanswered before it gets no more but to stop
INTERRUPT_S = 0.5  # after which a worker that does not answer is got out of the system call it waits in
DRAIN_S = 5.0  # for requests in flight to come back by themselves, and again after they were cancelled
END_S = 2.0  # the same, when the front-end has gone or we are to go: nobody waits for their answers


class RingFds:
    """The descriptors of one ring that the front-end has told us."""

    __slots__ = ("call", "err", "kick")

    def __init__(self) -> None:
        self.kick: Fd | None = None
        self.call: Fd | None = None
        self.err: Fd | None = None

    def close(self) -> None:
        """Close all of them."""
        for fd in (self.kick, self.call, self.err):
            if fd is not None:
                fd.close()
        self.kick = self.call = self.err = None


class Rings:
    """The handlers and counters of a device's rings: they outlive every session."""

    def __init__(self, backend: Backend, pool: WorkerPool, report: Callable[[int, int], None]) -> None:
        self._backend = backend
        self._pool = pool
        self._report = report
        self._handlers: dict[int, RingSet] = {}
        self.counters: dict[int, Counters] = {}

    def handler(self, ring: int) -> tuple[RingSet, int, Worker]:
        """Return the handler of a ring, its slot there, and the worker that runs it. Made when first asked for."""
        number, slot = self._backend.place(ring)
        worker = self._pool.worker_for(number)
        if number not in self._handlers:
            user = id(self) ^ number
            self._handlers[number] = self._backend.make_handler(number, worker.loop, user)
            worker.subscribe(user, self._report)
        return self._handlers[number], slot, worker

    def counters_of(self, ring: int) -> Counters:
        """Return a ring's counters, which last as long as the device."""
        return self.counters.setdefault(ring, Counters())

    def queue(self, ring: int) -> Queue | None:
        """Return what a ring runs."""
        number, slot = self._backend.place(ring)
        handler = self._handlers.get(number)
        return None if handler is None else handler.queues[slot]


class Performer:
    """What one connection has given us, and what becomes of it. Made with the connection, ended by `end`.

    name: of our end of the connection's socket, empty for one of a pair.
    """

    def __init__(self, session: BackendSession, backend: Backend, rings: Rings, device: str, name: str | bytes) -> None:
        self._session = session
        self._name = name
        self._backend = backend
        self._rings = rings
        self._device = device
        self._regions: dict[MemRegion, Region] = {}
        self._fault = Fault()
        self._memory: GuestMemory | None = None
        self._fds: dict[int, RingFds] = {}
        self._queues: dict[int, Queue] = {}  # what the started rings run
        self._unanswered: set[asyncio.Future[int]] = set()
        self._lost: dict[int, int] = {}  # rings that lost their memory while they ran: where they stood
        self.back_channel: BackChannel | None = None

    @property
    def memory_lost(self) -> bool:
        """Whether guest memory has vanished under us: its file was truncated."""
        return self._fault.raised

    @property
    def started(self) -> frozenset[int]:
        """The rings that run."""
        return frozenset(self._queues)

    async def perform(self, action: act.Action) -> Any:
        """Carry out an action and return the value that `done` wants.

        Raises RemoteProtocolError, GuestMemoryError or BackendError, and then nothing has changed.
        """
        try:
            function = self._functions[type(action)]
        except KeyError:
            raise LocalProtocolError(f"nothing performs {type(action).__name__}") from None
        return await function(self, action)

    def _ring_fds(self, ring: int) -> RingFds:
        return self._fds.setdefault(ring, RingFds())

    # Mail.

    def _send(self, worker: Worker, mail: Mail, old: Fd | None = None) -> "asyncio.Future[int]":
        """Send mail. Its answer closes `old`: until then the worker may use that, and its number must not be reused."""
        answer = worker.send(mail)
        self._unanswered.add(answer)
        answer.add_done_callback(self._unanswered.discard)
        if old is not None:
            answer.add_done_callback(lambda _: old.close())
        return answer

    def _check_worker(self, worker: Worker, what: str) -> None:
        """Raise BackendError while a worker hangs, so that mails do not pile up: there must be room to stop rings."""
        if worker.loop.mailbox.outstanding >= ORDERS_MAX:
            raise BackendError(f"{what}: the worker does not answer, a system call of its holds it up")

    async def _answered(self, answers: Mapping["asyncio.Future[int]", Worker], seconds: float = DRAIN_S) -> bool:
        """Wait for all answers, up to `seconds`. Whether they came."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        late = set(answers)
        while late and (left := until - loop.time()) > 0:
            _, late = await asyncio.wait(late, timeout=min(left, INTERRUPT_S))
            for worker in {answers[answer] for answer in late}:
                worker.interrupt()
        return not late

    async def _order(self, worker: Worker, answer: "asyncio.Future[int]", what: str) -> None:
        """Wait for the answer to mail that is answered at once.

        A worker that hangs takes the mail when it is back: in order, so that it counts as done.
        Raises BackendError when it could not be done.
        """
        if not await self._answered({answer: worker}):
            log.warning("a worker does not answer", extra={"device": self._device, "what": what})
        elif (result := answer.result()) < 0:
            raise BackendError(what, OSError(-result, os.strerror(-result)))

    async def _drained(self, mails: Sequence[tuple[int, Worker, Mail]], *, forsaken: bool = False) -> bool:
        """Send mail that waits for requests in flight; cancel these when it takes too long. Whether all came back.

        forsaken: their front-end has gone; what is cancelled is not answered, so that the guest may ask again.
        """
        if not mails:
            return True
        answers = {self._send(worker, mail): worker for _, worker, mail in mails}
        for last in (False, True):
            if last:
                with contextlib.suppress(BackendError):  # a full mailbox: nothing can be cancelled there
                    for ring, worker, _ in mails:
                        self._send(worker, self._rings.handler(ring)[0].cancel(forsaken))
            if await self._answered(answers, END_S if forsaken else DRAIN_S):
                return True
            if last:
                break
            log.warning("requests in flight are slow to return, cancelling", extra={"device": self._device})
        log.error("requests in flight do not return from the host", extra={"device": self._device})
        return False

    # Features, configuration, status.

    async def _nothing(self, action: act.Nothing) -> None:
        pass

    async def _set_features(self, action: act.SetFeatures) -> None:
        features = action.features & ~virtio.Feature.PROTOCOL_FEATURES
        self._backend.set_features(features)
        if action.enable_all:
            for ring in list(self._queues):
                handler, slot, worker = self._rings.handler(ring)
                answer = self._send(worker, handler.enable(slot, enabled=True))
                await self._order(worker, answer, "SET_FEATURES")

    async def _get_config(self, action: act.GetConfig) -> bytes:
        space = self._backend.config_space
        return space[action.offset : action.offset + action.size].ljust(action.size, b"\0")

    async def _set_config(self, action: act.SetConfig) -> None:
        # In a thread of its own: turning a write cache off flushes it.
        await asyncio.to_thread(self._backend.write_config, action.offset, action.payload)

    async def _set_back_channel(self, action: act.SetBackendChannel) -> None:
        channel = BackChannel(action.fd, self._name)
        if self.back_channel is not None:
            self.back_channel.close()
        self.back_channel = channel

    async def _set_status(self, action: act.SetStatus) -> None:
        pass  # the session remembers it, and nothing of ours depends on it

    async def _reset_device(self, action: act.ResetDevice) -> dict[int, int]:
        stood = await self._stop_all()
        self._backend.set_features(0)
        return stood

    async def _set_mtu(self, action: act.SetMtu) -> None:
        self._backend.set_mtu(action.mtu)

    async def _send_rarp(self, action: act.SendRarp) -> None:
        self._backend.announce(action.mac)

    # Memory.

    def _map(self, region: MemRegion, fd: Fd) -> Region:
        mapped = Region(fd.number, region.gpa, region.length, region.uva, region.mmap_offset, self._fault)
        fd.foreign = False  # a memory file, which closes at once
        return mapped

    def _rebuild(self, memory: GuestMemory) -> dict[int, Queue | None]:
        """Make the queue of each started ring over new memory; None for one that does not lie in it."""
        queues: dict[int, Queue | None] = {}
        for ring in self._queues:
            try:
                queues[ring] = self._make_queue(ring, memory)
            except GuestMemoryError as error:
                log.warning("a ring has lost its memory", extra={"device": self._device, "ring": ring, "why": error})
                queues[ring] = None
        return queues

    async def _change_memory(self, regions: dict[MemRegion, Region], gone: Sequence[Region]) -> None:
        """Go over to other regions. Rings first give back what points into regions that go."""
        memory = GuestMemory(list(regions.values()), self._fault)
        queues = self._rebuild(memory)
        mails = []
        for ring, queue in queues.items():
            handler, slot, worker = self._rings.handler(ring)
            mails.append((ring, worker, handler.replace(slot, queue, drain=bool(gone))))
        self._queues.update((ring, queue) for ring, queue in queues.items() if queue is not None)
        drained = await self._drained(mails)
        self._regions, self._memory = regions, memory
        if not drained:
            # The old regions stay mapped until the requests that point into them have come back: the mail has them.
            raise RemoteProtocolError(
                "memory cannot change: requests in flight do not return from the host", fatal=True
            )
        for ring, queue in queues.items():
            if queue is None:
                self._lost[ring] = self._forget(ring)
        for region in gone:
            region.close()

    async def _set_mem_table(self, action: act.SetMemTable) -> None:
        new: dict[MemRegion, Region] = {}
        try:
            for region, fd in zip(action.regions, action.fds, strict=True):
                new[region] = self._map(region, fd)
        except BaseException:
            for mapped in new.values():
                mapped.close()
            raise
        await self._change_memory(new, list(self._regions.values()))

    async def _add_region(self, action: act.AddRegion) -> None:
        # When this fails, whoever still has the region keeps it mapped: a worker may go over to it yet.
        await self._change_memory({**self._regions, action.region: self._map(action.region, action.fd)}, [])

    async def _remove_region(self, action: act.RemoveRegion) -> None:
        left = dict(self._regions)
        gone = left.pop(action.region)
        await self._change_memory(left, [gone])

    # Rings.

    def _make_queue(self, ring: int, memory: GuestMemory) -> Queue:
        vring = self._session.vrings[ring]
        queue = Queue(
            ring, vring.num, vring.desc_uva, vring.avail_uva, vring.used_uva, self._lost.get(ring, vring.base),
            self._session.features, memory, self._rings.counters_of(ring),
        )  # fmt: skip
        fds = self._ring_fds(ring)
        queue.set_fds(fds.call.number if fds.call else -1, fds.err.number if fds.err else -1)
        queue.set_enabled(vring.enabled)
        return queue

    async def _set_kick(self, action: act.SetKick) -> None:
        ring = action.index
        what = f"SET_VRING_KICK: ring {ring}"
        if self._memory is None:
            raise RemoteProtocolError(f"{what} has no memory")
        handler, slot, worker = self._rings.handler(ring)
        self._check_worker(worker, what)
        fds = self._ring_fds(ring)
        queue = None if ring in self._queues else self._make_queue(ring, self._memory)
        kick = take_eventfd(action.fd, what)
        drain(kick)  # the ring is looked at anyway; and a counter near its end could not be kicked
        # From the moment the mail is sent the ring counts as started, whatever becomes of us: what a worker has, or
        # will have, must be stopped before it is freed.
        if queue is None:
            answer = self._send(worker, handler.set_kick_fd(slot, kick.number), fds.kick)
            fds.kick = kick
            await self._order(worker, answer, what)
            return
        before = handler.queues[slot]
        answer = self._send(worker, handler.start(slot, queue, kick.number), fds.kick)
        fds.kick = kick
        self._queues[ring] = queue
        try:
            await self._order(worker, answer, what)
        except BackendError:  # it was not started
            self._forget(ring)
            handler.queues[slot] = before
            raise
        self._lost.pop(ring, None)

    async def _set_call(self, action: act.SetCall) -> None:
        ring = action.index
        what = f"SET_VRING_CALL: ring {ring}"
        call = None if action.fd is None else take_call(action.fd, what)
        fds = self._ring_fds(ring)
        old = fds.call
        if ring not in self._queues:
            fds.call = call
            if old is not None:
                old.close()
            return
        handler, slot, worker = self._rings.handler(ring)
        self._check_worker(worker, what)
        answer = self._send(worker, handler.set_call_fd(slot, call.number if call else -1), old)
        fds.call = call
        await self._order(worker, answer, what)

    async def _set_err(self, action: act.SetErr) -> None:
        ring = action.index
        what = f"SET_VRING_ERR: ring {ring}"
        err = None if action.fd is None else take_eventfd(action.fd, what)
        fds = self._ring_fds(ring)
        old = fds.err
        if ring not in self._queues:
            fds.err = err
            if old is not None:
                old.close()
            return
        handler, slot, worker = self._rings.handler(ring)
        self._check_worker(worker, what)
        answer = self._send(worker, handler.set_err_fd(slot, err.number if err else -1), old)
        fds.err = err
        await self._order(worker, answer, what)

    async def _enable(self, action: act.EnableRing) -> None:
        if action.index in self._queues:
            handler, slot, worker = self._rings.handler(action.index)
            self._check_worker(worker, "SET_VRING_ENABLE")
            answer = self._send(worker, handler.enable(slot, enabled=action.enabled))
            await self._order(worker, answer, "SET_VRING_ENABLE")

    def _forget(self, ring: int) -> int:
        """Drop what a stopped ring ran; return where it stood."""
        handler, slot, _ = self._rings.handler(ring)
        queue = self._queues.pop(ring)
        if handler.queues[slot] is queue:
            handler.queues[slot] = None
        fds = self._ring_fds(ring)
        if fds.kick is not None:
            fds.kick.close()
            fds.kick = None
        return queue.base

    async def _stop(self, action: act.StopRing) -> int:
        ring = action.index
        if ring not in self._queues:
            return self._lost.pop(ring, self._session.vrings[ring].base)
        handler, slot, worker = self._rings.handler(ring)
        if not await self._drained([(ring, worker, handler.stop(slot))]):
            raise RemoteProtocolError(
                f"GET_VRING_BASE: ring {ring} cannot be stopped, the host holds its requests", fatal=True
            )
        return self._forget(ring)

    async def _stop_all(self, *, forsaken: bool = False) -> dict[int, int]:
        """Stop every ring; return where each stood."""
        mails = []
        for ring in self._queues:
            handler, slot, worker = self._rings.handler(ring)
            mails.append((ring, worker, handler.stop(slot)))
        if not await self._drained(mails, forsaken=forsaken):
            raise RemoteProtocolError("the rings cannot be stopped, the host holds their requests", fatal=True)
        stood = {ring: self._forget(ring) for ring in list(self._queues)} | self._lost
        self._lost.clear()
        return stood

    async def end(self) -> None:
        """The connection is over: end all access to guest memory, give everything back."""
        try:
            await self._stop_all(forsaken=True)
        except (RemoteProtocolError, BackendError) as error:
            log.error("the end is not clean", extra={"device": self._device, "why": error})  # noqa: TRY400 - not a bug
        if self._unanswered:  # what the workers have stays until they let go of it
            held = asyncio.gather(*self._unanswered, return_exceptions=True)
            held.add_done_callback(lambda _: self._release())
        else:
            self._release()
        if self.back_channel is not None:
            self.back_channel.close()
            self.back_channel = None
        self._backend.on_session_end()

    def _release(self) -> None:
        """Give back everything that the front-end gave us. No worker has any of it."""
        for ring in list(self._queues):
            self._forget(ring)
        for region in self._regions.values():
            region.close()
        self._regions.clear()
        self._memory = None
        for fds in self._fds.values():
            fds.close()

    _functions: ClassVar[dict[type[act.Action], Callable[["Performer", Any], Awaitable[Any]]]] = {
        act.Nothing: _nothing,
        act.SetFeatures: _set_features,
        act.SetMemTable: _set_mem_table,
        act.AddRegion: _add_region,
        act.RemoveRegion: _remove_region,
        act.SetKick: _set_kick,
        act.SetCall: _set_call,
        act.SetErr: _set_err,
        act.StopRing: _stop,
        act.EnableRing: _enable,
        act.GetConfig: _get_config,
        act.SetConfig: _set_config,
        act.SetBackendChannel: _set_back_channel,
        act.SetStatus: _set_status,
        act.ResetDevice: _reset_device,
        act.SetMtu: _set_mtu,
        act.SendRarp: _send_rarp,
    }
