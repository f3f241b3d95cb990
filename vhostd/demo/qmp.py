"""QEMU's monitor: commands, answers and events, as JSON lines (QEMU: docs/interop/qmp-spec.txt)."""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

from vhostd.demo.errors import DemoError

_LINE_LIMIT = 1 << 22


class Qmp:
    """The client's end of a monitor. One command at a time; events are kept until somebody waits for them."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self.events: list[dict[str, Any]] = []
        """Events that nobody has waited for yet, oldest first."""
        self.ended = False
        """QEMU has closed its end."""

    async def open(self, deadline: float = 20) -> None:
        """Take the greeting and leave negotiation mode."""
        reader, self._writer = await asyncio.open_connection(sock=self._line, limit=_LINE_LIMIT)
        self._task = asyncio.create_task(self._listen(reader))
        await self._answer("greeting", deadline)
        await self.execute("qmp_capabilities", deadline=deadline)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "event" in message:
                    self.events.append(message)
                    self._news.set()
                else:
                    self._answers.put_nowait(message)
        except (OSError, ValueError):
            pass  # QEMU has gone, in the middle of a line
        finally:
            self.ended = True
            self._news.set()
            self._answers.put_nowait({})

    async def _answer(self, what: str, deadline: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(deadline):
                answer = await self._answers.get()
        except TimeoutError:
            raise DemoError(f"QMP {what}: no answer within {deadline:g} s") from None
        if not answer:
            self._answers.put_nowait({})
            raise DemoError(f"QMP {what}: QEMU is gone")
        return answer

    async def execute(self, command: str, /, *, deadline: float = 30, **arguments: Any) -> Any:
        """Run a command and return its result; `_` in an argument's name stands for `-`.

        Raises DemoError when QEMU refuses it, is gone, or does not answer within `deadline` seconds.
        """
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        return await self.execute_with(command, words, deadline=deadline)

    async def execute_with(self, command: str, arguments: dict[str, Any], *, deadline: float = 30) -> Any:
        """As `execute`, with the arguments' names as they are."""
        async with self._lock:
            assert self._writer is not None
            request = {"execute": command, "arguments": arguments} if arguments else {"execute": command}
            self._writer.write(json.dumps(request).encode() + b"\n")
            answer = await self._answer(command, deadline)
        if "error" in answer:
            raise DemoError(f"QMP {command}: {answer['error']['desc']}")
        return answer.get("return")

    async def event(
        self, name: str, deadline: float = 30, *, where: Callable[[dict[str, Any]], bool] = lambda data: True
    ) -> dict[str, Any]:
        """Take the first event `name` whose data satisfies `where`, now or when it comes; return its data."""
        try:
            async with asyncio.timeout(deadline):
                while True:
                    for event in self.events:
                        data: dict[str, Any] = event.get("data", {})
                        if event["event"] == name and where(data):
                            self.events.remove(event)
                            return data
                    if self.ended:
                        raise DemoError(f"QMP event {name}: QEMU is gone")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise DemoError(f"QMP event {name}: not seen within {deadline:g} s") from None

    async def close(self) -> None:
        """Stop to listen."""
        if self._writer is not None:
            self._writer.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._line.close()
