"""The supervisor: starts every device, says when all are ready, asks them, starts again what ended."""

import array
import asyncio
import functools
import logging
import os
import signal
import socket
from typing import Any

import msgspec

from vhostd.config import Config, Disk, Net
from vhostd.control.commands import EVENTS
from vhostd.control.link import ControlLink
from vhostd.control.server import ControlServer
from vhostd.control.systemd import Notifier
from vhostd.devices.listen import Listener, absolute, place_of
from vhostd.errors import ConfigError, ControlError
from vhostd.supervisor.zygote import MESSAGE_LIMIT, Ended, Kill, Order, Report, Start, Started

log = logging.getLogger(__name__)

READY_SECONDS = 30.0  # from the fork of a device to its greeting
END_SECONDS = 8.0
PAUSES = (0.1, 10.0)  # seconds before a device is started again: the first, and the longest
SETTLED_SECONDS = 10.0  # a device that lived so long has recovered: the next pause is the first one again


class Member:
    """One device under supervision."""

    def __init__(self, settings: Disk | Net, listening: socket.socket | None, own: Listener | None) -> None:
        self.settings = settings
        self.listening = listening
        self.own = own
        self.pid = 0
        self.link: ControlLink | None = None
        self.handover: socket.socket | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.restarts = 0

    def away(self) -> dict[str, Any]:
        """Return what can be said of the device while its process is gone."""
        place = place_of(self.listening) if self.listening is not None else None
        return {
            "name": self.settings.name,
            "type": "block" if isinstance(self.settings, Disk) else "net",
            "state": "broken",
            "reason": "its process ended, and is started again",
            "socket": place,
            "connect": self.settings.connect and absolute(self.settings.connect),
            "pid": None,
        }


