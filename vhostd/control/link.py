"""The caller's end for an event loop: how the supervisor speaks to its device processes."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from vhostd.errors import ControlError

LINE_LIMIT = 16 * 1024 * 1024


class ControlLink:
    """A conversation over a socket that is connected already; commands may overlap, answers find their caller."""

    def __init__(self, events: Callable[[str, dict[str, Any]], None]) -> None:
        self._events = events
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self, connection: socket.socket) -> None:
        """Wait for the greeting and negotiate. The socket is ours from now on.

        Raises EOFError when the other end goes before it greets, ControlError when it goes after that.
        """
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_LIMIT)
        self._writer = writer
        greeting = b""
        with contextlib.suppress(ConnectionError, ValueError):
            greeting = await reader.readline()
        if not greeting:
            writer.close()
            raise EOFError("hung up before the greeting")
        self._task = asyncio.get_running_loop().create_task(self._listen(reader))
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, seconds: float = 5.0) -> Any:
        """Carry out one command. Raises ControlError when it is refused, or the other end is gone or silent."""
        if self._writer is None or self._task is None or self._task.done():
            raise ControlError("the device process does not answer")
        self._next += 1
        number = self._next
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(msgspec.json.encode({"execute": command, "id": number}))
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise ControlError(f"the device process did not answer {command} in {seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)

    async def hung_up(self) -> None:
        """Wait until the other end is gone, or said what nobody understands."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._writer is not None:
            self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            # A device process may belong to its guest: a line that is too long or no message ends the conversation.
            with contextlib.suppress(ConnectionError, ValueError, msgspec.MsgspecError):
                while line := await reader.readline():
                    self._take(msgspec.json.decode(line, type=_Message))
        finally:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ControlError("the device process went"))

    def _take(self, message: "_Message") -> None:
        if message.event is not None:
            self._events(message.event, message.data)
            return
        answer = self._waiting.get(message.id)
        if answer is None or answer.done():
            return
        if message.error is not None:
            answer.set_exception(ControlError(message.error.desc, message.error.qmp_class))
        else:
            answer.set_result(message.answer)


class _Failure(msgspec.Struct):
    qmp_class: str = msgspec.field(name="class")
    desc: str


class _Message(msgspec.Struct):
    """An answer or an event."""

    id: int = 0
    answer: Any = msgspec.field(name="return", default=None)
    error: _Failure | None = None
    event: str | None = None
    data: dict[str, Any] = {}
