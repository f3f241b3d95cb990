"""The guest's physical memory: a zone for each kind of object, and page lists of three shapes.

A buffer of a kernel is virtually contiguous; physically it is what pages it got. All addresses and lengths in bytes.
"""

import bisect
import enum
import random
from dataclasses import dataclass, field

from vhostd.driver.arena import Arena, Region
from vhostd.errors import LocalProtocolError

PAGE_LEN = 4096
PAGE_GAP = 0x2000  # from page to page of a scattered buffer


class Layout(enum.Enum):
    """How the pages of a buffer lie."""

    CONTIGUOUS = "contiguous"
    SCATTERED = "scattered"  # ascending, none beside another
    RANDOM = "random"  # any order; neighbours that come out are one piece


class Zone(enum.Enum):
    """Where objects of a kind lie: first address, address behind the last."""

    RINGS = (0x1000_0000, 0x1100_0000)
    TABLES = (0x1100_0000, 0x1200_0000)
    HEADERS = (0x1200_0000, 0x1300_0000)
    IDS = (0x1300_0000, 0x1400_0000)
    DATA = (0x1400_0000, 0x2000_0000)
    RX = (0x2000_0000, 0x3000_0000)
    INLINE = (0x3000_0000, 0x3100_0000)
    FRAMES = (0x3100_0000, 0x3300_0000)
    CONTROL = (0x3300_0000, 0x3400_0000)


REGION = Region(Zone.RINGS.value[0], Zone.CONTROL.value[1] - Zone.RINGS.value[0])
Piece = tuple[int, int]  # address, length


@dataclass(frozen=True)
class Buffer:
    """A buffer as its physical pieces, in order."""

    block: int  # what to free
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        """Bytes in all."""
        return sum(length for _, length in self.pieces)

    def cut(self, start: int, length: int) -> list[Piece]:
        """Return the pieces of a part of it."""
        found: list[Piece] = []
        for gpa, piece_len in self.pieces:
            if start >= piece_len:
                start -= piece_len
                continue
            take = min(piece_len - start, length)
            if take <= 0:
                break
            found.append((gpa + start, take))
            length -= take
            start = 0
        return found


@dataclass
class GuestMemory:
    """An arena cut into zones; what is freed is handed out again, the lowest address first."""

    arena: Arena
    layout: Layout = Layout.CONTIGUOUS
    seed: int = 0
    _next: dict[Zone, int] = field(default_factory=dict)
    _free: dict[tuple[Zone, int], list[int]] = field(default_factory=dict)
    _taken: dict[int, tuple[Zone, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 - pages, not secrets

    def alloc(self, zone: Zone, length: int, align: int = 16) -> int:
        """Return zeroed memory. Raises LocalProtocolError when the zone is full."""
        span = -(-length // align) * align
        heap = self._free.get((zone, span))
        if heap:
            gpa = heap.pop(0)
        else:
            first, end = zone.value
            gpa = -(-self._next.get(zone, first) // align) * align
            if gpa + span > end:
                raise LocalProtocolError(f"the guest's memory for {zone.name} is full")
            self._next[zone] = gpa + span
        self.arena.reserve(gpa, span)
        self._taken[gpa] = (zone, span)
        return gpa

    def free(self, gpa: int) -> None:
        """Give back what `alloc` returned."""
        zone, span = self._taken.pop(gpa)
        self.arena.free(gpa)
        bisect.insort(self._free.setdefault((zone, span), []), gpa)

    def buffer(self, zone: Zone, length: int, layout: Layout | None = None) -> Buffer:
        """Return a page-aligned buffer whose pages lie as `layout` says."""
        pages = -(-length // PAGE_LEN)
        shape = layout or self.layout
        if shape is Layout.CONTIGUOUS:
            block = self.alloc(zone, pages * PAGE_LEN, PAGE_LEN)
            starts = [block + n * PAGE_LEN for n in range(pages)]
        else:
            block = self.alloc(zone, pages * PAGE_GAP, PAGE_LEN)
            starts = [block + n * PAGE_GAP for n in range(pages)]
            if shape is Layout.RANDOM:
                every = range(block, block + pages * PAGE_GAP, PAGE_LEN)
                starts = self._dice.sample(every, pages)
        pieces: list[Piece] = []
        for n, start in enumerate(starts):
            piece_len = min(PAGE_LEN, length - n * PAGE_LEN)
            if pieces and sum(pieces[-1]) == start:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + piece_len)
            else:
                pieces.append((start, piece_len))
        return Buffer(block, tuple(pieces))

    def read(self, pieces: list[Piece] | tuple[Piece, ...]) -> bytes:
        """Return what pieces hold."""
        return b"".join(self.arena.read(gpa, length) for gpa, length in pieces)

    def write(self, pieces: list[Piece] | tuple[Piece, ...], data: bytes) -> None:
        """Write over pieces as far as `data` goes."""
        at = 0
        for gpa, length in pieces:
            self.arena.write(gpa, data[at : at + length])
            at += length

    def taken(self) -> list[Piece]:
        """Return everything that is allocated."""
        return [(gpa, span) for gpa, (_, span) in sorted(self._taken.items())]
