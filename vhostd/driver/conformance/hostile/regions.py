"""Chains over the borders of memory regions, long ones, and ones that aim at their own ring (HOSTILE R26, R40 to R54).

Regions that touch are one memory to a guest, which does not know of them: what lies over a border works. What lies
over a hole does not exist. Buffers that are the ring itself hurt the guest that made them, and nobody else.
"""

import struct
from collections.abc import Callable

from vhostd.driver.arena import Region, adjacent
from vhostd.driver.conformance.case import BLOCK, Mark, RingFeature, Row, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.conformance.hostile.attacks import DATA_LEN, INDIRECT, NEXT, SIZE, START, WRITE, Entry, Part
from vhostd.driver.conformance.hostile.rings import Ring
from vhostd.driver.conformance.hostile.tools import MIB
from vhostd.errors import DeviceError
from vhostd.spec.blk import StatusByte

HOSTILE = [Mark.HOSTILE]
MEMORY = 'virtio 2.7.5; vhost-user, "Memory access"'
PAIR = adjacent(START, [4 * MIB, 4 * MIB])
BORDER = PAIR[0].end
APART = [Region(START, 4 * MIB), Region(START + 8 * MIB, 4 * MIB)]


def _read(ring: Ring, expected: bytes, pieces: list[Part]) -> None:
    """Hold a read to its status, its used length and its bytes, which lie in `pieces`."""
    check = ring.check
    try:
        _, used = ring.queue.raw_wait(check.timeout)
    except DeviceError:
        check.expect(False, "a used element", ring.said() or "none")
        return
    check.equal(ring.arena.read(ring.status, 1)[0], int(StatusByte.OK), "status")
    check.at_most(used, sum(length for _, length, _ in pieces) + 1, "used length")
    check.equal(b"".join(ring.arena.read(at, length) for at, length, _ in pieces), expected, "the bytes of the disk,")


def _read_or_told(ring: Ring, expected: bytes, pieces: list[Part]) -> None:
    """As `_read`, for what a device may refuse: by an error status, or by a broken ring of which it speaks."""
    check = ring.check
    try:
        ring.queue.raw_wait(check.timeout)
    except DeviceError:
        ring.told(ring.said(), "the read, or status IOERR")
        return
    status = ring.arena.read(ring.status, 1)[0]
    if status == StatusByte.OK:
        check.equal(b"".join(ring.arena.read(at, n) for at, n, _ in pieces), expected, "the bytes of the disk,")
    else:
        check.expect(status in {StatusByte.IOERR, StatusByte.UNSUPP}, "status OK or IOERR", f"status {status:#x}")


@case("HOST-R40", MEMORY, kinds=BLOCK, marks=HOSTILE, rows={"1": 1, "100": 100, "511": 511})
def data_over_two_regions(check: Check, before: int) -> None:
    """Data that lies in two regions which touch is one buffer."""
    with check.guest(size=SIZE, arena=check.arena(*PAIR)) as guest:
        ring = Ring(check, guest)
        ring.data = ring.arena.reserve(BORDER - before, DATA_LEN)
        ring.good()
        ring.offer()
        _read(ring, check.scratch.known[:DATA_LEN], [(ring.data, DATA_LEN, 0)])


@case("HOST-R41", MEMORY, kinds=BLOCK, marks=HOSTILE, rows={"1": 1, "8": 8, "15": 15})
def a_header_over_two_regions(check: Check, before: int) -> None:
    """A header that lies in two regions which touch is one header."""
    with check.guest(size=SIZE, arena=check.arena(*PAIR)) as guest:
        ring = Ring(check, guest)
        head = ring.arena.reserve(BORDER - before, 16)
        ring.arena.write(head, ring.arena.read(ring.head, 16))
        ring.head = head
        ring.good()
        ring.offer()
        _read(ring, check.scratch.known[:DATA_LEN], [(ring.data, DATA_LEN, 0)])


