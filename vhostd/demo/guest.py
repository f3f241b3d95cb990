"""The shell inside a guest, over its serial line: run a command, get its output and exit status."""

import asyncio
import re
import shlex
import socket
from dataclasses import dataclass

from vhostd.demo.errors import DemoError
from vhostd.demo.initramfs import READY

_KEEP = 1 << 20  # of what the guest printed, and no more, is kept
_TAIL = 3000


@dataclass(frozen=True)
class Result:
    """What a command did."""

    output: str
    status: int


class Guest:
    """The guest's end of a serial line. One command at a time."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._seen = bytearray()  # printed, and not yet looked at
        self._tail = bytearray()  # printed last, for error messages
        self._news = asyncio.Event()
        self._ended = False
        self._number = 0
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to listen to the line."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._line)
        self._task = asyncio.create_task(self._listen(self._reader))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65536):
                self._seen += data
                del self._seen[:-_KEEP]
                self._tail += data
                del self._tail[:-_TAIL]
                self._news.set()
        except OSError:
            pass  # QEMU has gone: the same as an end of file
        finally:
            self._ended = True
            self._news.set()

    def tail(self) -> str:
        """Return the last that the guest printed."""
        return self._tail.decode(errors="replace").replace("\r", "")

    async def until(self, pattern: bytes, deadline: float) -> re.Match[bytes]:
        """Wait until what the guest prints matches `pattern`; what it printed up to there is taken.

        Raises DemoError after `deadline` seconds, or when the line ends.
        """
        try:
            async with asyncio.timeout(deadline):
                while True:
                    if found := re.search(pattern, self._seen, re.DOTALL):
                        taken = re.compile(pattern, re.DOTALL).search(bytes(self._seen[: found.end()]))
                        del self._seen[: found.end()]
                        assert taken is not None
                        return taken
                    if self._ended:
                        raise DemoError(f"the guest is gone; it printed last:\n{self.tail()}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise DemoError(
                f"the guest did not print {pattern!r} within {deadline:g} s; it printed last:\n{self.tail()}"
            ) from None

    async def ready(self, deadline: float = 90) -> None:
        """Wait until the guest has booted to its shell."""
        await self.until(rf"\n{READY}\r?\n".encode(), deadline)

    async def send(self, command: str) -> int:
        """Hand a command to the shell, do not wait for it; return its number."""
        assert self._writer is not None
        self._number += 1
        escaped = command.replace("\\", "\\\\").replace("\n", "\\n")
        self._writer.write(f"{self._number} {escaped}\n".encode())
        await self._writer.drain()
        return self._number

    async def run(self, command: str, *, deadline: float = 30, check: bool = True) -> str:
        """Run a shell command and return its output, with the blanks around it removed.

        Raises DemoError when it takes longer than `deadline` seconds or, with `check`, when it fails.
        """
        result = await self.call(command, deadline=deadline)
        if check and result.status != 0:
            raise DemoError(f"in the guest: {command}: exit {result.status}: {result.output}")
        return result.output

    async def call(self, command: str, *, deadline: float = 30) -> Result:
        """Run a shell command; return its output and its exit status."""
        async with self._lock:
            number = await self.send(command)
            try:
                found = await self.until(rf"(.*?)\r?\n@@END {number} (\d+)\r?\n".encode(), deadline)
            except DemoError as error:
                raise DemoError(f"in the guest: {command}: {error}") from None
        return Result(found[1].decode(errors="replace").replace("\r\n", "\n").strip(), int(found[2]))

    async def digest(self, path: str, *, start: int = 0, length: int | None = None, deadline: float = 60) -> str:
        """Return the SHA-256, in hexadecimal, of a file or device of the guest, past its page cache.

        `start` and `length` in bytes, multiples of 64 KiB when `path` is a device.
        """
        words = ["dd", f"if={path}", "bs=65536", "2>/dev/null"]
        if length is not None:
            words += [f"skip={start // 65536}", f"count={length // 65536}"]
        await self.run("echo 3 >/proc/sys/vm/drop_caches")
        return (await self.run(f"{' '.join(words)} | sha256sum", deadline=deadline)).split()[0]

    async def write_file(self, path: str, data: bytes) -> None:
        """Make a small file in the guest."""
        text = "".join(f"\\0{byte:03o}" for byte in data)
        await self.run(f"printf %b {shlex.quote(text)} >{shlex.quote(path)}")

    async def close(self) -> None:
        """Stop to listen."""
        if self._writer is not None:
            self._writer.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._line.close()