class Supervisor:
    """The host of many devices' commands."""

    def __init__(
        self, settings: Config, zygote: socket.socket, control: Listener | socket.socket | None, notifier: Notifier
    ) -> None:
        self._settings = settings
        self._zygote = zygote
        self._control_socket = control
        self._notifier = notifier
        self._control = ControlServer(self)
        self._members: list[Member] = []
        self._by_pid: dict[int, Member] = {}
        self._forked: tuple[Member, asyncio.Future[None]] | None = None
        self._forking = asyncio.Lock()
        self._stop = asyncio.Event()
        self._code = 0
        self._watching: set[asyncio.Task[None]] = set()

    async def devices(self) -> list[dict[str, Any]]:
        """Ask every device process what it is; speak for those that are away."""
        found: list[dict[str, Any]] = []
        for member, answer in await self._ask("query-devices"):
            found += [{**device, "restarts": member.restarts} for device in answer or [member.away()]]
        return found

    async def stats(self) -> list[dict[str, Any]]:
        """Ask every device process for its counters; those that are away have none."""
        return [counters for _, answer in await self._ask("query-stats") for counters in answer]

    def stop(self) -> None:
        """Begin a clean end; a second wish for it does not wait: the zygote ends what is left."""
        if self._stop.is_set():
            os._exit(1)
        self._stop.set()

    async def run(self, adopted: dict[str, socket.socket]) -> int:
        """Start all, serve until a signal or `quit`, stop all; return the exit code.

        adopted: listening sockets the service manager opened, by the device's name (`share_out`); others
        are made.
        Raises ConfigError when a device cannot start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._listen_again)
        loop.add_reader(self._zygote, self._hear_zygote)
        try:
            for settings in self._settings.devices:
                self._members.append(_member(settings, adopted))
            await self._start_all()
            if not self._stop.is_set():
                await self._open_control()
                self._tell_ready()
                await self._stop.wait()
            self._notifier.stopping()
        finally:
            await self._end()
        return self._code

    async def _start_all(self) -> None:
        """Start every device. The first that fails ends the start-up with its exit code; its log line says why."""
        starts = [asyncio.ensure_future(self._start(member)) for member in self._members]
        stop = asyncio.ensure_future(self._stop.wait())
        waiting: set[asyncio.Future[Any]] = {*starts}
        while waiting and not self._stop.is_set():
            done, _ = await asyncio.wait({*waiting, stop}, return_when=asyncio.FIRST_COMPLETED)
            waiting -= done
            for start in done & {*starts}:
                code = start.result()
                if code is not None:
                    self._code = code if code > 0 else 1
                    self._stop.set()
        stop.cancel()
        for start in waiting:
            start.cancel()
        await asyncio.gather(stop, *waiting, return_exceptions=True)
        if self._stop.is_set():
            return
        for member in self._members:
            task = asyncio.ensure_future(self._watch(member))
            self._watching.add(task)

    async def _start(self, member: Member) -> int | None:
        """Have a process forked and wait until it is ready; return None then, else the code it ended with."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        member.handover, handover = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [theirs.fileno(), handover.fileno()]
        if member.listening is not None:
            fds.append(member.listening.fileno())
        settings = member.settings
        try:
            async with self._forking:
                self._forked = member, asyncio.get_running_loop().create_future()
                self._order(Start(disk=settings) if isinstance(settings, Disk) else Start(net=settings), fds)
                await self._forked[1]
        finally:
            theirs.close()
            handover.close()
        link = ControlLink(functools.partial(self._emit, member))
        try:
            async with asyncio.timeout(READY_SECONDS):
                await link.open(ours)
        except (EOFError, ControlError):
            await link.close()
            self._kill(member, signal.SIGKILL)  # most often it is gone already
            return await member.ended
        except TimeoutError:
            await link.close()
            log.warning("device is not ready in time; killed", extra={"device": member.settings.name})
            self._kill(member, signal.SIGKILL)
            return await member.ended
        member.link = link
        return None

    async def _watch(self, member: Member) -> None:
        """Start a device again whenever it ends, after a pause that grows while it does not settle."""
        loop = asyncio.get_running_loop()
        pause, since = PAUSES[0], loop.time()
        while True:
            code = await self._end_of(member)
            await self._lose(member)
            log.warning(
                "device process ended; starting it again",
                extra={"device": member.settings.name, "code": code, "pause": pause},
            )
            if loop.time() - since > SETTLED_SECONDS:
                pause = PAUSES[0]
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSES[1])
            since = loop.time()
            member.restarts += 1
            if await self._start(member) is None:
                log.info("device serves again", extra={"device": member.settings.name, "restarts": member.restarts})
                self._notifier.status(self._state())

    async def _end_of(self, member: Member) -> int:
        """Wait for the end of a device's process; one that no longer converses with us is brought to it."""
        if member.link is not None:
            hung_up = asyncio.ensure_future(member.link.hung_up())
            waiting: list[asyncio.Future[Any]] = [member.ended, hung_up]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hung_up.cancel()
            await asyncio.wait([member.ended], timeout=END_SECONDS)  # it may be about to end, and drains
            self._kill(member, signal.SIGKILL)
        return await asyncio.shield(member.ended)

    async def _lose(self, member: Member) -> None:
        link, member.link = member.link, None
        if link is not None:
            await link.close()
        if member.handover is not None:
            member.handover.close()
            member.handover = None
        self._notifier.status(self._state())

    def _emit(self, member: Member, event: str, data: dict[str, Any]) -> None:
        if event in EVENTS:
            self._control.emit(event, {**data, "device": member.settings.name})

    async def _ask(self, command: str) -> list[tuple[Member, list[dict[str, Any]]]]:
        async def one(member: Member) -> list[dict[str, Any]]:
            if member.link is None:
                return []
            try:
                answer = msgspec.convert(await member.link.execute(command), list[dict[str, Any]])
            except (ControlError, msgspec.ValidationError) as error:
                log.warning("%s", error, extra={"device": member.settings.name})
                return []
            # A process that its guest owns must not speak for another device.
            return [{**found, "name": member.settings.name} for found in answer]

        return list(zip(self._members, await asyncio.gather(*map(one, self._members)), strict=True))

    def _order(self, order: Order, fds: list[int]) -> None:
        data = msgspec.json.encode(order)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        self._zygote.sendmsg([data], rights)

    def _kill(self, member: Member, number: int) -> None:
        if member.pid in self._by_pid:
            self._order(Kill(member.pid, number), [])

    def _hear_zygote(self) -> None:
        try:
            data = self._zygote.recv(MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            log.error("the zygote ended; so do we")
            asyncio.get_running_loop().remove_reader(self._zygote)
            self._code = 1
            for member in self._by_pid.values():
                if not member.ended.done():
                    member.ended.set_result(1)
            self._by_pid.clear()
            self._stop.set()
            return
        report = msgspec.json.decode(data, type=Report)
        if isinstance(report, Started):
            assert self._forked is not None  # the zygote reports a start for each order, in their order
            member, forked = self._forked
            member.pid, member.ended = report.pid, asyncio.get_running_loop().create_future()
            self._by_pid[report.pid] = member
            if not forked.done():
                forked.set_result(None)
            return
        self._ended(report)

    def _ended(self, report: Ended) -> None:
        member = self._by_pid.pop(report.pid, None)
        if member is not None and not member.ended.done():
            member.ended.set_result(report.code)

    async def _open_control(self) -> None:
        if isinstance(self._control_socket, Listener):
            await self._control.listen(self._control_socket.socket)
        elif self._control_socket is not None:
            await self._control.listen(self._control_socket)

    def _tell_ready(self) -> None:
        self._notifier.ready(self._state())
        log.info("ready", extra={"devices": len(self._members)})
        seconds = self._notifier.watchdog_seconds
        if seconds is not None:
            self._watching.add(asyncio.ensure_future(self._keep_alive(seconds)))

    async def _keep_alive(self, seconds: float) -> None:
        """Feed the service manager's watchdog, and be one to the devices: what does not answer is started again."""
        while True:
            self._notifier.alive()
            asked = [(m, m.link) for m in self._members if m.link is not None]
            answers = await asyncio.gather(
                *(link.execute("query-version", seconds) for _, link in asked), return_exceptions=True
            )
            for (member, link), answer in zip(asked, answers, strict=True):
                if isinstance(answer, ControlError) and member.link is link and not member.ended.done():
                    log.warning("device does not answer; killed", extra={"device": member.settings.name})
                    self._kill(member, signal.SIGKILL)
            await asyncio.sleep(seconds / 2)

    def _state(self) -> str:
        here = sum(member.link is not None for member in self._members)
        return f"{here} of {len(self._members)} devices are served"

    def _listen_again(self) -> None:
        """SIGHUP: make anew every socket whose path was removed or replaced, and hand it to its device."""
        for member in self._members:
            if member.own is None or member.own.is_there():
                continue
            old = member.own.socket
            try:
                member.listening = member.own.again()
            except ConfigError as error:
                log.warning("SIGHUP: %s", error, extra={"device": member.settings.name})
                continue
            old.close()
            if member.handover is not None:
                socket.send_fds(member.handover, [b"l"], [member.listening.fileno()])

    async def _end(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for member in self._members:
            if member.own is not None:
                member.own.close()
        members = list(self._by_pid.values())
        for member in members:
            self._kill(member, signal.SIGTERM)
        if members:
            _, late = await asyncio.wait([member.ended for member in members], timeout=END_SECONDS)
            for member in members:
                if member.ended in late:
                    log.warning("device did not end in time; killed", extra={"device": member.settings.name})
                    self._kill(member, signal.SIGKILL)
                    self._code = self._code or 1
        for member in self._members:
            await self._lose(member)
        await self._control.close()
        if isinstance(self._control_socket, Listener):
            self._control_socket.close()
        asyncio.get_running_loop().remove_reader(self._zygote)
        self._zygote.close()


def share_out(settings: Config, adopted: dict[str, list[socket.socket]]) -> dict[str, socket.socket]:
    """Return the sockets the service manager opened by the device that each is for: the one of its name.

    The only socket for the only device needs no name. Raises ConfigError for a socket that is for no device: whoever
    connects to it would wait for ever.
    """
    devices = {device.name: device for device in settings.devices}
    if len(devices) == 1 and len(adopted) == 1 and not adopted.keys() & devices.keys():
        adopted = dict(zip(devices, adopted.values(), strict=True))
    found: dict[str, socket.socket] = {}
    for name, sockets in adopted.items():
        if name not in devices:
            raise ConfigError(
                f"the service manager passed a socket named {name!r}, and there is no such device "
                f"(there are {', '.join(devices)}): set FileDescriptorName= in its socket unit to a device's name"
            )
        if len(sockets) > 1:
            raise ConfigError(f"the service manager passed {len(sockets)} sockets named {name!r}: a device has one")
        if devices[name].connect is not None:
            raise ConfigError(f"the service manager passed a socket for {name}, which connects and does not listen")
        found[name] = sockets[0]
    return found


def _member(settings: Disk | Net, adopted: dict[str, socket.socket]) -> Member:
    if settings.connect is not None:
        return Member(settings, None, None)
    if settings.name in adopted:
        return Member(settings, adopted[settings.name], None)
    own = Listener(settings.listen_path(), mode=settings.mode, group=settings.socket_group)
    return Member(settings, own.socket, own)