def _table(ring: Ring, at: int, entries: list[Entry]) -> None:
    ring.arena.write(at, b"".join(struct.pack("<QIHH", *entry) for entry in entries))
    ring.check.note(f"indirect table of {len(entries)} entries at {at:#x}")
    ring.desc(0, at, 16 * len(entries), INDIRECT)
    ring.offer()


INDIRECT_ONLY = RingFeature.INDIRECT_DESC
BEFORE = {"8": 8, "8200": 8200, "16376": 16376}  # bytes of the table that lie in the first region


@case("HOST-R43", MEMORY, features=INDIRECT_ONLY, kinds=BLOCK, marks=HOSTILE, rows={"8": 8, "16": 16, "40": 40})
def a_table_over_two_regions(check: Check, before: int) -> None:
    """An indirect table that lies in two regions which touch is one table, cut between entries or in one."""
    with check.guest(size=SIZE, arena=check.arena(*PAIR)) as guest:
        ring = Ring(check, guest)
        _table(ring, ring.arena.reserve(BORDER - before, 48), ring.entries())
        _read(ring, check.scratch.known[:DATA_LEN], [(ring.data, DATA_LEN, 0)])


def _linked(parts: list[Part]) -> list[Entry]:
    last = len(parts) - 1
    return [
        (at, n, flags | (NEXT if i < last else 0), i + 1 if i < last else 0) for i, (at, n, flags) in enumerate(parts)
    ]


def _long(ring: Ring, count: int) -> tuple[list[Entry], list[Part]]:
    """Return a read of a sector, in a chain of `count` descriptors, and where its bytes go."""
    room = ring.arena.alloc(DATA_LEN)
    lengths = [1] * min(count - 2, DATA_LEN)
    lengths[-1] += DATA_LEN - sum(lengths)
    lengths += [0] * (count - 2 - len(lengths))
    pieces, at = [], room
    for length in lengths:
        pieces.append((at, length, WRITE))
        at += length
    return _linked([(ring.head, 16, 0), *pieces, (ring.status, 1, WRITE)]), pieces


@case(
    "HOST-R44", MEMORY, features=INDIRECT_ONLY, kinds=BLOCK, marks=HOSTILE, rows={"8": 8, "8200": 8200, "16376": 16376}
)
def a_long_table_over_two_regions(check: Check, before: int) -> None:
    """A table of 1024 entries over two regions is read or refused, and never past the place it was copied to."""
    with check.guest(size=SIZE, arena=check.arena(*PAIR)) as guest:
        ring = Ring(check, guest)
        entries, pieces = _long(ring, 1024)
        _table(ring, ring.arena.reserve(BORDER - before, 16384), entries)
        _read_or_told(ring, check.scratch.known[:DATA_LEN], pieces)


LENGTHS = {str(n): n for n in (63, 64, 65, 127, 128, 129, 515, 1023, 1024, 1025, 4096, 32768, 65535)}


