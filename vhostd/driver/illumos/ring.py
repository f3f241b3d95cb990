"""Ring memory, the numbering of heads, chains of both kinds, submit and flush.

One zeroed, page-aligned block holds descriptors, available ring and used ring; EVENT_IDX is never taken. A head comes
from a next-fit space of numbers. An indirect chain keeps one descriptor and its table for life; a direct one takes a
descriptor for each append.
"""

import itertools
import os
import select
import struct
import threading
import time
from dataclasses import dataclass, field

from vhostd.driver.illumos.failures import GuestCorrupted, GuestHangs, GuestPanics
from vhostd.driver.illumos.memory import GuestMemory, Zone
from vhostd.driver.layout import RingLayout, legacy_layout, modern_layout
from vhostd.errors import LocalProtocolError
from vhostd.fds import Fd

NEXT, WRITE, INDIRECT = 1, 2, 4
DESC_LEN = 16
NO_INTERRUPT = 1  # avail.flags
NO_NOTIFY = 1  # used.flags
PAGE_LEN = 4096
POLL_MAX = 0.02  # seconds a device may look for work before it asks for kicks; what polls for ever is not waited for
STORE_BUFFER_MAX = 0.0005  # seconds; a device looks again 1 ms or more after it asked for kicks (R2.60-D)
_DESC = struct.Struct("<QIHH")


