"""The block driver: requests byte for byte, GET_ID before all others, the panic dump."""

import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from vhostd.driver.illumos.failures import GuestCorrupted, GuestHangs
from vhostd.driver.illumos.memory import Buffer, GuestMemory, Layout, Zone
from vhostd.driver.illumos.ring import Chain, NoRoom, Ring
from vhostd.driver.illumos.startup import BUFFERS_MAX, Disk, IllumosGuest
from vhostd.errors import LocalProtocolError
from vhostd.spec.blk import HEADER_LEN, ID_LEN, SECTOR_LEN, Feature, Request, StatusByte

GET_ID_TIMEOUT = 3.0  # seconds
POISON = 0xFF
_SERIAL = re.compile(rb"[A-Za-z0-9_-]*")


@dataclass(eq=False)
class Slot:
    """A request of the pool: 17 bytes of header and status in one piece, and a chain that the newer driver keeps."""

    header: int
    chain: Chain | None = None

    @property
    def status(self) -> int:
        """The address of the status byte."""
        return self.header + HEADER_LEN


@dataclass(eq=False)
class Job:
    """A request in flight, and what became of it."""

    slot: Slot
    chain: Chain
    kind: int
    used_len: int  # what the device has to say
    status: int | None = None
    data: list[tuple[int, int]] = field(default_factory=list)


class IoError(LocalProtocolError):
    """The request failed as the guest's upper layer sees it: `errno` by its name."""

    def __init__(self, errno: str, what: str) -> None:
        super().__init__(f"{what}: {errno}")
        self.errno = errno


