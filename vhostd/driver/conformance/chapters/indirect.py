"""Indirect descriptors (virtio 2.7.5.3)."""

import struct

from vhostd.driver.conformance.case import BLOCK, NET, RingFeature, case
from vhostd.driver.conformance.chapters.split_ring import INDIRECT, NEXT, WRITE, _request
from vhostd.driver.conformance.check import Check, Guest

F = RingFeature
OFFERED = int(F.INDIRECT_DESC)
SECTION = "virtio 2.7.5.3"


def _table(guest: Guest, parts: list[tuple[int, int, int]], places: list[int], length: int) -> int:
    """Write a table whose chain goes through `places`; return its address."""
    rows = [(0, 0, 0, 0)] * length
    for n, (gpa, size, flags) in enumerate(parts):
        last = n == len(parts) - 1
        rows[places[n]] = (gpa, size, flags | (0 if last else NEXT), 0 if last else places[n + 1])
    at = guest.arena.alloc(16 * length, 16)
    guest.arena.write(at, b"".join(struct.pack("<QIHH", *row) for row in rows))
    return at


def _serve(check: Check, guest: Guest, head: int = 0) -> None:
    guest.queue.raw_push(head)
    guest.queue.kick(force=True)
    check.equal(guest.queue.raw_wait(check.timeout)[0], head, "the used element's id")


@case("IND-01", SECTION, features=OFFERED, rows={str(n): n for n in (3, 4, 8, 64, 128)})
def tables_of_any_length(check: Check, length: int) -> None:
    """An indirect table has len/16 entries, used or not; the chain begins at its first."""
    with check.guest(size=16) as guest:
        parts = _request(check, guest)
        at = _table(guest, parts, list(range(len(parts))), length)
        guest.queue.raw_desc(0, at, 16 * length, INDIRECT)
        _serve(check, guest)


@case("IND-02", SECTION, features=OFFERED, rows={"backwards": [0, 7, 3], "apart": [0, 2, 4], "end": [0, 6, 7]})
def chained_by_next(check: Check, places: list[int]) -> None:
    """Inside an indirect table the chain follows `next`."""
    with check.guest(size=16) as guest:
        parts = _request(check, guest)
        at = _table(guest, parts, places, 8)
        guest.queue.raw_desc(0, at, 16 * 8, INDIRECT)
        _serve(check, guest)


@case("IND-03", "virtio 2.7.5.3.2", features=OFFERED, rows={"1": 1, "2": 2})
def behind_direct_ones(check: Check, count: int) -> None:
    """The device MUST handle zero or more normal chained descriptors followed by a single indirect one."""
    with check.guest(size=16) as guest:
        parts = _request(check, guest)
        for n in range(count):
            gpa, length, flags = parts[n]
            guest.queue.raw_desc(n, gpa, length, flags | NEXT, n + 1)
        rest = parts[count:]
        at = _table(guest, rest, list(range(len(rest))), len(rest))
        guest.queue.raw_desc(count, at, 16 * len(rest), INDIRECT)
        _serve(check, guest)


@case("IND-04", "virtio 2.7.5.3.2", features=OFFERED)
def write_flag_is_ignored(check: Check) -> None:
    """The device MUST ignore the write-only flag in the descriptor that refers to an indirect table."""
    with check.guest(size=16) as guest:
        parts = _request(check, guest)
        at = _table(guest, parts, list(range(len(parts))), len(parts))
        guest.queue.raw_desc(0, at, 16 * len(parts), INDIRECT | WRITE)
        _serve(check, guest)


@case("IND-05", SECTION, features=OFFERED, kinds=BLOCK, rows={"1": 1, "2": 2, "4": 4})
def longer_than_the_ring(check: Check, size: int) -> None:
    """With indirect tables a small ring carries chains of more buffers than it has entries."""
    with check.guest(size=size) as guest:
        guest.works(8)


@case("IND-06", SECTION, features=OFFERED)
def as_many_as_entries(check: Check) -> None:
    """With indirect tables a ring has as many chains in flight as it has entries."""
    with check.guest(size=64) as guest:
        work = guest.work()
        items = [work.submit(number, kick=False) for number in range(64)]
        guest.queue.kick()
        for item in items:
            work.finish(item)


@case("IND-07", SECTION, features=OFFERED)
def direct_and_indirect_mixed(check: Check) -> None:
    """Direct and indirect chains may be mixed in one ring."""
    with check.guest(size=64) as guest:
        work = guest.work()
        items = [work.submit(number, kick=False, indirect=number % 3 == 0) for number in range(12)]
        guest.queue.kick()
        for item in items:
            work.finish(item)


@case("IND-08", SECTION, features=OFFERED, kinds=NET)
def one_entry(check: Check) -> None:
    """A table of one entry is a table: header and frame in one buffer."""
    with check.guest(size=16) as guest:
        parts = _request(check, guest)
        at = _table(guest, [(parts[0][0], 72, 0)], [0], 1)
        guest.queue.raw_desc(0, at, 16, INDIRECT)
        _serve(check, guest)
