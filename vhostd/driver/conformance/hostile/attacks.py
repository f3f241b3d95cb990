"""Descriptors, tables and indexes that no driver makes, as things to do to a ring, whoever does them."""

import struct
from collections.abc import Callable

from vhostd.driver.arena import Arena
from vhostd.driver.virtqueue import Virtqueue

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 64  # of the rings they are made for
DATA_LEN = 512
FAR = 1 << 40  # in no region
START = 0x1000_0000  # where memory begins
Part = tuple[int, int, int]  # address, length, flags
Entry = tuple[int, int, int, int]  # and next


class Prepared:
    """A place in memory for one good request: a read of a sector, or a frame to send.

    header: what the device reads first, 16 bytes of a disk's request, 12 of a frame.
    """

    def __init__(self, queue: Virtqueue, arena: Arena, header: bytes) -> None:
        self.queue = queue
        self.arena = arena
        self.header = header
        self.head = arena.alloc(128, 16)
        self.data = arena.alloc(DATA_LEN, 16)
        self.status = arena.alloc(1)
        arena.write(self.head, header)
        arena.fill(self.status, 1, 0xFF)

    def parts(self) -> list[Part]:
        """Return the parts of the request."""
        if len(self.header) < 16:
            return [(self.head, len(self.header), 0), (self.data, 60, 0)]
        return [(self.head, 16, 0), (self.data, DATA_LEN, WRITE), (self.status, 1, WRITE)]

    @property
    def end(self) -> int:
        """Where memory ends."""
        return self.arena.regions[-1].end

    def note(self, line: str) -> None:
        """Hear what is done, in words."""


