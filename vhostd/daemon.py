"""One device process: the order of start-up and shutdown, signals, readiness.

Start-up: name and limits; the image or tap; the socket; privileges given up; workers; control; ready. What can fail
for the operator's reasons comes first, so that it ends the process early and leaves nothing behind. Shutdown runs the
same way back and takes at most DRAIN_SECONDS.
"""

import array
import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vhostd.config import Disk, Net
from vhostd.control.server import ControlServer
from vhostd.control.systemd import Notifier
from vhostd.devices.listen import Acceptor, Listener, absolute, group_id, place_of
from vhostd.errors import ConfigError
from vhostd.sandbox import stages

if TYPE_CHECKING:
    from vhostd.backends.base import Backend
    from vhostd.devices.device import Device

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
WORKERS_LIMIT = 4  # threads, when the operator gives no number
CONNECT_SECONDS = (0.1, 5.0)  # the first and the longest pause between two tries to reach a front-end that listens


@dataclass(frozen=True)
class Doors:
    """How the front-end, the operator and the supervisor reach the device. What is given belongs to the device.

    adopted: a listening socket made by somebody else. connection: a front-end that is there already; the process ends
    when it goes. With neither, and without `connect` in the settings, the device listens on its own path.
    control: where operators ask. parent, link, handover: of a supervised device: the process that must outlive it, the
    supervisor's control conversation, and where the supervisor sends a new listening socket.
    """

    adopted: socket.socket | None = None
    connection: socket.socket | None = None
    control: Path | None = None
    parent: int | None = None
    link: socket.socket | None = None
    handover: socket.socket | None = None


def run_device(settings: Disk | Net, doors: Doors, notifier: Notifier) -> int:
    """Serve one device until a signal, `quit`, or the end of the only connection; return the exit code.

    Raises ConfigError and BackendError for what cannot be served; nothing is left behind then.
    """
    stages.begin(settings.name, doors.parent)
    stages.limit()
    return asyncio.run(DeviceProcess(settings, doors, notifier).run())


