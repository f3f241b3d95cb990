"""Other programs, run by asyncio: their output, their death with ours, their listening sockets."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from vhostd.demo.errors import DemoError

_ACCEPTING = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix
_LOG_TAIL = 4000


def find(program: str) -> str:
    """Return where a program lies; a plain user's PATH lacks the folders of system programs, which are looked into too.

    Raises DemoError when it is not installed.
    """
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise DemoError(f"{program}: not installed")
    return path


def _environment(words: Sequence[str]) -> dict[str, str]:
    """Return the environment for a program: a sanitizer that is loaded into us is for our own code, not for QEMU."""
    ours = sys.executable in words
    return {name: value for name, value in os.environ.items() if ours or name != "LD_PRELOAD"}


async def output_of(
    *argv: str | Path, cwd: Path | None = None, deadline: float = 120, pass_fds: Sequence[int] = ()
) -> str:
    """Run a program and return what it printed.

    `deadline` in seconds. Raises DemoError when the program is missing, fails, or takes longer.
    """
    words = [find(str(argv[0])), *(str(word) for word in argv[1:])]
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**_environment(words), "LC_ALL": "C"},
        pass_fds=pass_fds,
    )
    try:
        async with asyncio.timeout(deadline):
            out, err = await process.communicate()
    except TimeoutError:
        raise DemoError(f"{' '.join(words)}: not done after {deadline:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise DemoError(f"{' '.join(words)}: exit {process.returncode}: {err.decode(errors='replace').strip()}")
    return out.decode(errors="replace")


class Program:
    """A program that runs beside us; its output goes to a file, and it is killed when we die."""

    def __init__(self, argv: Sequence[str], process: asyncio.subprocess.Process, log: Path) -> None:
        self.argv = list(argv)
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        """The process: setpriv and nsenter replace themselves, so it is the program's own."""
        return self.process.pid

    @classmethod
    async def start(
        cls, *argv: str | Path, log: Path, pass_fds: Sequence[int] = (), env: Mapping[str, str] | None = None
    ) -> "Program":
        """Start a program with its output in `log`. Raises DemoError when it is not installed."""
        words = [find(str(argv[0])), *(str(word) for word in argv[1:])]
        with log.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=pass_fds,
                env={**_environment(words), **(env or {})},
            )
        return cls(words, process, log)

    def log_tail(self) -> str:
        """Return the last that it printed."""
        return self.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()

    def check(self) -> None:
        """Raise DemoError when the program has ended."""
        if self.process.returncode is not None:
            raise DemoError(f"{Path(self.argv[0]).name} ended ({self.process.returncode}): {self.log_tail()}")

    async def listening(self, path: Path, *, deadline: float = 10) -> None:
        """Wait until a unix socket accepts connections at `path`, without making one.

        A connection only to look would be a front-end to a back-end. Raises DemoError after `deadline` seconds.
        """
        until = time.monotonic() + deadline
        while not _accepts(Path(f"/proc/{self.pid}/net/unix"), path):
            self.check()
            if time.monotonic() > until:
                raise DemoError(f"{path}: nobody listens after {deadline:g} s: {self.log_tail()}")
            await asyncio.sleep(0.01)

    async def stop(self, *, deadline: float = 5) -> int:
        """End it by SIGTERM, by SIGKILL after `deadline` seconds; return its exit status as asyncio gives it."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(deadline):
                    await self.process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self.process.kill()
        return await self.process.wait()


def _accepts(table: Path, path: Path) -> bool:
    """Say whether the kernel's table of unix sockets has `path` in the listening state."""
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[7] == str(path) and int(words[3], 16) & _ACCEPTING:
            return True
    return False


@asynccontextmanager
async def running(
    *argv: str | Path, log: Path, pass_fds: Sequence[int] = (), env: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """Run a program for the length of a block."""
    program = await Program.start(*argv, log=log, pass_fds=pass_fds, env=env)
    try:
        yield program
    finally:
        await program.stop()
