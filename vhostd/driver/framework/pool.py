"""Shared memory for buffers: so many, so long, made once.

What a device demands of a buffer is checked when the buffer is made, not each time it is used.
"""

import dataclasses
from collections.abc import Iterator

from vhostd.driver.arena import Arena
from vhostd.errors import LocalProtocolError


@dataclasses.dataclass(frozen=True, slots=True)
class Constraints:
    """What a buffer's memory must be like, all in bytes; frozen: another use makes a copy with dataclasses.replace.

    align: of its first byte. segment_len_max: of one descriptor. segments_max: of all of it. first_len_min: of the
    first segment, which holds what must not be torn (a header).
    """

    align: int = 16
    segment_len_max: int = 1 << 31
    segments_max: int = 1 << 15
    first_len_min: int = 1


class Buffer:
    """One buffer of a pool: `length` bytes of guest memory at `gpa`, in one piece, told in segments."""

    __slots__ = ("gpa", "length", "pool", "segments", "taken")

    def __init__(self, pool: "Pool", gpa: int, length: int) -> None:
        self.pool = pool
        self.gpa = gpa
        self.length = length
        self.taken = False
        self.segments = tuple(cut_up(gpa, length, pool.constraints))

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of it. Raises LocalProtocolError outside."""
        length = self.length - offset if length is None else length
        self._check(offset, length)
        return self.pool.arena.read(self.gpa + offset, length)

    def write(self, data: bytes, offset: int = 0) -> None:
        """Put bytes into it. Raises LocalProtocolError outside."""
        self._check(offset, len(data))
        self.pool.arena.write(self.gpa + offset, data)

    def fill(self, byte: int) -> None:
        """Set every byte, to poison what a device must write."""
        self.pool.arena.fill(self.gpa, self.length, byte)

    def view(self, offset: int, length: int) -> memoryview:
        """Return a view of bytes of it, good while the buffer is taken."""
        self._check(offset, length)
        return self.pool.arena.view(self.gpa + offset, length)

    def give(self) -> None:
        """Give it back to its pool."""
        self.pool.give(self)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise LocalProtocolError(f"buffer: {length} bytes at {offset} of {self.length}")


def cut_up(gpa: int, length: int, constraints: Constraints) -> Iterator[tuple[int, int]]:
    """Yield the segments of a range as (gpa, length). Raises LocalProtocolError for one that breaks a constraint."""
    if gpa % constraints.align:
        raise LocalProtocolError(f"buffer: {gpa:#x} is not aligned to {constraints.align}")
    count = -(-length // constraints.segment_len_max)
    if count > constraints.segments_max:
        raise LocalProtocolError(f"buffer: {length} bytes take {count} segments, {constraints.segments_max} may be")
    if min(length, constraints.segment_len_max) < constraints.first_len_min:
        raise LocalProtocolError(f"buffer: a first segment of fewer than {constraints.first_len_min} bytes")
    for at in range(0, length, constraints.segment_len_max):
        yield gpa + at, min(constraints.segment_len_max, length - at)


class Pool:
    """`count` buffers of `length` bytes, taken from the arena in one go. The last one given back is the next taken.

    Raises LocalProtocolError when the arena has no room or the constraints cannot be met.
    """

    def __init__(self, arena: Arena, count: int, length: int, constraints: Constraints | None = None) -> None:
        self.arena = arena
        self.count = count
        self.constraints = constraints or Constraints()
        stride = -(-length // self.constraints.align) * self.constraints.align
        self._gpa: int | None = arena.alloc(stride * count, self.constraints.align)
        try:
            self.buffers = tuple(Buffer(self, self._gpa + n * stride, length) for n in range(count))
        except BaseException:
            self.close()
            raise
        self._free = list(reversed(self.buffers))
        self.low = count  # the fewest that were ever free

    @property
    def free(self) -> int:
        """How many can be taken now: a snapshot."""
        return len(self._free)

    def take(self) -> Buffer | None:
        """Take a buffer, or None when there is none."""
        if not self._free:
            return None
        buffer = self._free.pop()
        buffer.taken = True
        self.low = min(self.low, len(self._free))
        return buffer

    def give(self, buffer: Buffer) -> None:
        """Give a buffer back. Raises LocalProtocolError for one that is not out: it would have two owners."""
        if buffer.pool is not self or not buffer.taken:
            raise LocalProtocolError("pool: a buffer that was not taken here is given back")
        buffer.taken = False
        self._free.append(buffer)

    def close(self) -> None:
        """Give the memory back to the arena; a second time does nothing. The device has none of it any more."""
        if self._gpa is not None and not self.arena.closed:
            self.arena.free(self._gpa)
        self._gpa = None
        self._free = []
