"""The process that forks device processes: no event loop, no thread, everything imported."""

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from typing import Literal

import msgspec
import prctl

from vhostd.config import Disk, Net
from vhostd.control.systemd import Notifier
from vhostd.daemon import Doors, receive_with_fds, run_device
from vhostd.errors import ConfigError, VhostdError
from vhostd.sandbox import stages

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 64 * 1024
END_SECONDS = 7.0  # a device's own bound, and a little


class Start(msgspec.Struct, frozen=True, tag=True):
    """Fork a process for a device. With it come three descriptors: link, handover, and the listening socket if any."""

    disk: Disk | None = None
    net: Net | None = None


class Kill(msgspec.Struct, frozen=True, tag=True):
    """Signal a device's process, if it is still there."""

    pid: int
    number: int


class Started(msgspec.Struct, frozen=True, tag=True):
    """Answer to Start."""

    pid: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A device's process is gone. code: its exit code, or the signal that ended it, negated."""

    pid: int
    code: int


Order = Start | Kill
Report = Started | Ended


def fork_zygote(kinds: set[Literal["disk", "net"]]) -> tuple[int, socket.socket]:
    """Fork the zygote for devices of these kinds; return its pid and our end of the conversation, non-blocking.

    It ends, with all its devices, when our end is closed: its caller waits for it then, in bounded time.
    To be called before there is an event loop or a thread.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            Zygote(theirs, parent).run(kinds)
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    ours.setblocking(False)
    return pid, ours


class Zygote:
    """Forks, waits, reports; ends when the supervisor does."""

    def __init__(self, supervisor: socket.socket, parent: int) -> None:
        self._supervisor = supervisor
        self._parent = parent
        self._children: set[int] = set()

    def run(self, kinds: set[Literal["disk", "net"]]) -> None:
        """Carry out orders until the supervisor is gone and no device is left."""
        os.setsid()  # Ctrl-C at a terminal is the supervisor's to hear
        prctl.set_name("vhostd:zygote")
        prctl.set_proctitle("vhostd: zygote")
        prctl.set_pdeathsig(signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        _preload(kinds)
        gc.freeze()  # what is alive now stays shared: the collector does not write into it
        poll = select.poll()
        for fd in (self._supervisor.fileno(), wake):
            poll.register(fd, select.POLLIN)
        while os.getppid() == self._parent:
            ready = dict(poll.poll())
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                self._reap()
            if self._supervisor.fileno() in ready and not self._take_order():
                break
        self._end()

    def _take_order(self) -> bool:
        data, fds = receive_with_fds(self._supervisor, MESSAGE_LIMIT)
        if not data:
            return False
        order = msgspec.json.decode(data, type=Order)
        if isinstance(order, Kill):
            if order.pid in self._children:
                os.kill(order.pid, order.number)
            return True
        settings = order.disk or order.net
        if settings is None:
            return True
        pid = os.fork()
        if pid == 0:
            os._exit(_child(settings, fds, os.getppid()))
        for fd in fds:
            os.close(fd)
        self._children.add(pid)
        self._report(Started(pid))
        return True

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._report(Ended(pid, os.waitstatus_to_exitcode(status)))

    def _report(self, report: Report) -> None:
        with contextlib.suppress(OSError):
            self._supervisor.send(msgspec.json.encode(report))

    def _end(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)


def _preload(kinds: set[Literal["disk", "net"]]) -> None:
    import asyncio

    import vhostd.devices.device
    import vhostd.workers.pool

    if "disk" in kinds:
        import vhostd.backends.block.backend
    if "net" in kinds:
        import vhostd.backends.net.backend
    del asyncio, vhostd


def _child(settings: Disk | Net, fds: list[int], parent: int) -> int:
    """Be a device process; return its exit code. Nothing may leave this function but by returning."""
    code = 1
    try:
        gc.enable()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        stages.close_others([0, 1, 2, *fds, *getattr(settings, "tap_fds", ())])
        sockets = [socket.socket(fileno=fd) for fd in fds]
        doors = Doors(
            link=sockets[0],
            handover=sockets[1],
            adopted=sockets[2] if len(sockets) > 2 else None,
            parent=parent,
        )
        code = run_device(settings, doors, Notifier({}))
    except ConfigError as error:
        log.critical("%s: %s", settings.name, error)
        code = 6
    except VhostdError as error:
        log.critical("%s: %s", settings.name, error)
    except BaseException:
        log.exception("device process failed", extra={"device": settings.name})
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return code
