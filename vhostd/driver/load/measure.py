"""One back-end under one job: what it did, and what that cost it."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vhostd.driver import procfs
from vhostd.driver.arena import Arena
from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.job import Job
from vhostd.driver.load.peer import Peer, pid_behind
from vhostd.driver.load.result import Result
from vhostd.driver.load.runner import Watcher, disk_len, ledgers, run_job, sweep
from vhostd.driver.session import Session, open_session

SYSCALL_SECONDS = 0.25  # of the pass that counts them


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure. Times in seconds; `cpus`: the generator's, empty for any; `syscalls`: auto, perf, strace, off."""

    seconds: float = 2.0
    warm_up: float = 0.5
    seed: int = 7
    cpus: tuple[int, ...] = ()
    syscalls: str = "auto"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What came of a job, and what it cost the back-end. `cpu_ns` and `syscalls` are per request, None where unknown.

    note: why system calls were not counted. swept: blocks read back at the end of a verified job. wakeups: a second.
    steal: the share of the machine's time that its host took meanwhile, None where nobody looked.
    """

    job: Job
    result: Result
    backend: str
    pid: int
    cpu_ns: float | None
    syscalls: float | None
    note: str = ""
    swept: int | None = None
    wakeups: float | None = None
    steal: float | None = None


@contextlib.contextmanager
def connected(path: str | os.PathLike[str], job: Job) -> Iterator[Session]:
    """Connect to a disk with the rings that a job wants. Raises BenchError when it cannot do the job."""
    with Arena.of(job.memory_len, populate=True) as arena, open_session(
        path,
        queues=job.queues,
        size=job.ring_size,
        arena=arena,
        indirect=job.indirect,
        features=job.features,
        packed=job.ring == "packed",
        start=False,
    ) as session:  # fmt: skip
        if session.frontend.queue_num < job.queues:
            raise BenchError(f"{job.name}: the back-end offers {session.frontend.queue_num} queues, not {job.queues}")
        job.check(session.frontend.offered, disk_len(session))
        session.start()
        yield session


def measure(path: str | os.PathLike[str], job: Job, settings: Settings, *, watch: Watcher | None = None) -> Measurement:
    """Warm the back-end at `path` up, run the job, and say what came of it.

    A verified job reads everything it has written once more at the end. System calls are counted in a pass of their
    own, since counting them slows them down.
    """
    with connected(path, job) as session:
        peer = Peer(pid_behind(session.frontend.fileno()))
        if job.idle:
            return _idle(session, peer, job, settings)
        books = ledgers(session, job) if job.verify else []
        options: dict[str, Any] = {"books": books, "cpus": settings.cpus}
        if settings.warm_up:
            run_job(session, job, settings.warm_up, **options)
        stolen, cpu = procfs.stolen(), peer.cpu_ns()
        result = run_job(session, job, settings.seconds, seed=settings.seed, watch=watch, **options)
        after, steal = peer.cpu_ns(), procfs.stolen_share(stolen, procfs.stolen())
        cpu_ns = None if cpu is None or after is None else (after - cpu) / max(result.ios, 1)
        syscalls, note = _count(session, peer, job, settings, options)
        swept = sweep(session, job, books) if books and job.writes else None
        return Measurement(job, result, peer.name, peer.pid, cpu_ns, syscalls, note, swept, steal=steal)


def _count(
    session: Session, peer: Peer, job: Job, settings: Settings, options: dict[str, Any]
) -> tuple[float | None, str]:
    if settings.syscalls == "off":
        return None, "not asked for"
    try:
        with peer.counting(settings.syscalls) as count:
            ios = run_job(session, job, min(SYSCALL_SECONDS, settings.seconds), **options).ios
    except BenchError as error:
        return None, str(error)
    return count() / max(ios, 1), ""


def _idle(session: Session, peer: Peer, job: Job, settings: Settings) -> Measurement:
    """Ask for one block, wait until the back-end has gone to sleep, and see what it does then."""
    session.block().read(0, 512)
    time.sleep(0.3)
    cpu, wakeups = peer.cpu_ns(), peer.wakeups()
    time.sleep(settings.seconds)
    after = peer.cpu_ns()
    spent = None if cpu is None or after is None else float(after - cpu)
    result = Result.nothing(settings.seconds)
    return Measurement(
        job, result, peer.name, peer.pid, spent, None, wakeups=(peer.wakeups() - wakeups) / settings.seconds
    )


def free_cpus(generator: Sequence[int]) -> set[int]:
    """Return the cores we may use and the generator does not; all of them, when there are no others."""
    here = os.sched_getaffinity(0)
    return (here - set(generator)) or here


def socket_in(folder: Path, name: str) -> Path:
    """Return a path for a socket whose length every system takes."""
    path = folder / name
    if len(os.fsencode(path)) > 100:
        raise BenchError(f"{folder}: too long for a socket's path (107 bytes); choose another --dir")
    return path
