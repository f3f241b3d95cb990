"""The back-end that is checked: how it is reached, what it is, what it offers, and what of its disk we may use."""

import contextlib
import functools
import hashlib
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vhostd.driver import procfs
from vhostd.driver.conformance.case import Kind
from vhostd.driver.frontend import Frontend
from vhostd.driver.session import open_session
from vhostd.driver.wire import Wire
from vhostd.errors import ConfigError, DeviceError, DeviceTimeout
from vhostd.spec import blk, net
from vhostd.spec.blk import SECTOR_LEN, ConfigOffset
from vhostd.spec.vhost_user import ProtocolFeature
from vhostd.spec.virtio import Feature

SCRATCH_LEN = 4 << 20  # bytes at the end of the disk that cases may write to
KNOWN_LEN = 128 << 10  # bytes at its start whose content every case may rely on
START_TIMEOUT = 15.0  # seconds until a started back-end listens
STOP_TIMEOUT = 5.0


class UnknownKind(ConfigError):  # noqa: N818
    """Nobody can tell whether it is a disk or a card; the operator must say."""

    exit_code = 2


class NobodyListens(ConfigError):  # noqa: N818
    """There is no back-end to check."""

    exit_code = 3


@dataclass(frozen=True)
class Offer:
    """What the back-end offers, read once; `config` is empty where CONFIG is not offered. `queues` of GET_QUEUE_NUM."""

    features: int
    protocol: ProtocolFeature
    queues: int
    mem_slots: int
    config: bytes


@dataclass(frozen=True)
class Scratch:
    """The part of a disk that cases may write to: `sectors` from `first` on, of 512 bytes.

    `known` is what its first bytes hold at the start of each case.
    """

    first: int
    sectors: int
    known: bytes
    writable: bool


class Process:
    """A back-end that we start from a command with {sock}, and start again when it dies."""

    def __init__(self, command: str, path: str) -> None:
        self.command = command
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> int:
        """Start it and wait until it listens; return its process id. Raises ConfigError when it does not."""
        self.stop()
        with contextlib.suppress(FileNotFoundError):
            Path(self.path).unlink()
        words = [word.replace("{sock}", self.path) for word in shlex.split(self.command)]
        try:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2)
        except OSError as error:
            raise ConfigError(f"--start: {words[0]}: {error.strerror}") from error
        self.starts += 1
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(DeviceError), Frontend.connect(self.path, wait=0) as frontend:
                frontend.negotiate()
                return self.process.pid
            if self.process.poll() is not None:
                raise ConfigError(f"--start: {words[0]} ended with {self.process.returncode} before it listened")
            time.sleep(0.05)
        raise ConfigError(f"--start: {words[0]} does not listen at {self.path}")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = None if self.process is None else self.process.poll()
        if code is None:
            return "it runs"
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"

    def stop(self) -> None:
        """End it; a second time does nothing."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None


@dataclass
class Target:
    """A back-end and the means to check it."""

    path: str
    kind: Kind
    offer: Offer
    pid: int
    timeout: float = 2.0
    profile: str | None = None
    scratch: Scratch | None = None
    interface: str | None = None
    process: Process | None = None
    saved: bytes = field(default=b"", repr=False)

    @property
    def rings(self) -> int:
        """How many rings it has: of a card two for each pair."""
        return self.offer.queues * (2 if self.kind == "net" else 1)

    @property
    def work_ring(self) -> int:
        """The ring on which something can be done without a wire: requests, or transmission (5.1.2, 5.2.2)."""
        return 1 if self.kind == "net" else 0

    def lives(self) -> bool:
        """Return whether the process runs, as far as we can tell."""
        if self.process is not None:
            return self.process.alive
        return self.pid == 0 or procfs.alive(self.pid) or not os.path.isdir("/proc/self")  # noqa: PTH112

    def wire(self, *, vnet: bool = False) -> Wire:
        """Open the host's end of the card. Raises OSError."""
        assert self.interface is not None
        return Wire(self.interface, vnet=vnet, timeout=self.timeout)

    def restart(self) -> bool:
        """Start the back-end again where we know how; return whether it is there."""
        if self.process is None:
            return False
        self.pid = self.process.start()
        return True


