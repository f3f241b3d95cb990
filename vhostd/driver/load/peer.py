"""The process behind a socket, and what a load costs it: CPU as the scheduler charges it, and system calls."""

import contextlib
import ctypes
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vhostd.driver.load.errors import BenchError

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241}
_PERF_TYPE_TRACEPOINT = 2
_PERF_ATTR_LEN = 112
_PERF_INHERIT = 1 << 1  # threads that start later are counted, too
_TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_ATTACH_SECONDS = 10


def pid_behind(fileno: int) -> int:
    """Return the process that listened at, or made, the other end of a connected unix socket."""
    with socket.socket(fileno=os.dup(fileno)) as connection:
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


class Peer:
    """A back-end's process and all below it: a supervisor does no work, its device process does."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def name(self) -> str:
        """The program's name, as ps shows it."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text().strip()
        except OSError:
            return f"process {self.pid}"

    def pids(self) -> list[int]:
        """Return the process and its descendants."""
        found = [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(child) for child in task.read_text().split()]
        return found

    def tids(self) -> list[int]:
        """Return all threads of those."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found += [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        return found

    def cpu_ns(self) -> int | None:
        """Return the CPU time of all threads so far, exact to the scheduler's clock; None when it cannot be read."""
        total, seen = 0, False
        for tid in self.tids():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{tid}/schedstat").read_text().split()[0])
                seen = True
        return total if seen else None

    def wakeups(self) -> int:
        """Return how often its threads have gone to sleep of themselves, and so woken up again."""
        total = 0
        for tid in self.tids():
            with contextlib.suppress(OSError):
                found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", Path(f"/proc/{tid}/status").read_text(), re.M)
                total += int(found[1]) if found else 0
        return total

    @contextlib.contextmanager
    def counting(self, way: str = "auto") -> Iterator[Callable[[], int]]:
        """Count system calls while the block lasts; call what is yielded, after the block, for their number.

        way: "perf", the kernel's tracepoint, which costs each call about a tenth of a microsecond; "strace", which
        costs a hundred times that; "auto", perf. Raises BenchError, saying what is missing, when it is not permitted.
        """
        with _strace(self.pids()) if way == "strace" else _perf(self.tids()) as count:
            yield count


@contextlib.contextmanager
def _perf(tids: list[int]) -> Iterator[Callable[[], int]]:
    libc = ctypes.CDLL(None, use_errno=True)
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise BenchError(f"not counted: perf_event_open of {platform.machine()} is not known here")
    attr = struct.pack("<IIQQQQQ", _PERF_TYPE_TRACEPOINT, _PERF_ATTR_LEN, _tracepoint(), 0, 0, 0, _PERF_INHERIT)
    buffer = ctypes.create_string_buffer(attr.ljust(_PERF_ATTR_LEN, b"\0"), _PERF_ATTR_LEN)
    fds: list[int] = []
    totals: list[int] = []
    try:
        for tid in tids:
            fd = libc.syscall(number, buffer, tid, -1, -1, 8)  # 8: close on exec
            if fd < 0:
                error = ctypes.get_errno()
                if error == 3:  # ESRCH: the thread has ended
                    continue
                raise BenchError(
                    f"not permitted: perf_event_open: {os.strerror(error)}; as root, or with CAP_PERFMON, it is"
                )
            fds.append(fd)
        yield lambda: sum(totals)
        totals += [struct.unpack("Q", os.read(fd, 8))[0] for fd in fds]
    finally:
        for fd in fds:
            os.close(fd)


def _tracepoint() -> int:
    for folder in _TRACEFS:
        with contextlib.suppress(OSError):
            return int(Path(folder, "events/raw_syscalls/sys_enter/id").read_text())
    raise BenchError(
        "not permitted: the tracepoint raw_syscalls:sys_enter cannot be read; as root, with tracefs mounted "
        "(mount -t tracefs tracefs /sys/kernel/tracing), it can; or say --syscalls strace"
    )


@contextlib.contextmanager
def _strace(pids: list[int]) -> Iterator[Callable[[], int]]:
    program = shutil.which("strace")
    if program is None:
        raise BenchError("not counted: there is no strace here (apt-get install strace)")
    totals: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "calls")
        words = [word for pid in pids for word in ("-p", str(pid))]
        tracer = subprocess.Popen(
            [program, "-f", "-c", "-U", "calls", "-o", str(out), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            _wait_for_tracer(tracer, pids)
            yield lambda: sum(totals)
        finally:
            tracer.send_signal(signal.SIGINT)
            _, complaint = tracer.communicate(timeout=_ATTACH_SECONDS)
        lines = out.read_text().split() if out.exists() else []
        numbers = [int(word) for word in lines if word.isdecimal()]
        if not numbers:
            raise BenchError(f"not counted: strace said {complaint.decode(errors='replace').strip() or 'nothing'}")
        totals.append(numbers[-1])  # the last line is the sum


def _wait_for_tracer(tracer: "subprocess.Popen[bytes]", pids: list[int]) -> None:
    deadline = time.monotonic() + _ATTACH_SECONDS
    while time.monotonic() < deadline and tracer.poll() is None:
        states = []
        for pid in pids:
            with contextlib.suppress(OSError):
                states.append("TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text())
        if not any(states):
            return
        time.sleep(0.01)
    raise BenchError("not permitted: strace could not attach to the back-end; as root it can")