class DeviceProcess:
    """The host of one device's commands, and everything that lives as long as its process."""

    def __init__(self, settings: Disk | Net, doors: Doors, notifier: Notifier) -> None:
        self._settings = settings
        self._doors = doors
        self._notifier = notifier
        self._stop = asyncio.Event()
        self._control = ControlServer(self)
        self._own: Listener | None = None
        self._operators: Listener | None = None
        self._listening = doors.adopted
        self._acceptor: Acceptor | None = None
        self._device: Device | None = None
        self._serving: asyncio.Task[None] | None = None
        self._code = 0

    async def devices(self) -> list[dict[str, Any]]:
        """Return the one device: where it is reached, and what it says itself."""
        assert self._device is not None  # commands come through doors that open last
        settings = self._settings
        return [
            {
                "pid": os.getpid(),
                "source": settings.image if isinstance(settings, Disk) else settings.tap,
                "socket": place_of(self._listening) if self._listening is not None else None,
                "connect": settings.connect and absolute(settings.connect),
                **self._device.query(),
            }
        ]

    async def stats(self) -> list[dict[str, Any]]:
        """Return the one device's counters."""
        assert self._device is not None
        return [{"name": self._settings.name, **self._device.stats()}]

    def stop(self) -> None:
        """Begin a clean end; a second wish for it does not wait."""
        if self._stop.is_set():
            os._exit(1)
        self._stop.set()

    async def run(self) -> int:
        """Start, serve, stop. Raises what `run_device` does."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._listen_again)
        async with contextlib.AsyncExitStack() as stack:
            backend = await _open_backend(self._settings)
            stack.callback(backend.close)
            self._listen(stack)
            group = self._settings.socket_group
            stages.keep_group(None if group is None else group_id(group))
            stages.lock_down()
            await self._start(stack, backend)
            await self._open_doors(stack)
            self._notifier.ready(self._state())
            self._feed_watchdog()
            log.info("ready", extra={"device": self._settings.name, "socket": self._place()})
            await self._stop.wait()
            self._notifier.stopping()
            log.info("stopping", extra={"device": self._settings.name})
            # Whatever hangs from here on, in a call that no Python code can end, hangs not longer than this.
            signal.setitimer(signal.ITIMER_REAL, DRAIN_SECONDS + 1)
            await self._let_nobody_in()
        return self._code

    def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        if self._doors.adopted is None and self._doors.connection is None and self._settings.connect is None:
            self._own = Listener(
                self._settings.listen_path(), mode=self._settings.mode, group=self._settings.socket_group
            )
            stack.callback(self._own.close)
            self._listening = self._own.socket
        if self._doors.control is not None:
            self._operators = Listener(self._doors.control)
            stack.callback(self._operators.close)

    async def _start(self, stack: contextlib.AsyncExitStack, backend: "Backend") -> None:
        # The protocol's codecs take a while to load, and whoever connects meanwhile waits in the socket's queue.
        from vhostd.devices.device import Device
        from vhostd.workers.pool import WorkerPool

        settings = self._settings
        uring = {"io_uring": True, "sync": False}.get(settings.aio) if isinstance(settings, Disk) else False
        pool = WorkerPool(_worker_count(settings), uring=uring, poll_ns=settings.poll_ns)
        pool.start()
        stack.push_async_callback(pool.close)
        self._device = Device(settings.name, backend, pool)
        stack.push_async_callback(self._drain)
        self._device.events = self._tell
        self._serve(self._front())

    def _front(self) -> Coroutine[Any, Any, None]:
        assert self._device is not None
        if self._doors.connection is not None:
            return self._device.attach(self._doors.connection)
        if self._listening is not None:
            self._acceptor = Acceptor(self._listening)
            return self._device.serve(self._acceptor)
        assert self._settings.connect is not None
        return self._reach(self._settings.connect)

    def _serve(self, front: Coroutine[Any, Any, None]) -> None:
        self._serving = asyncio.get_running_loop().create_task(front)
        self._serving.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        """Stop when serving ended by itself: the only front-end went, or it is a bug of ours, which a restart cures."""
        if task is not self._serving or task.cancelled() or self._stop.is_set():
            return
        error = task.exception()
        if error is not None:
            log.error("serving failed", extra={"device": self._settings.name}, exc_info=error)
            self._code = 1
        self._stop.set()

    async def _reach(self, path: str) -> None:
        """Connect to a front-end that listens; when it is not there, or went, try again after a growing pause."""
        assert self._device is not None
        loop = asyncio.get_running_loop()
        pause, told = CONNECT_SECONDS[0], False
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                await loop.sock_connect(connection, path)
            except OSError as error:
                connection.close()
                if not told:
                    log.warning("no front-end yet; trying on", extra={"connect": path, "reason": error.strerror})
                told = True
            else:
                begun, told = loop.time(), False
                await self._device.attach(connection)
                if loop.time() - begun > CONNECT_SECONDS[1]:
                    pause = CONNECT_SECONDS[0]
            await asyncio.sleep(pause)
            pause = min(pause * 2, CONNECT_SECONDS[1])

    async def _open_doors(self, stack: contextlib.AsyncExitStack) -> None:
        stack.push_async_callback(self._control.close)
        if self._operators is not None:
            await self._control.listen(self._operators.socket)
        if self._doors.handover is not None:
            asyncio.get_running_loop().add_reader(self._doors.handover, self._take_listener)
        if self._doors.link is not None:
            # Its greeting tells the supervisor that we are ready.
            await self._control.attach(self._doors.link)

    def _listen_again(self) -> None:
        """SIGHUP: make the socket anew, for when its path was removed or replaced."""
        if self._own is None:
            log.info("SIGHUP: the socket is not ours to make", extra={"device": self._settings.name})
            return
        try:
            self._move_to(self._own.again())
        except ConfigError as error:
            log.warning("SIGHUP: %s", error, extra={"device": self._settings.name})

    def _take_listener(self) -> None:
        assert self._doors.handover is not None
        _, fds = receive_with_fds(self._doors.handover)
        if not fds:  # the supervisor went; its death reaches us by signal
            asyncio.get_running_loop().remove_reader(self._doors.handover)
            return
        fresh = socket.socket(fileno=fds[0])
        fresh.setblocking(False)
        self._move_to(fresh)

    def _move_to(self, listening: socket.socket) -> None:
        assert self._acceptor is not None
        self._listening = listening
        self._acceptor.move(listening)
        log.info("listening anew", extra={"device": self._settings.name, "socket": self._place()})

    async def _let_nobody_in(self) -> None:
        """Stop listening before anything else ends; a front-end that is there stays for the moment."""
        if self._acceptor is not None and self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])
            self._acceptor.close()
        if self._own is not None:
            self._own.close()

    async def _drain(self) -> None:
        assert self._device is not None
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._device.close()
        except TimeoutError:
            log.warning("requests did not end in time", extra={"device": self._settings.name, "seconds": DRAIN_SECONDS})
            self._code = 1
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        self._control.emit(event, data)
        self._notifier.status(self._state())

    def _state(self) -> str:
        assert self._device is not None
        return f"{self._settings.name}: {self._device.query()['state']}"

    def _place(self) -> str:
        if self._listening is not None:
            return str(self._listening.getsockname())
        return self._settings.connect or "inherited connection"

    def _feed_watchdog(self) -> None:
        seconds = self._notifier.watchdog_seconds
        if seconds is not None:
            self._notifier.alive()
            asyncio.get_running_loop().call_later(seconds, self._feed_watchdog)


async def _open_backend(settings: Disk | Net) -> "Backend":
    """Open the image or tap. Raises ConfigError and BackendError with what to do about it."""
    import dataclasses

    if isinstance(settings, Disk):
        from vhostd.backends.block.backend import BlockBackend
        from vhostd.backends.block.options import BlockOptions

        # Both sides use the settings' own names, so that a setting without a counterpart is an error at once.
        return BlockBackend.open(
            BlockOptions(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(BlockOptions)})
        )
    from vhostd.backends.net.backend import NetBackend
    from vhostd.backends.net.options import NetOptions

    return await NetBackend.open(
        NetOptions(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(NetOptions)})
    )


def _worker_count(settings: Disk | Net) -> int:
    return settings.workers or min(len(os.sched_getaffinity(0)), settings.queues or WORKERS_LIMIT, WORKERS_LIMIT)


def receive_with_fds(sock: socket.socket, size: int = 1) -> tuple[bytes, list[int]]:
    """Receive one message and the descriptors in it, close-on-exec; nothing of both when the other end went."""
    try:
        data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return b"", []
    fds = array.array("i")
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    return data, list(fds)
