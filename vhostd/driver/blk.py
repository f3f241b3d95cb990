"""Block requests as a guest makes them (5.2.6), framed over descriptors in any way.

A request is two byte streams: what the device reads (header, data to write) and what it writes (data read, then one
status byte). How they are cut into descriptors is up to the driver (2.7.4.2), and so it is here.
"""

import dataclasses
import itertools
import struct
import time
from collections.abc import Iterable, Sequence

from vhostd.driver.buffers import GUARD, POISON, cut
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceTimeout
from vhostd.spec.blk import ID_LEN, STATUS_LEN, Request, StatusByte


@dataclasses.dataclass(frozen=True)
class Completion:
    """What came back: the status byte, the used length and the bytes in front of the status byte."""

    status: int
    used_len: int
    data: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is OK."""
        return self.status == StatusByte.OK


@dataclasses.dataclass(eq=False)
class Pending:
    """A request the device has."""

    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]
    completion: Completion | None = None


class BlockDriver:
    """Requests on one queue; `timeout` is in seconds, for each request. With `poll` it spins instead of sleeping."""

    def __init__(self, queue: Virtqueue, *, timeout: float = 5.0, poll: bool = False) -> None:
        self.queue = queue
        self.arena = queue.arena
        self.timeout = timeout
        self.poll = poll

    def submit(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        *,
        read_len: int = 0,
        readable: Sequence[int] | None = None,
        writable: Sequence[int] | None = None,
        header: bytes | None = None,
        status_len: int = STATUS_LEN,
        indirect: bool | None = None,
        kick: bool = True,
    ) -> Pending:
        """Hand a request to the device and return at once.

        `sector` in units of 512 bytes; `data` is what the device reads behind the header, `read_len` how many bytes
        it may write before the status. `readable` and `writable` are the first piece lengths of the two streams, the
        rest being one piece; None is the usual framing: header, data, status each for itself. `header` replaces the
        header, `status_len` the length of the status.
        Raises LocalProtocolError when the ring or the arena is full.
        """
        head = struct.pack("<IIQ", kind, 0, sector) if header is None else header
        out = head + data
        out_cuts = cut(len(out), [len(head)] if readable is None else readable)
        in_len = read_len + status_len
        in_cuts = cut(in_len, [read_len][: read_len > 0] if writable is None else writable)
        starts = itertools.accumulate(out_cuts, initial=0)
        pending = Pending(
            [self._buffer(out[at : at + length]) for at, length in zip(starts, out_cuts, strict=False)],
            [self._buffer(bytes([POISON]) * length) for length in in_cuts],
        )
        try:
            self.queue.add(pending.readable, pending.writable, token=pending, indirect=indirect)
        except BaseException:
            self._release(pending)
            raise
        if kick:
            self.queue.kick()
        return pending

    def complete(self, pending: Pending) -> Completion:
        """Wait for one request, whatever order they come back in, and return what the device made of it.

        Raises DeviceTimeout, and DeviceError when the device wrote where it may not.
        """
        deadline = time.monotonic() + self.timeout
        while pending.completion is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceTimeout("the request was not returned in time")
            self.collect(left)
        return pending.completion

    def collect(self, timeout: float | None = None) -> list[Pending]:
        """Wait until at least one request is back; return those that are."""
        done = []
        for used in self.queue.wait(self.timeout if timeout is None else timeout, poll=self.poll):
            pending = used.token
            wrote = b"".join(self.arena.read(gpa, length) for gpa, length in pending.writable)
            for gpa, length in pending.readable + pending.writable:
                if self.arena.read(gpa + length, len(GUARD)) != GUARD:
                    raise DeviceError(f"the device wrote behind the {length} bytes at {gpa:#x}")
            status = wrote[-1] if wrote else POISON
            pending.completion = Completion(status, used.length, wrote[:-1])
            self._release(pending)
            done.append(pending)
        return done

    def request(self, kind: int, sector: int = 0, data: bytes = b"", *, read_len: int = 0) -> Completion:
        """Submit a request in the usual framing and wait for it."""
        return self.complete(self.submit(kind, sector, data, read_len=read_len))

    def read(self, sector: int, length: int) -> bytes:
        """Read `length` bytes from `sector`. Raises DeviceError unless the status is OK."""
        return self._checked("IN", self.request(Request.IN, sector, read_len=length), length + 1).data

    def write(self, sector: int, data: bytes) -> None:
        """Write `data` to `sector`. Raises DeviceError unless the status is OK."""
        self._checked("OUT", self.request(Request.OUT, sector, data), 1)

    def flush(self) -> None:
        """Make what was written durable. Raises DeviceError unless the status is OK."""
        self._checked("FLUSH", self.request(Request.FLUSH), 1)

    def get_id(self, length: int = ID_LEN) -> bytes:
        """Return the first `length` bytes the device gives as its serial, POISON where it wrote none."""
        return self.request(Request.GET_ID, read_len=length).data

    def discard(self, *segments: tuple[int, int], flags: int = 0) -> Completion:
        """Discard (sector, sectors) ranges."""
        return self.request(Request.DISCARD, 0, pack_segments(segments, flags))

    def write_zeroes(self, *segments: tuple[int, int], flags: int = 0) -> Completion:
        """Write zeroes to (sector, sectors) ranges."""
        return self.request(Request.WRITE_ZEROES, 0, pack_segments(segments, flags))

    def _buffer(self, content: bytes) -> tuple[int, int]:
        gpa = self.arena.alloc(len(content) + len(GUARD))
        self.arena.write(gpa, content + GUARD)
        return gpa, len(content)

    def _release(self, pending: Pending) -> None:
        for gpa, _ in pending.readable + pending.writable:
            self.arena.free(gpa)

    def _checked(self, name: str, completion: Completion, used_len: int) -> Completion:
        if not completion.ok:
            raise DeviceError(f"{name}: status {completion.status}")
        if completion.used_len != used_len:
            raise DeviceError(f"{name}: used length {completion.used_len} instead of {used_len} (2.7.8.2)")
        return completion


def pack_segments(segments: Iterable[tuple[int, int]], flags: int = 0) -> bytes:
    """Return the data of a discard or write-zeroes request: le64 sector, le32 sectors, le32 flags each (5.2.6)."""
    return b"".join(struct.pack("<QII", sector, count, flags) for sector, count in segments)