class Numbers:
    """A next-fit space of 0..size-1: upward from the last, and from the lowest free when the end is reached."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken: set[int] = set()
        self._next = 0

    def take(self) -> int | None:
        """Return the next free number, None when there is none."""
        for number in itertools.chain(range(self._next, self.size), range(self._next)):
            if number not in self._taken:
                self._taken.add(number)
                self._next = number + 1
                return number
        return None

    def give(self, number: int) -> None:
        """Make a number free again."""
        self._taken.remove(number)


def ring_layout(size: int, *, legacy: bool) -> RingLayout:
    """Return where the three parts lie: the used ring on the next 4096 (legacy) or 16 (modern) boundary."""
    return legacy_layout(size, PAGE_LEN) if legacy else modern_layout(size, event_idx=False)


class NoRoom(LocalProtocolError):  # noqa: N818 - a condition the driver lives with
    """A chain that the ring has no descriptors for."""


@dataclass(eq=False)
class Chain:
    """A chain being made or in flight. `writable_len` is how many bytes the device may write."""

    queue: "Ring"
    max_segs: int
    head: int | None = None
    table: int | None = None
    entries: list[tuple[int, int, int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    submitted: float = 0.0
    token: object = None

    def __post_init__(self) -> None:
        if self.queue.indirect:
            self.head = self.queue.number()
            self.table = self.queue.memory.alloc(Zone.TABLES, self.max_segs * DESC_LEN, PAGE_LEN)

    @property
    def writable_len(self) -> int:
        """Bytes the device may write."""
        return sum(length for _, length, flags in self.entries if flags & WRITE)

    def append(self, gpa: int, length: int, *, write: bool = False) -> None:
        """Add a segment. Raises NoRoom when the chain or the ring is full."""
        if len(self.entries) == self.max_segs:
            raise NoRoom(f"a chain has {self.max_segs} segments at most")
        if not self.queue.indirect:
            self.numbers.append(self.queue.number())
            self.head = self.numbers[0]
        self.entries.append((gpa, length, WRITE if write else 0))

    def lay(self) -> None:
        """Write the descriptors to memory."""
        last = len(self.entries) - 1
        for n, (gpa, length, flags) in enumerate(self.entries):
            if self.table is not None:
                following = n + 1 if n < last else 0
                self.queue.memory.arena.write(
                    self.table + DESC_LEN * n, _DESC.pack(gpa, length, flags | (NEXT if n < last else 0), following)
                )
            else:
                following = self.numbers[n + 1] if n < last else 0
                self.queue.lay(self.numbers[n], gpa, length, flags | (NEXT if n < last else 0), following)
        if self.table is not None:
            assert self.head is not None
            self.queue.lay(self.head, self.table, DESC_LEN * len(self.entries), INDIRECT, 0)

    def clear(self) -> None:
        """Make it empty again: the table is zeroed, direct descriptors are given back."""
        if self.table is not None:
            self.queue.memory.arena.write(self.table, bytes(DESC_LEN * self.max_segs))
        for number in self.numbers:
            self.queue.numbers.give(number)
        self.numbers.clear()
        self.entries.clear()
        if self.table is None:
            self.head = None

    def free(self) -> None:
        """Give up what it keeps for life."""
        self.clear()
        if self.table is not None:
            assert self.head is not None
            self.queue.numbers.give(self.head)
            self.queue.memory.free(self.table)
            self.table = None


class Ring:
    """One queue. `fence` is whether the index is visible before the device's wish is read."""

    def __init__(
        self, memory: GuestMemory, index: int, size: int, *, legacy: bool, indirect: bool, fence: bool = True
    ) -> None:
        self.memory = memory
        self.index = index
        self.size = size
        self.indirect = indirect
        self.fence = fence
        self.layout = ring_layout(size, legacy=legacy)
        self.gpa = memory.alloc(Zone.RINGS, -(-self.layout.length // PAGE_LEN) * PAGE_LEN, PAGE_LEN)
        self._view = memory.arena.view(self.gpa, self.layout.length)
        self._avail = self._view[self.layout.avail : self.layout.avail + 4 + 2 * size].cast("H")
        self._used = self._view[self.layout.used : self.layout.used + 4].cast("H")
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick_fd, self.call_fd, self.err_fd = (Fd(os.eventfd(0, flags)) for _ in range(3))
        self.numbers = Numbers(size)
        self.in_flight: dict[int, Chain] = {}
        self.kicks = 0
        self.kicks_withheld = 0
        self._avail_idx = 0
        self._used_idx = 0
        self._barrier = threading.Lock()
        self.kicking = True
        self.watch_fd = -1  # for those who hand rings on; nothing here watches a socket

    @property
    def parts(self) -> tuple[int, int, int]:
        """Guest addresses of descriptors, available ring and used ring."""
        return self.gpa, self.gpa + self.layout.avail, self.gpa + self.layout.used

    @property
    def uvas(self) -> tuple[int, int, int]:
        """Their front-end addresses."""
        desc, avail, used = (self.memory.arena.uva(gpa) for gpa in self.parts)
        return desc, avail, used

    @property
    def used_gpa(self) -> int:
        """The used ring's guest address."""
        return self.parts[2]

    @property
    def used_idx(self) -> int:
        """used.idx as the device wrote it."""
        return int(self._used[1])

    @property
    def avail_idx(self) -> int:
        """avail.idx as it stands in memory."""
        return int(self._avail[1])

    @property
    def avail_flags(self) -> int:
        """avail.flags: NO_INTERRUPT or nothing."""
        return int(self._avail[0])

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self._avail[0] = value

    def dump(self) -> bytes:
        """Return the whole block of ring memory."""
        return bytes(self._view)

    def number(self) -> int:
        """Return a descriptor number. Raises NoRoom."""
        number = self.numbers.take()
        if number is None:
            raise NoRoom(f"all {self.size} descriptors are taken")
        return number

    def lay(self, number: int, gpa: int, length: int, flags: int, following: int) -> None:
        """Write one descriptor of the ring."""
        _DESC.pack_into(self._view, DESC_LEN * number, gpa, length, flags, following)

    def submit(self, chain: Chain, token: object = None) -> None:
        """Put a chain's head into the available ring; `flush` makes it visible."""
        chain.lay()
        assert chain.head is not None
        chain.token = token
        chain.submitted = time.monotonic()
        self._avail[2 + self._avail_idx % self.size] = chain.head
        self._avail_idx = (self._avail_idx + 1) % 65536
        self.in_flight[chain.head] = chain

    def flush(self) -> None:
        """Make the index visible, and kick unless the device wants none."""
        if self.fence:
            self._avail[1] = self._avail_idx
            with self._barrier:  # a locked instruction: the index is out before the flag is read
                pass
            quiet = self._used[0] & NO_NOTIFY
        else:
            quiet = self._flag_before_index()
        if quiet:
            self.kicks_withheld += 1
        elif self.kicking:
            self.kicks += 1
            os.eventfd_write(self.kick_fd.number, 1)

    def _flag_before_index(self) -> int:
        """Make the index visible as a processor may that has no fence between: after it read the flag, which returns.

        The store waits in its buffer, here until the device has gone to sleep on what it last saw. No store buffer
        outlives an interrupt, though: had we been kept off the processor, the flag would be read anew.
        """
        until = time.monotonic() + POLL_MAX
        seen = time.monotonic()
        quiet = self._used[0] & NO_NOTIFY
        while quiet:
            looked = time.monotonic()
            if not self._used[0] & NO_NOTIFY or looked > until:
                break
            seen = looked
        self._avail[1] = self._avail_idx
        return quiet if time.monotonic() - seen < STORE_BUFFER_MAX else 0

    def reap(self) -> list[tuple[Chain, int]]:
        """Return the chains that came back, with the length the device says it wrote.

        Raises GuestPanics for an id that names none, GuestCorrupted for more bytes than the chain has writable.
        """
        found = []
        while self._used_idx != self._used[1]:
            if (self._used[1] - self._used_idx) % 65536 > self.size:
                raise GuestPanics("illumos_R3.4", f"used.idx ran {self._used[1] - self._used_idx} ahead")
            at = self.layout.used + 4 + 8 * (self._used_idx % self.size)
            number, length = struct.unpack_from("<II", self._view, at)
            if number >= self.size:
                raise GuestPanics("illumos_E8", f"used id {number} of a ring of {self.size}")
            chain = self.in_flight.pop(number, None)
            if chain is None:
                raise GuestPanics("illumos_E8", f"used id {number} names no chain in flight")
            if length > chain.writable_len:
                raise GuestCorrupted("illumos_R2.25", f"used length {length} of {chain.writable_len} writable bytes")
            self._used_idx = (self._used_idx + 1) % 65536
            found.append((chain, length))
        return found

    def interrupted(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for an interrupt; take it."""
        if not select.select([self.call_fd.number], [], [], max(0.0, timeout))[0]:
            return False
        try:
            os.eventfd_read(self.call_fd.number)
        except BlockingIOError:
            return False
        return True

    def wait(self, row: str, deadline: float) -> list[tuple[Chain, int]]:
        """Wait for an interrupt that brings chains. Raises GuestHangs when none does."""
        while True:
            if not self.interrupted(deadline - time.monotonic()):
                behind = " though used.idx moved" if self._used_idx != self._used[1] else ""
                raise GuestHangs(row, f"no interrupt came{behind}, {len(self.in_flight)} chains are in flight")
            found = self.reap()
            if found:
                return found

    def evacuate(self) -> list[Chain]:
        """Claw back what the device had, after it was reset."""
        chains = list(self.in_flight.values())
        self.in_flight.clear()
        return chains

    def restart(self) -> None:
        """Zero the ring's memory and begin at 0, after a reset; chains keep their heads."""
        self._view[:] = bytes(len(self._view))
        self._avail_idx = self._used_idx = 0

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            fd.close()
        self._avail.release()
        self._used.release()
        self._view.release()