@case("HOST-R26", "virtio 2.7.5.3", features=INDIRECT_ONLY, kinds=BLOCK, marks=HOSTILE, rows=LENGTHS)
def a_table_of_any_length(check: Check, count: int) -> None:
    """A table of any length, one longer than the queue, too, which no driver may make, is read or refused."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        entries, pieces = _long(ring, count)
        _table(ring, ring.arena.alloc(16 * count, 16), entries)
        _read_or_told(ring, check.scratch.known[:DATA_LEN], pieces)


HOLES: dict[str, Callable[[Ring, int], object] | Row] = {
    "header": lambda r, at: r.chain((at, 16, 0), (r.data, DATA_LEN, WRITE), (r.status, 1, WRITE)),
    "data": lambda r, at: r.chain((r.head, 16, 0), (at, 4 * MIB + DATA_LEN, WRITE), (r.status, 1, WRITE)),
    "data-and-status": lambda r, at: r.chain((r.head, 16, 0), (r.data, DATA_LEN - 7, WRITE), (at, 4 * MIB + 16, WRITE)),
    "table": Row(lambda r, at: r.desc(0, at, 48, INDIRECT), features=int(INDIRECT_ONLY)),
}


@case("HOST-R45", MEMORY, kinds=BLOCK, marks=HOSTILE, rows=HOLES)
def a_hole_between_regions(check: Check, attack: Callable[[Ring, int], object]) -> None:
    """What lies over a hole is not memory: an error status, or a broken ring of which the back-end speaks."""
    with check.guest(size=SIZE, arena=check.arena(*APART)) as guest:
        ring = Ring(check, guest)
        attack(ring, APART[0].end - 8)
        ring.offer()
        try:
            ring.queue.raw_wait(check.timeout)
        except DeviceError:
            ring.told(ring.said(), "status IOERR")
            return
        # The last byte of the longest one is memory again, behind the hole: a status may stand there.
        places = ring.status, APART[1].gpa + 7
        found = {ring.arena.read(at, 1)[0] for at in places}
        check.expect(StatusByte.IOERR in found, "status IOERR", f"status bytes {sorted(found)}")


@case("HOST-R46", MEMORY, features=INDIRECT_ONLY, kinds=BLOCK, marks=HOSTILE)
def a_buffer_in_a_thousand_places(check: Check) -> None:
    """A descriptor for each byte, in eight regions by turns, is read or refused."""
    regions = adjacent(START, [MIB] * 8)
    with check.guest(size=SIZE, arena=check.arena(*regions)) as guest:
        ring = Ring(check, guest)
        rooms = [ring.arena.alloc(DATA_LEN // 8, 1, region) for region in regions]
        pieces = [(rooms[n % 8] + n // 8, 1, WRITE) for n in range(DATA_LEN)]
        parts = [(ring.head, 16, 0), *((START, 0, 0) for _ in range(480)), *pieces, (ring.status, 1, WRITE)]
        entries = _linked(parts)
        _table(ring, ring.arena.alloc(16 * len(entries), 16), entries)
        _read_or_told(ring, check.scratch.known[:DATA_LEN], pieces)


ALIASES: dict[str, Callable[[Ring], int]] = {
    "R47-descriptor-table": lambda r: r.queue.desc_gpa,
    "R47-avail-ring": lambda r: r.queue.avail_gpa & ~511,
    "R47-used-ring": lambda r: r.queue.used_gpa & ~511,
    "R49-own-header": lambda r: r.head,
}


@case("HOST-SELF", "virtio 2.7.4", kinds=BLOCK, marks=HOSTILE, rows=ALIASES)
def data_that_is_the_ring(check: Check, place: Callable[[Ring], int]) -> None:
    """A read into the ring itself hurts that guest alone: the back-end lives, and serves the next."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        ring.chain((ring.head, 16, 0), (place(ring), DATA_LEN, WRITE), (ring.status, 1, WRITE))
        ring.offer()
        for _ in range(3):
            ring.queue.kick(force=True)
        check.quiet(ring.queue, 0.1)


@case("HOST-R54", "virtio 2.7.5", kinds=BLOCK, marks=HOSTILE)
def heads_that_share_their_tail(check: Check) -> None:
    """Requests that share data and status are each served, or the ring breaks; nothing is served twice."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        count = SIZE - 2
        for head in range(count):
            ring.queue.raw_desc(head, ring.head, 16, NEXT, count)
        ring.desc(count, ring.data, DATA_LEN, NEXT | WRITE, count + 1)
        ring.desc(count + 1, ring.status, 1, WRITE)
        for head in range(count):
            ring.queue.raw_push(head)
        ring.queue.kick(force=True)
        check.note(f"{count} heads with one tail are made available; kick")
        heads = set()
        try:
            for _ in range(count):
                head, _ = ring.queue.raw_wait(check.timeout)
                check.expect(head not in heads, "each head once", f"head {head} again")
                heads.add(head)
        except DeviceError:
            check.note(f"{len(heads)} of {count} heads are used")
            ring.first_used = ring.queue.used_idx
            ring.told(ring.said(), "each head to be used")
