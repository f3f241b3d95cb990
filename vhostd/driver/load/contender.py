"""Back-ends that are started here to be compared, and the best settings of those we know."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.job import Job

READY_SECONDS = 15
STOP_SECONDS = 10
_LOG_TAIL = 600  # characters of what it said

_VHOSTD = f"{shlex.quote(sys.executable)} -m vhostd.cli.main blk {{img}} --socket-path {{sock}} --queues {{queues}}"
_QSD_EXPORT = (
    "--export type=vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path={{sock}},writable=on,num-queues={{queues}}"
)
_QSD_FILE = (
    "{qsd} --blockdev driver=file,node-name=f,filename={{img}},aio={aio},cache.direct={direct},discard=unmap "
    "--blockdev driver=raw,node-name=r,file=f,discard=unmap " + _QSD_EXPORT
)
_QSD_NULL = (
    "{qsd} --blockdev driver=null-co,node-name=f,size={{size}},read-zeroes=off "
    "--blockdev driver=raw,node-name=r,file=f,discard=unmap " + _QSD_EXPORT
)


@dataclass(frozen=True)
class Contender:
    """A name and the command line for each kind of image: "file", "direct", "null"; where one is missing, it passes.

    In a command {sock}, {img}, {queues} and {size} (bytes) are replaced; there is no shell.
    """

    name: str
    commands: dict[str, str]

    def command(self, job: Job, sock: Path, img: Path, size: int) -> list[str] | None:
        """Return the words for a job, or None when it has no such image. Raises BenchError for a wrong template."""
        template = self.commands.get(job.image)
        if template is None:
            return None
        try:
            text = template.format(sock=shlex.quote(str(sock)), img=shlex.quote(str(img)), queues=job.queues, size=size)
        except (KeyError, IndexError, ValueError) as error:
            raise BenchError(
                f"{self.name}: its command may have {{sock}}, {{img}}, {{queues}} and {{size}}, not {error}"
            ) from error
        return shlex.split(text)


def from_words(words: str) -> Contender:
    """Return the contender of NAME='COMMAND'. Raises BenchError when it is not of that form."""
    name, equals, command = words.partition("=")
    if not equals or not name or "{sock}" not in command:
        raise BenchError(f"--compare wants NAME='COMMAND with {{sock}} {{img}} {{queues}}', not {words!r}")
    return Contender(name, {"file": command, "direct": command, "null": command})


def preset(name: str, qsd: str = "qemu-storage-daemon") -> list[Contender]:
    """Return the contenders of a preset: "vhostd", or "qsd", qemu-storage-daemon at its best.

    Raises BenchError when the program is not there.
    """
    if name == "vhostd":
        return [Contender("vhostd", {"file": _VHOSTD, "direct": f"{_VHOSTD} --direct"})]
    if shutil.which(qsd) is None:
        raise BenchError(f"{qsd} is not there: apt-get install qemu-system-common, or leave --preset qsd away")
    made = []
    for aio in ("threads", "io_uring"):
        commands = {
            "file": _QSD_FILE.format(qsd=qsd, aio=aio, direct="off"),
            # O_DIRECT is at its best with native AIO; threads would only add their own cost.
            "direct": _QSD_FILE.format(qsd=qsd, aio="native" if aio == "threads" else aio, direct="on"),
        }
        if aio == "threads":
            commands["null"] = _QSD_NULL.format(qsd=qsd)
        made.append(Contender(f"qsd {aio}", commands))
    return made


PRESETS = ("vhostd", "qsd")


@contextlib.contextmanager
def running(name: str, command: list[str], sock: Path, cpus: Collection[int]) -> Iterator[int]:
    """Run a back-end until the block ends, on `cpus` only, and yield its pid when its socket is there.

    Raises BenchError with what it said when it ends, or is not ready in time.
    """
    log = sock.with_suffix(".log")
    here = os.sched_getaffinity(0)
    with log.open("wb") as out:
        os.sched_setaffinity(0, cpus or here)  # is inherited by what is started, and by all its threads
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        except OSError as error:
            raise BenchError(f"{name}: {command[0]}: {error.strerror}") from error
        finally:
            os.sched_setaffinity(0, here)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not sock.exists():
            if process.poll() is not None:
                raise BenchError(f"{name} ended with {process.returncode} before it was ready:\n{_tail(log)}")
            if time.monotonic() > deadline:
                raise BenchError(f"{name} has made no socket in {READY_SECONDS} s:\n{_tail(log)}")
            time.sleep(0.005)
        yield process.pid
        if process.poll() is not None:
            raise BenchError(f"{name} ended with {process.returncode} under load:\n{_tail(log)}")
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End it as an operator does, and all it has started if that takes too long."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_TAIL:].strip() or "(it said nothing)"
