"""Load for a network card: frames from the guest, to the guest, and there and back."""

import dataclasses
import os
from collections.abc import Callable

from vhostd.driver.arena import Arena
from vhostd.driver.frames import GUEST, HOST, frame, tcp_segment
from vhostd.driver.gauge import Gauge
from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.histogram import Histogram
from vhostd.driver.load.measure import SYSCALL_SECONDS, Settings
from vhostd.driver.load.peer import Peer, pid_behind
from vhostd.driver.load.result import SAMPLE_NS, Result
from vhostd.driver.load.runner import Watcher, differences, in_threads
from vhostd.driver.load.wire import arrived, open_wire
from vhostd.driver.net import header_len
from vhostd.driver.netloop import Counters, echo_load, rx_load, tx_load
from vhostd.driver.session import Session, open_session
from vhostd.spec.net import FRAME_LEN_MAX, Feature

_FRAME_LEN_MIN = 60
_GSO_LEN_MAX = 65400
_MEMORY_LEN = 64 << 20


@dataclasses.dataclass(frozen=True)
class NetJob:
    """What is asked of a card. rw: "tx", "rx" or "echo"; `frame_len` in bytes, or with `gso_len` TCP of so many bytes.

    depth: frames in flight; an echo has one. interface: the card's tap, in the namespace that `netns` leads to.
    """

    name: str
    rw: str
    frame_len: int = 64
    gso_len: int = 0
    depth: int = 128
    poll: bool = False
    ring_size: int = 256
    interface: str | None = None
    netns: str | None = None
    idle: bool = False

    def check(self) -> None:
        """Raise BenchError for a job that cannot be."""
        if not _FRAME_LEN_MIN <= self.frame_len <= FRAME_LEN_MAX:
            raise BenchError(f"--frame {self.frame_len}: a frame has {_FRAME_LEN_MIN} to {FRAME_LEN_MAX} bytes")
        if not 0 <= self.gso_len <= _GSO_LEN_MAX:
            raise BenchError(f"--gso {self.gso_len}: at most {_GSO_LEN_MAX} bytes")
        if self.rw != "tx" and self.interface is None:
            raise BenchError(f"--rw {self.rw} needs --interface: the tap of the card, where the host's frames go in")
        if self.rw == "echo" and (self.gso_len or self.depth != 1):
            raise BenchError("--rw echo sends one frame at a time, and no segments: leave --depth and --gso away")
        if self.depth > self.ring_size:
            raise BenchError(f"--depth {self.depth}: the ring has {self.ring_size} entries; give --size")

    def content(self, to: bytes, source: bytes) -> tuple[bytes, bytes]:
        """Return the kernel's header of 10 bytes and the frame."""
        if self.gso_len:
            return tcp_segment(self.gso_len, to=to, source=source)
        return bytes(10), frame(to=to, source=source, length=self.frame_len)


@dataclasses.dataclass(frozen=True)
class NetMeasurement:
    """What came of it: frames are `result`'s requests. `arrived`: of those sent, what the tap has counted, or None."""

    job: NetJob
    result: Result
    backend: str
    pid: int
    cpu_ns: float | None
    syscalls: float | None
    note: str = ""
    arrived: int | None = None
    swept: None = None
    wakeups: None = None
    steal: None = None


def measure(
    path: str | os.PathLike[str], job: NetJob, settings: Settings, *, watch: Watcher | None = None
) -> NetMeasurement:
    """Warm the card at `path` up, run the job, and say what came of it; each pass is a session of its own.

    Raises BenchError when card or interface cannot do it, DeviceError when the back-end breaks a rule.
    """
    job.check()
    if settings.warm_up:
        _run(path, job, settings.warm_up, settings, None, note=lambda _: None)
    costs: list[int | None] = []
    peers: list[Peer] = []
    counts: list[int] = []

    def note(peer: Peer) -> None:
        peers.append(peer)
        costs.append(peer.cpu_ns())
        if job.interface is not None and job.rw == "tx":
            counts.append(arrived(job.interface, job.netns))

    result = _run(path, job, settings.seconds, settings, watch, note=note)
    before, after = costs
    cpu_ns = None if before is None or after is None else (after - before) / max(result.ios, 1)
    syscalls, why = _count(path, job, settings)
    return NetMeasurement(
        job, result, peers[0].name, peers[0].pid, cpu_ns, syscalls, why,
        counts[1] - counts[0] if counts else None,
    )  # fmt: skip