class BlockDriver:
    """One disk. Every wait is for an interrupt; nothing polls but the panic dump."""

    def __init__(self, guest: IllumosGuest, memory: GuestMemory, ring: Ring, disk: Disk) -> None:
        self.guest = guest
        self.memory = memory
        self.ring = ring
        self.disk = disk
        self.serial_raw = b""
        self.serial: bytes | None = None
        self._max_segs = disk.seg_max + 2
        self._newer = guest.generation == 2026
        count = min(ring.size, BUFFERS_MAX)
        self._pool = [Slot(memory.alloc(Zone.HEADERS, HEADER_LEN + 1)) for _ in range(count)]
        if self._newer:  # each with a chain for life, so that head and request have one number
            for slot in self._pool:
                slot.chain = Chain(ring, self._max_segs)

    # Requests.

    def submit(self, kind: int, sector: int = 0, data: list[tuple[int, int]] | None = None) -> Job:
        """Hand one request to the device. `data` is physical pieces, device-writable for IN and GET_ID.

        Raises IoError (ENOMEM) when there is no free request or no room in the ring: nothing is sent then.
        """
        pieces = data or []
        writable = kind in {Request.IN, Request.GET_ID}
        if not self._pool:
            raise IoError("ENOMEM", "no request is free")
        slot = self._pool.pop(0)
        try:
            chain = slot.chain or Chain(self.ring, self._max_segs)
        except NoRoom:
            self._pool.insert(0, slot)
            raise IoError("ENOMEM", "the ring has no descriptor left") from None
        arena = self.memory.arena
        arena.write(slot.header, struct.pack("<IIQ", kind, 0, sector))
        arena.write(slot.status, bytes([POISON if self.guest.poison else 0]))
        try:
            chain.append(slot.header, HEADER_LEN)
            for gpa, length in pieces:
                chain.append(gpa, length, write=writable)
            chain.append(slot.status, 1, write=True)
        except NoRoom:
            self._done(slot, chain)
            raise IoError("ENOMEM", "the ring has no room for the chain") from None
        used_len = 1 + (sum(length for _, length in pieces) if writable else 0)
        job = Job(slot, chain, kind, used_len, data=pieces)
        self.ring.submit(chain, job)
        self.ring.flush()
        return job

    def wait(self, job: Job, timeout: float | None = None, row: str = "illumos_E4") -> Job:
        """Wait for the interrupts that bring a request back. Raises GuestHangs, and IoError for its status."""
        deadline = time.monotonic() + (self.guest.timeout if timeout is None else timeout)
        while job.status is None:
            self._complete(self.ring.wait(row, deadline))
        return self._judged(job)

    def interrupts(self, timeout: float) -> bool:
        """Take an interrupt if one comes, and all it brings. Whether one came."""
        came = self.ring.interrupted(timeout)
        self._complete(self.ring.reap())
        return came

    def _complete(self, found: list[tuple[Chain, int]]) -> None:
        for chain, length in found:
            job = chain.token
            assert isinstance(job, Job)
            job.status = self.memory.arena.read(job.slot.status, 1)[0]
            self._done(job.slot, chain)
            if length != job.used_len and job.status == StatusByte.OK:
                raise GuestCorrupted(
                    "illumos_R2.25", f"{Request(job.kind).name}: used length {length} instead of {job.used_len}"
                )

    def _done(self, slot: Slot, chain: Chain) -> None:
        if slot.chain is None:
            chain.free()
        else:
            chain.clear()
        self._pool.insert(0, slot)  # a stack: the last one back is the next one out

    def _judged(self, job: Job) -> Job:
        name = Request(job.kind).name
        if job.status not in list(StatusByte):
            raise GuestCorrupted("illumos_R2.12", f"{name}: status {job.status:#x} is none of 0, 1, 2")
        if job.status != StatusByte.OK:
            raise IoError("EIO" if job.status == StatusByte.IOERR else "ENOTTY", name)
        return job

    # What the kernel above asks for.

    def get_id(self) -> bytes | None:
        """Ask for the serial number, first of all; None where there is none to use.

        Raises GuestHangs after 3 s: the real driver waits for ever.
        """
        gpa = self.memory.alloc(Zone.IDS, ID_LEN)
        try:
            self.wait(self.submit(Request.GET_ID, 0, [(gpa, ID_LEN)]), GET_ID_TIMEOUT, "illumos_10012")
            self.serial_raw = self.memory.arena.read(gpa, ID_LEN)
        except IoError:
            self.serial_raw = b""
        finally:
            if not self.ring.in_flight:
                self.memory.free(gpa)
        match = _SERIAL.match(self.serial_raw)
        self.serial = (match.group() if match else b"") or None
        return self.serial

    def read(self, sector: int, length: int, *, offset: int = 0, layout: Layout | None = None) -> bytes:
        """Read whole sectors into a buffer that starts `offset` bytes into its first page."""
        buffer = self.memory.buffer(Zone.DATA, offset + length, layout)
        try:
            for job, _ in self._all(Request.IN, sector, buffer, offset, length):
                self.wait(job)
            return self.memory.read(buffer.cut(offset, length))
        finally:
            self._release(buffer)

    def write(self, sector: int, data: bytes, *, offset: int = 0, layout: Layout | None = None) -> None:
        """Write whole sectors out of a buffer that starts `offset` bytes into its first page."""
        buffer = self.memory.buffer(Zone.DATA, offset + len(data), layout)
        self.memory.write(buffer.cut(offset, len(data)), data)
        try:
            for job, _ in self._all(Request.OUT, sector, buffer, offset, len(data)):
                self.wait(job)
        finally:
            self._release(buffer)

    def flush(self) -> None:
        """Make writes durable, by a request if FLUSH was taken; else there is nothing to do."""
        if self.disk.features & Feature.FLUSH:
            self.wait(self.submit(Request.FLUSH))

    def discard(self, *segments: tuple[int, int]) -> None:
        """Discard (sector, sectors) ranges, as many in a request as it may hold. Raises IoError where it cannot."""
        if self.disk.discard is None:
            raise IoError("ENOTSUP", "DISCARD")
        most_sectors, most, _ = self.disk.discard
        parts = [
            struct.pack("<QII", sector + at, min(most_sectors, count - at), 0)
            for sector, count in segments
            for at in range(0, count, most_sectors)
        ]
        for first in range(0, len(parts), most):
            data = b"".join(parts[first : first + most])
            gpa = self.memory.alloc(Zone.DATA, len(data), 4096)
            self.memory.arena.write(gpa, data)
            self.wait(self.submit(Request.DISCARD, 0, [(gpa, len(data))]))
            self.memory.free(gpa)

    def dump(self, sector: int, data: bytes) -> None:
        """Write as a panicking kernel does: page by page, interrupts ignored, the used ring polled.

        Requests from before may come back in between. Raises GuestHangs.
        """
        buffer = self.memory.buffer(Zone.DATA, len(data))
        self.memory.write(buffer.pieces, data)
        for job, _ in self._all(Request.OUT, sector, buffer, 0, len(data), most=4096):
            deadline = time.monotonic() + self.guest.timeout
            while job.status is None:
                if time.monotonic() > deadline:
                    raise GuestHangs("illumos_E4", "a dump's write was not used in time")
                self._complete(self.ring.reap())
                time.sleep(10e-6)
            self._judged(job)

    def _all(
        self, kind: int, sector: int, buffer: Buffer, start: int, length: int, *, most: int | None = None
    ) -> Iterator[tuple[Job, int]]:
        """Cut what is too large, and issue the parts one after the other."""
        limit = self.disk.transfer_max if most is None else most
        done = 0
        while done < length:
            part, pieces = self._fit(buffer, start + done, min(limit, length - done))
            yield self.submit(kind, sector + done // SECTOR_LEN, pieces), part
            done += part

    def _fit(self, buffer: Buffer, start: int, length: int) -> tuple[int, list[tuple[int, int]]]:
        """Return as much of a buffer as SEG_MAX segments of SIZE_MAX hold, whole sectors of it."""
        most = self.disk.size_max
        segments = [
            (gpa + at, min(most, piece_len - at))
            for gpa, piece_len in buffer.cut(start, length)
            for at in range(0, piece_len, most)
        ][: self.disk.seg_max]
        total = sum(length for _, length in segments)
        odd = total % SECTOR_LEN
        while odd:  # the rest of a cut lies in the next request
            gpa, last = segments.pop()
            if last > odd:
                segments.append((gpa, last - odd))
                break
            odd -= last
        return sum(length for _, length in segments), segments

    def _release(self, buffer: Buffer) -> None:
        if not self.ring.in_flight:
            self.memory.free(buffer.block)