def known_bytes(first: int, length: int = KNOWN_LEN) -> bytes:
    """Return what the scratch area holds: each sector tells where it lies."""
    sectors = range(first, first + length // SECTOR_LEN)
    return b"".join(hashlib.blake2b(n.to_bytes(8, "little"), digest_size=64).digest() * 8 for n in sectors)


def probe(
    path: str,
    *,
    kind: Kind | None = None,
    timeout: float = 2.0,
    profile: str | None = None,
    interface: str | None = None,
    process: Process | None = None,
) -> Target:
    """Connect once and read what is offered; `kind` None is detected.

    Raises NobodyListens, UnknownKind, and DeviceError when not even the connection phase works.
    """
    try:
        frontend = Frontend.connect(path, timeout=timeout, wait=0.5)
    except DeviceTimeout as error:
        raise NobodyListens(f"{path}: nobody listens ({error}); start a back-end there, or use --start") from error
    with frontend:
        pid = procfs.peer_pid(frontend.fileno())
        frontend.negotiate()
        offered, protocol = frontend.offered, frontend.protocol_offered
        config = b""
        found = kind or detect(offered, protocol)
        if found is None:
            raise UnknownKind(f"{path}: neither a disk nor a card by its features ({offered:#x}); say --device")
        if protocol & ProtocolFeature.CONFIG:
            config = frontend.config(0, blk.CONFIG_LEN if found == "block" else net.CONFIG_LEN)
        offer = Offer(offered, protocol, frontend.queue_num, frontend.mem_slots, config)
    if process is not None and process.process is not None:
        pid = process.process.pid
    return Target(path, found, offer, pid, timeout, profile, None, interface, process)


def detect(features: int, protocol: ProtocolFeature) -> Kind | None:
    """Return what kind of device offers these, None when that cannot be told (5.1.3, 5.2.3)."""
    if features & net.Feature.MRG_RXBUF or protocol & (ProtocolFeature.NET_MTU | ProtocolFeature.RARP):
        return "net"
    if features & (blk.Feature.BLK_SIZE | blk.Feature.FLUSH | blk.Feature.SEG_MAX | blk.Feature.RO):
        return "block"
    return None


@contextlib.contextmanager
def scratch(target: Target, *, writes: bool = True, start: int | None = None) -> Iterator[None]:
    """Save the scratch area of a disk, write what is known to its start, and put it back at the end.

    `start` is its first sector; None is the last SCRATCH_LEN bytes of the disk. Without `writes`, or on a disk that is
    read-only, what is known is what was read. Cards have none. Raises DeviceError when the disk cannot be read.
    """
    if target.kind != "block":
        yield
        return
    writable = writes and not target.offer.features & blk.Feature.RO
    with open_session(target.path, timeout=target.timeout, memory_len=SCRATCH_LEN + (4 << 20)) as session:
        total = int.from_bytes(target.offer.config[ConfigOffset.CAPACITY : 8], "little")
        total = total or SCRATCH_LEN // SECTOR_LEN  # without CONFIG nobody tells how large it is
        sectors = min(SCRATCH_LEN // SECTOR_LEN, total)
        first = (total - sectors) // 8 * 8 if start is None else start
        driver = session.block()
        chunk = KNOWN_LEN // SECTOR_LEN
        pieces = [(at, min(chunk, first + sectors - at)) for at in range(first, first + sectors, chunk)]
        target.saved = b"".join(driver.read(at, count * SECTOR_LEN) for at, count in pieces)
    known = known_bytes(first, min(KNOWN_LEN, sectors * SECTOR_LEN)) if writable else target.saved[:KNOWN_LEN]
    target.scratch = Scratch(first, sectors, known, writable)
    try:
        if writable:
            refresh(target)
        yield
    finally:
        if writable and (target.lives() or target.restart()):
            with open_session(target.path, timeout=target.timeout) as session:
                driver = session.block()
                for at, count in pieces:
                    offset = (at - first) * SECTOR_LEN
                    driver.write(at, target.saved[offset : offset + count * SECTOR_LEN])
                if target.offer.features & blk.Feature.FLUSH:
                    driver.flush()


def refresh(target: Target) -> None:
    """Write what is known to the scratch area again. Raises DeviceError."""
    area = target.scratch
    if area is None or not area.writable:
        return
    connect = functools.partial(Frontend.connect, wait=target.timeout)
    with open_session(target.path, timeout=target.timeout, connect=connect) as session:
        session.block().write(area.first, area.known)


def rings_offered(target: Target) -> str:
    """Return the ring formats that are offered, in words."""
    return "split and packed" if target.offer.features & Feature.RING_PACKED else "split"