def _count(path: str | os.PathLike[str], job: NetJob, settings: Settings) -> tuple[float | None, str]:
    if settings.syscalls == "off":
        return None, "not asked for"
    totals: list[int] = []

    def around(session: Session) -> Result:
        with Peer(pid_behind(session.frontend.fileno())).counting(settings.syscalls) as count:
            result = _load(session, job, min(SYSCALL_SECONDS, settings.seconds), settings, None)
        totals.append(count())
        return result

    try:
        result = _in_session(path, job, around)
    except BenchError as error:
        return None, str(error)
    return totals[0] / max(result.ios, 1), ""


def _run(
    path: str | os.PathLike[str],
    job: NetJob,
    seconds: float,
    settings: Settings,
    watch: Watcher | None,
    *,
    note: Callable[[Peer], None],
) -> Result:
    """Run the job once; `note` is called with the peer right before and right behind."""

    def around(session: Session) -> Result:
        peer = Peer(pid_behind(session.frontend.fileno()))
        note(peer)
        result = _load(session, job, seconds, settings, watch)
        note(peer)
        return result

    return _in_session(path, job, around)


def _in_session(path: str | os.PathLike[str], job: NetJob, function: Callable[[Session], Result]) -> Result:
    with (
        Arena.of(_MEMORY_LEN, populate=True) as arena,
        open_session(path, queues=2, size=job.ring_size, arena=arena) as session,
    ):
        wanted = {"tx": Feature.HOST_TSO4, "rx": Feature.GUEST_TSO4 | Feature.MRG_RXBUF}.get(job.rw, Feature(0))
        if job.gso_len and session.frontend.features & wanted != wanted:
            raise BenchError(f"{job.name}: the back-end does not offer what segments need; leave --gso away")
        return function(session)


def _load(session: Session, job: NetJob, seconds: float, settings: Settings, watch: Watcher | None) -> Result:
    gauge = Gauge(int(seconds * 1e9) // SAMPLE_NS + 20, SAMPLE_NS)
    loads = {"tx": _tx, "rx": _rx, "echo": _echo}

    def one(_: int) -> Counters:
        if settings.cpus:
            os.sched_setaffinity(0, {settings.cpus[0]})
        return loads[job.rw](session, job, int(seconds * 1e9), gauge)

    (done,) = in_threads(one, 1, [gauge], watch)
    none = Histogram.empty()
    return Result(
        done.frames,
        done.bytes,
        done.elapsed_ns / 1e9,
        done.kicks,
        done.publishes,
        done.sleeps,
        done.calls,
        Histogram(*done.latency),
        none,
        none,
        differences([gauge.samples])[: done.elapsed_ns // SAMPLE_NS],
    )


def _tx(session: Session, job: NetJob, duration_ns: int, gauge: Gauge) -> Counters:
    header, data = job.content(HOST, GUEST)
    return tx_load(
        session.queues[1],
        frame=data,
        header=header.ljust(header_len(session.frontend.features), b"\0"),
        depth=job.depth,
        poll=job.poll,
        duration_ns=duration_ns,
        gauge=gauge,
    )


def _rx(session: Session, job: NetJob, duration_ns: int, gauge: Gauge) -> Counters:
    header, data = job.content(GUEST, HOST)
    with open_wire(job.interface or "", job.netns, vnet=True) as wire:
        return rx_load(
            session.queues[0],
            wire_fd=wire.fileno(),
            frame=header + data,
            header_len=header_len(session.frontend.features),
            depth=job.ring_size,
            buffer_len=4096 if job.gso_len else 1536,
            window=job.depth,
            poll=job.poll,
            duration_ns=duration_ns,
            gauge=gauge,
        )


def _echo(session: Session, job: NetJob, duration_ns: int, gauge: Gauge) -> Counters:
    _, data = job.content(GUEST, HOST)
    _, reply = job.content(HOST, GUEST)
    with open_wire(job.interface or "", job.netns) as wire:
        return echo_load(
            session.queues[0],
            session.queues[1],
            wire_fd=wire.fileno(),
            frame=data,
            reply=reply,
            header=bytes(header_len(session.frontend.features)),
            poll=job.poll,
            duration_ns=duration_ns,
            gauge=gauge,
        )