class RawRing(Prepared):
    """A split ring to write descriptors into."""

    def __init__(self, queue: Virtqueue, arena: Arena, header: bytes) -> None:
        super().__init__(queue, arena, header)
        self.first_used = queue.used_idx

    def used(self) -> int:
        """Return how many elements were used since this was made."""
        return (self.queue.used_idx - self.first_used) % 65536

    def desc(self, index: int, addr: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write a descriptor."""
        self.note(f"descriptor {index}: address {addr:#x}, length {length}, flags {flags:#x}, next {following}")
        self.queue.raw_desc(index, addr, length, flags, following)

    def chain(self, *parts: Part, first: int = 0) -> int:
        """Put parts into successive descriptors, linked; return the first."""
        for n, (addr, length, flags) in enumerate(parts):
            last = n + 1 == len(parts)
            self.desc(first + n, addr, length, flags | (0 if last else NEXT), 0 if last else first + n + 1)
        return first

    def good(self, first: int = 0) -> int:
        """Write a good request from descriptor `first` on."""
        return self.chain(*self.parts(), first=first)

    def entries(self) -> list[Entry]:
        """Return a good request as entries of a table."""
        parts = self.parts()
        return [
            (addr, length, flags | (NEXT if n + 1 < len(parts) else 0), (n + 1) % len(parts))
            for n, (addr, length, flags) in enumerate(parts)
        ]

    def table(self, *entries: Entry, length: int | None = None, flags: int = 0) -> int:
        """Write an indirect table and, as descriptor 0, what refers to it; return its address."""
        raw = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
        at = self.arena.alloc(max(len(raw), 16), 16)
        self.arena.write(at, raw)
        self.note("indirect table: " + "; ".join(f"{a:#x} {n} {f:#x} {x}" for a, n, f, x in entries[:6]))
        self.desc(0, at, len(raw) if length is None else length, INDIRECT | flags, 1)
        return at

    def offer(self, *heads: int) -> None:
        """Make heads available, 0 when none is named, and kick."""
        for head in heads or (0,):
            self.queue.raw_push(head)
        self.note(f"heads {', '.join(map(str, heads or (0,)))} are made available; kick")
        self.queue.kick(force=True)


Attack = Callable[[RawRing], None]


def links(*pairs: tuple[int, int], length: int = 16, flags: int = 0) -> Attack:
    """Descriptors that lead to each other in any way."""

    def attack(ring: RawRing) -> None:
        for index, following in pairs:
            ring.queue.raw_desc(index, ring.head, length, flags | NEXT, following)
        ring.note("descriptors linked: " + " ".join(f"{a}->{b}" for a, b in pairs[:6]))
        ring.offer(pairs[0][0])

    return attack


def jump(by: int) -> Attack:
    """An available index that has gone somewhere."""

    def attack(ring: RawRing) -> None:
        ring.good()
        ring.note(f"avail.idx goes on by {by}; kick")
        ring.queue.avail_idx = (ring.queue.avail_idx + by) % 65536
        ring.queue.kick(force=True)

    return attack


def table_at(address: int, length: int = 48) -> Attack:
    """A descriptor of an indirect table that lies anywhere."""

    def attack(ring: RawRing) -> None:
        ring.desc(0, address, length, INDIRECT)
        ring.offer()

    return attack


def tabled(change: Callable[[RawRing], list[Entry]], length: int | None = None, flags: int = 0) -> Attack:
    """A table of such entries."""

    def attack(ring: RawRing) -> None:
        ring.table(*change(ring), length=length, flags=flags)
        ring.offer()

    return attack


def direct(*parts: Callable[[RawRing], Part] | Part) -> Attack:
    """A chain of such parts."""

    def attack(ring: RawRing) -> None:
        ring.chain(*(part(ring) if callable(part) else part for part in parts))
        ring.offer()

    return attack


def straddling(ring: RawRing) -> None:
    """A table whose first entry is the last 16 bytes of memory, and leads on."""
    ring.arena.write(ring.end - 16, struct.pack("<QIHH", ring.head, 16, NEXT, 1))
    table_at(ring.end - 16)(ring)


def h(ring: RawRing) -> Part:
    """The header of a good request."""
    return ring.head, 16, 0


def d(ring: RawRing) -> Part:
    """Its data."""
    return ring.data, DATA_LEN, WRITE


def s(ring: RawRing) -> Part:
    """Its status."""
    return ring.status, 1, WRITE


NO_HEADS: dict[str, Attack] = {
    "R1-head-is-size": lambda ring: ring.offer(SIZE),
    "R2-head-60000": lambda ring: ring.offer(60000),
    "R3-head-65535": lambda ring: ring.offer(65535),
    "R50-avail-idx-1-too-far": jump(SIZE + 1),
    "R50-avail-idx-32768": jump(32768),
    "R50-avail-idx-65535": jump(65535),
}
LINKS: dict[str, Attack] = {
    "R10-self": links((0, 0)),
    "R10-loop-of-2": links((0, 1), (1, 0)),
    "R10-loop-of-n": links(*((n, (n + 1) % SIZE) for n in range(SIZE))),
    "R10-loop-behind-a-start": links((0, 1), (1, 2), (2, 1)),
    "R10-loop-of-writable": links((5, 6), (6, 5), flags=WRITE),
    "R11-empty-self": links((0, 0), length=0),
    "R11-empty-loop": links((0, 1), (1, 2), (2, 0), length=0),
    "R12-next-is-size": links((0, SIZE)),
    "R12-next-60000": links((0, 60000)),
    "R12-next-65535": links((0, 1), (1, 65535)),
    "R13-one-more-than-size": links(*((n, n + 1) for n in range(SIZE - 1)), (SIZE - 1, 3)),
}
TABLES: dict[str, Attack] = {
    "R20-table-of-0-bytes": table_at(START + 4096, 0),
    "R20-table-of-1-byte": table_at(START + 4096, 1),
    "R20-table-of-15-bytes": table_at(START + 4096, 15),
    "R21-table-of-4-GiB": table_at(START + 4096, 0xFFFFFFF0),
    "R22-indirect-at-once": tabled(lambda ring: [(ring.head, 16, INDIRECT, 0)]),
    "R24-next-past-the-table": tabled(lambda ring: [(ring.head, 16, NEXT, 3), *ring.entries()[1:]]),
    "R24-next-65535": tabled(lambda ring: [(ring.head, 16, NEXT, 65535), *ring.entries()[1:]]),
    "R24-loop-in-the-table": tabled(lambda ring: [(ring.head, 16, NEXT, 1), (ring.head, 16, NEXT, 0)]),
    "R24-empty-loop-in-the-table": tabled(lambda ring: [(ring.head, 0, NEXT, 0)]),
    "R30-table-unmapped": table_at(FAR),
    "R31-table-straddles-the-end": straddling,
    "R32-table-wraps": table_at(2**64 - 16),
}
# What 2.7.5.3.1 forbids to drivers, and some devices make sense of: a table has length / 16 entries (2.7.5.3).
ODD_TABLES: dict[str, Attack] = {
    "R20-table-of-17-bytes": table_at(START + 4096, 17),
    "R20-table-of-47-bytes": tabled(RawRing.entries, length=47),
    "R22-indirect-in-the-middle": tabled(
        lambda ring: [(ring.head, 16, NEXT, 1), (ring.data, 64, INDIRECT | NEXT, 2), (ring.status, 1, WRITE, 0)]
    ),
    "R23-indirect-with-next": tabled(RawRing.entries, flags=NEXT),
}
DISK: dict[str, Attack] = {
    "R30-status-unmapped": direct(h, d, (FAR, 1, WRITE)),
    "R31-status-straddles-the-end": direct(h, d, lambda ring: (ring.end - 1, 2, WRITE)),
    "R32-status-wraps": direct(h, d, (2**64 - 1, 2, WRITE)),
    "R34-status-at-the-top": direct(h, d, (2**64 - 1, 1, WRITE)),
    "B24-nothing-writable": direct(h, lambda ring: (ring.data, DATA_LEN, 0), lambda ring: (ring.status, 1, 0)),
    "B24-status-of-no-bytes": direct(h, lambda ring: (ring.status, 0, WRITE)),
    "B24-header-only": direct(h),
    "B25-nothing-at-all": direct((FAR, 0, 0)),
}
ERRORS: dict[str, Attack] = {
    "R30-data-unmapped": direct(h, (FAR, DATA_LEN, WRITE), s),
    "R30-header-unmapped": direct((FAR, 16, 0), d, s),
    "R31-data-straddles-the-end": direct(h, lambda ring: (ring.end - 100, DATA_LEN, WRITE), s),
    "R31-header-straddles-the-end": direct(lambda ring: (ring.end - 8, 16, 0), d, s),
    "R32-data-wraps": direct(h, (2**64 - 256, DATA_LEN, WRITE), s),
    "R32-header-wraps": direct((2**64 - 8, 16, 0), d, s),
    "R34-data-at-the-top": direct(h, (2**64 - 1, 1, WRITE), s),
    "R34-header-at-the-top": direct((2**64 - 1, 1, 0), d, s),
    "R35-data-of-4-GiB": direct(h, (FAR, 0xFFFFFE00, WRITE), s),
    "B23-header-of-15-bytes": direct(lambda ring: (ring.head, 15, 0), d, s),
    "B26-read-into-readable": direct(h, lambda ring: (ring.data, DATA_LEN, 0), s),
    "R36-sum-past-32-bits": direct(h, (FAR, 0xFFFFFFFF, WRITE), (FAR, 0xFFFFFFFF, WRITE), s),
    "B23-header-writable": direct(lambda ring: (ring.head, 16, WRITE), d, s),
    "B25-status-alone": direct(s),
}
ORDERS: dict[str, Attack] = {
    "B27-writable-first": direct(s, h),
    "B27-readable-in-between": direct(h, d, h, s),
}
