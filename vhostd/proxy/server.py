"""Listens for front-ends, and connects to the back-end for each."""

import asyncio
import contextlib
import itertools
import socket
import time
from pathlib import Path

from vhostd.devices.listen import Acceptor, peer
from vhostd.proxy.connection import Connection
from vhostd.proxy.conversation import Conversation
from vhostd.proxy.faults import Faults
from vhostd.proxy.record import Event, Kind, Sink
from vhostd.proxy.relay import hung_up
from vhostd.spec.virtio import DeviceId

CONNECTIONS_MAX = 64  # at once; who comes then waits in the queue of the listening socket
RETRY_S = 0.05
LEAVE_S = 1.0  # for a connection whose front-end has left; longer, when its back-end does not read


class Proxy:
    """Takes front-ends, as many as come; each has a connection to the back-end of its own.

    wait_s: how long a front-end waits for a back-end that does not listen, before it is turned away.
    """

    def __init__(
        self,
        listening: socket.socket,
        connect: Path,
        sink: Sink,
        *,
        faults: Faults,
        device: DeviceId | None,
        wait_s: float,
    ) -> None:
        self._listening = listening
        self._connect = connect
        self._sink = sink
        self._faults = faults
        self._device = device
        self._wait_s = wait_s
        self._count = 0
        self._served: dict[socket.socket, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serve until cancelled."""
        acceptor = Acceptor(self._listening)
        room = asyncio.Semaphore(CONNECTIONS_MAX)
        async with asyncio.TaskGroup() as group:
            while True:
                await room.acquire()
                front = await self._accept(acceptor)
                self._count += 1
                task = group.create_task(self._serve(front, self._count))
                self._served[front] = task
                task.add_done_callback(lambda _: room.release())

    async def _accept(self, acceptor: Acceptor) -> socket.socket:
        while True:
            try:
                return await acceptor.accept()
            except OSError as error:  # out of descriptors: some will be closed
                self._say(0, "note", f"a front-end cannot be taken: {error.strerror}")
                await asyncio.sleep(1)

    async def _serve(self, front: socket.socket, number: int) -> None:
        with front:
            pid, uid = peer(front)
            self._say(number, "open", f"a front-end has connected (process {pid}, user {uid})")
            await self._let_go()
            back = await self._reach(front)
            if isinstance(back, str):
                self._say(number, "close", back)
                return
            talk = Conversation(number, self._sink, self._faults, self._device)
            await Connection(front, back, talk, self._sink).run()

    async def _let_go(self) -> None:
        """Wait until front-ends that have left are done with: the back-end shall see them go before the next comes."""
        self._served = {front: task for front, task in self._served.items() if not task.done()}
        before = itertools.takewhile(lambda item: item[1] is not asyncio.current_task(), self._served.items())
        leaving = [task for front, task in before if front.fileno() < 0 or hung_up(front)]
        if leaving:
            await asyncio.wait(leaving, timeout=LEAVE_S)

    async def _reach(self, front: socket.socket) -> socket.socket | str:
        """Return a connection to the back-end; or say, in words, why there is none."""
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                back = self._call()
            except OSError as error:  # also when its queue is full
                if time.monotonic() >= deadline:
                    return f"no back-end at {self._connect}: {error.strerror}"
            else:
                return back
            if hung_up(front):
                return "the front-end closed before there was a back-end"
            await asyncio.sleep(RETRY_S)

    def _call(self) -> socket.socket:
        with contextlib.ExitStack() as stack:
            back = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            back.setblocking(False)
            back.connect(str(self._connect))
            stack.pop_all()
            return back

    def _say(self, connection: int, kind: Kind, text: str) -> None:
        self._sink.event(Event(time_ns=time.time_ns(), connection=connection, kind=kind, text=text))
