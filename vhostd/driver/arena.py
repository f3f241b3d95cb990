"""Guest memory of our own making: sealed memfds, mapped here and shown to a back-end as memory regions.

Guest addresses (gpa), front-end addresses (uva) and our pointers differ in every region on purpose, so that a back-end
which mixes them up is found out.
"""

import contextlib
import fcntl
import itertools
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vhostd.errors import LocalProtocolError
from vhostd.fds import Fd

UVA_BASE = 0x7F00_0000_0000  # added to a gpa where a region names no uva
PAGE_LEN = mmap.PAGESIZE


@dataclass(frozen=True)
class Region:
    """One memory region. All in bytes; `uva` None means UVA_BASE + gpa.

    `mmap_offset` bytes of the memfd lie before the region, as the document allows.
    Spec: vhost-user, "Memory region description".
    """

    gpa: int
    length: int
    uva: int | None = None
    mmap_offset: int = 0

    @property
    def front_uva(self) -> int:
        """The front-end address of the first byte."""
        return UVA_BASE + self.gpa if self.uva is None else self.uva

    @property
    def end(self) -> int:
        """The guest address behind the last byte."""
        return self.gpa + self.length


class _Slot:
    """A region with its memfd and mapping."""

    __slots__ = ("fd", "map", "region")

    def __init__(self, region: Region, *, seal: bool, populate: bool) -> None:
        self.region = region
        self.fd = Fd(os.memfd_create("vhostd-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        total = region.mmap_offset + region.length
        os.ftruncate(self.fd.number, total)
        if seal:
            fcntl.fcntl(self.fd.number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        self.map = mmap.mmap(self.fd.number, total, flags)

    def close(self) -> None:
        self.fd.close()
        # A queue or a caller may hold a view: the mapping then goes with the last of them, never under one's feet.
        with contextlib.suppress(BufferError):
            self.map.close()


class Arena:
    """Shared memory in regions, and an allocator of guest addresses in them.

    `regions` may have holes between them or touch. `seal` adds F_SEAL_SHRINK (without it a test can truncate the
    memfd under the back-end); `populate` faults all pages in, for measurements.
    Raises LocalProtocolError for regions that overlap or are empty.
    """

    def __init__(self, regions: Iterable[Region], *, seal: bool = True, populate: bool = False) -> None:
        self._seal = seal
        self._populate = populate
        self._slots: list[_Slot] = []
        self._free: dict[int, list[tuple[int, int]]] = {}  # region gpa: sorted (start, end) of what is free
        self._taken: dict[int, int] = {}  # gpa: length
        self._closed = False
        try:
            for region in regions:
                self.add(region)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, length: int, *, gpa: int = 0x1000_0000, populate: bool = False) -> Self:
        """Return an arena of one region of `length` bytes, rounded up to a page."""
        return cls([Region(gpa, -(-length // PAGE_LEN) * PAGE_LEN)], populate=populate)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, in the order they were added."""
        return tuple(slot.region for slot in self._slots)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def fd(self, region: Region) -> int:
        """Return the memfd of a region, which the arena keeps owning."""
        return self._slot_of(region).fd.number

    def add(self, region: Region) -> Region:
        """Map one more region, for memory hot-plug; return it."""
        self._check_open()
        if region.length <= 0 or region.gpa < 0 or region.mmap_offset < 0:
            raise LocalProtocolError(f"arena: not a region: {region}")
        for other in self.regions:
            if region.gpa < other.end and other.gpa < region.end:
                raise LocalProtocolError(f"arena: {region} overlaps {other}")
        self._slots.append(_Slot(region, seal=self._seal, populate=self._populate))
        self._free[region.gpa] = [(region.gpa, region.end)]
        return region

    def remove(self, region: Region) -> None:
        """Unmap a region. Raises LocalProtocolError while something is allocated in it."""
        slot = self._slot_of(region)
        if any(region.gpa <= gpa < region.end for gpa in self._taken):
            raise LocalProtocolError(f"arena: {region} has allocations")
        self._slots.remove(slot)
        del self._free[region.gpa]
        slot.close()

    def alloc(self, length: int, align: int = 1, region: Region | None = None) -> int:
        """Return the gpa of `length` zeroed bytes, a multiple of `align`, in `region` or the first that has room.

        Raises LocalProtocolError when no region has room.
        """
        self._check_open()
        if length <= 0 or align <= 0:
            raise LocalProtocolError(f"arena: cannot allocate {length} bytes aligned to {align}")
        for slot in self._slots if region is None else [self._slot_of(region)]:
            for start, end in self._free[slot.region.gpa]:
                gpa = -(-start // align) * align
                if gpa + length <= end:
                    return self.reserve(gpa, length)
        raise LocalProtocolError(f"arena: no room for {length} bytes")

    def reserve(self, gpa: int, length: int) -> int:
        """Take exactly this range, which may run over touching regions; return `gpa`. It is zeroed.

        Raises LocalProtocolError when a byte of it is taken or in no region.
        """
        self._check_open()
        parts = list(self._parts(gpa, length))
        for slot, offset, part_len in parts:
            start = slot.region.gpa + offset
            if not any(a <= start and start + part_len <= b for a, b in self._free[slot.region.gpa]):
                raise LocalProtocolError(f"arena: [{start:#x}, +{part_len}) is taken")
        for slot, offset, part_len in parts:
            self._cut(slot.region.gpa, slot.region.gpa + offset, part_len)
            base = slot.region.mmap_offset + offset
            slot.map[base : base + part_len] = bytes(part_len)
        self._taken[gpa] = length
        return gpa

    def free(self, gpa: int) -> None:
        """Give back what `alloc` or `reserve` returned. Raises LocalProtocolError for any other address."""
        length = self._taken.pop(gpa, None)
        if length is None:
            raise LocalProtocolError(f"arena: {gpa:#x} was not allocated")
        for slot, offset, part_len in self._parts(gpa, length):
            start = slot.region.gpa + offset
            spans = sorted([*self._free[slot.region.gpa], (start, start + part_len)])
            merged = [spans[0]]
            for a, b in spans[1:]:
                if a == merged[-1][1]:
                    merged[-1] = (merged[-1][0], b)
                else:
                    merged.append((a, b))
            self._free[slot.region.gpa] = merged

    @property
    def allocated(self) -> int:
        """Bytes that are allocated now: zero at the end of a test that leaks nothing."""
        return sum(self._taken.values())

    def read(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes at `gpa`, also across touching regions. Raises LocalProtocolError outside."""
        return b"".join(
            slot.map[slot.region.mmap_offset + offset : slot.region.mmap_offset + offset + part_len]
            for slot, offset, part_len in self._parts(gpa, length)
        )

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `gpa`, also across touching regions. Raises LocalProtocolError outside."""
        done = 0
        for slot, offset, part_len in self._parts(gpa, len(data)):
            base = slot.region.mmap_offset + offset
            slot.map[base : base + part_len] = bytes(data[done : done + part_len])
            done += part_len

    def fill(self, gpa: int, length: int, byte: int) -> None:
        """Set `length` bytes at `gpa` to `byte`, to poison what a device must write."""
        self.write(gpa, bytes([byte]) * length)

    def view(self, gpa: int, length: int) -> memoryview:
        """Return a writable view of a range inside one region; the mapping lives as long as the view.

        Raises LocalProtocolError when the range is not inside one region.
        """
        parts = list(self._parts(gpa, length))
        if len(parts) != 1:
            raise LocalProtocolError(f"arena: [{gpa:#x}, +{length}) lies in {len(parts)} regions")
        slot, offset, _ = parts[0]
        base = slot.region.mmap_offset + offset
        return memoryview(slot.map)[base : base + length]

    def uva(self, gpa: int) -> int:
        """Return the front-end address of a guest address, for SET_VRING_ADDR."""
        slot, offset, _ = next(iter(self._parts(gpa, 1)))
        return slot.region.front_uva + offset

    def truncate(self, region: Region, length: int) -> None:
        """Cut an unsealed memfd to `length` bytes: a hostile front-end's move. Raises OSError when it is sealed."""
        os.ftruncate(self._slot_of(region).fd.number, length)

    def close(self) -> None:
        """Unmap everything; a second time does nothing. Views that are held keep their mapping."""
        self._closed = True
        while self._slots:
            self._slots.pop().close()
        self._free.clear()
        self._taken.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LocalProtocolError("arena: used after close")

    def _slot_of(self, region: Region) -> _Slot:
        self._check_open()
        for slot in self._slots:
            if slot.region == region:
                return slot
        raise LocalProtocolError(f"arena: no such region: {region}")

    def _parts(self, gpa: int, length: int) -> Iterable[tuple[_Slot, int, int]]:
        self._check_open()
        if length < 0:
            raise LocalProtocolError(f"arena: negative length {length}")
        at, left = gpa, length
        while left:
            for slot in self._slots:
                if slot.region.gpa <= at < slot.region.end:
                    part_len = min(left, slot.region.end - at)
                    yield slot, at - slot.region.gpa, part_len
                    at += part_len
                    left -= part_len
                    break
            else:
                raise LocalProtocolError(f"arena: {at:#x} is in no region")

    def _cut(self, key: int, start: int, length: int) -> None:
        spans: list[tuple[int, int]] = []
        for a, b in self._free[key]:
            if a <= start and start + length <= b:
                spans += [(x, y) for x, y in ((a, start), (start + length, b)) if x < y]
            else:
                spans.append((a, b))
        self._free[key] = spans


def adjacent(gpa: int, lengths: Sequence[int]) -> list[Region]:
    """Return regions that touch: guest addresses run on, front-end addresses do not."""
    starts = itertools.accumulate(lengths, initial=gpa)
    uvas = itertools.count(UVA_BASE, 1 << 36)
    return [Region(start, length, uva) for start, length, uva in zip(starts, lengths, uvas, strict=False)]
