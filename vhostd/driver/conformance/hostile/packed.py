"""Packed rings that no driver makes: ids, marks, chains without end, tables, events (HOSTILE R13 to R36, R80 to R85).

The marks of a descriptor (AVAIL and USED) are the only thing that says whose it is, and the id the only thing that says
which chain it was: both come from the driver, so that both may be anything.
"""

import struct
import time
from collections.abc import Callable

from vhostd.driver.conformance.case import BLOCK, Mark, RingFeature, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check, Guest
from vhostd.driver.conformance.hostile.attacks import DATA_LEN, FAR, INDIRECT, NEXT, SIZE, WRITE, Part, Prepared
from vhostd.driver.conformance.hostile.tools import header_of, held_to_telling, held_to_undone, how_told
from vhostd.driver.ring_memory import Packed
from vhostd.spec.blk import StatusByte

HOSTILE = [Mark.HOSTILE]
PACKED = int(RingFeature.RING_PACKED)
WITH_TABLES = PACKED | int(RingFeature.INDIRECT_DESC)
AVAIL, USED = 1 << 7, 1 << 15
DIRECT = ALL_FEATURES & ~int(RingFeature.EVENT_IDX)


class PackedRing(Prepared):
    """A packed ring to write descriptors into, from slot 0 on in its first round."""

    def __init__(self, check: Check, guest: Guest) -> None:
        super().__init__(guest.queue, guest.arena, header_of(check))
        self.check = check
        self.guest = guest
        self.slot = 0

    def note(self, line: str) -> None:
        """Write down what is done."""
        self.check.note(line)

    def put(self, *descriptors: tuple[int, int, int, int], marks: int = AVAIL) -> None:
        """Write descriptors of (addr, length, id, flags) into the next slots, the first one last, and kick."""
        for n, (addr, length, ident, flags) in reversed(list(enumerate(descriptors))):
            self.queue.raw_packed((self.slot + n) % self.queue.size, addr, length, ident, flags | marks)
        shown = "; ".join(f"{a:#x} {n} id {i} flags {f | marks:#x}" for a, n, i, f in descriptors[:6])
        self.check.note(
            f"packed descriptors from slot {self.slot}: {shown}{' …' if len(descriptors) > 6 else ''}; kick"
        )
        self.slot += len(descriptors)
        self.queue.kick(force=True)

    def chain(self, *parts: Part, ids: int | list[int] = 0, marks: int = AVAIL) -> None:
        """Make a chain of (addr, length, flags) available, with one id or one for each descriptor."""
        given = [ids] * len(parts) if isinstance(ids, int) else ids
        last = len(parts) - 1
        self.put(
            *((a, n, given[i], flags | (NEXT if i < last else 0)) for i, (a, n, flags) in enumerate(parts)), marks=marks
        )

    def table(self, raw: bytes, length: int | None = None, flags: int = 0) -> None:
        """Make an indirect table available."""
        at = self.arena.alloc(max(len(raw), 16), 16)
        self.arena.write(at, raw)
        self.put((at, len(raw) if length is None else length, 0, INDIRECT | flags))

    def used(self, slot: int = 0) -> Packed | None:
        """Return the used descriptor at a slot in the first round, or None while there is none."""
        found = self.queue.read_packed(slot)
        return found if found.flags & (AVAIL | USED) == AVAIL | USED else None

    def waits(self, slot: int = 0) -> Packed | None:
        """Wait for a used descriptor; None when none comes in time."""
        deadline = time.monotonic() + self.check.timeout
        while (found := self.used(slot)) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        return found

    def said(self) -> str:
        """Return how the back-end says that the ring is broken; nothing when it does not in time, or uses a chain."""
        return how_told(self.guest, self.queue, lambda: self.used() is not None)

    def works(self, slot: int = 0, ident: int = 0) -> None:
        """Hold the back-end to having read the sector, and used the chain under its id."""
        found = self.waits(slot)
        self.check.expect(found is not None, "a used descriptor", "none")
        assert found is not None
        self.check.equal(found.id, ident, "id")
        self.check.at_most(found.length, DATA_LEN + 1, "used length")
        self.check.equal(self.arena.read(self.status, 1)[0], int(StatusByte.OK), "status")
        self.check.equal(self.arena.read(self.data, DATA_LEN), self.check.scratch.known[:DATA_LEN], "the sector,")


Attack = Callable[[PackedRing], None]


def _entry(part: Part, flags: int = 0, ident: int = 0) -> bytes:
    return struct.pack("<QIHH", part[0], part[1], ident, part[2] | flags)


def returned_or_told(check: Check, attack: Attack) -> None:
    """Hold the back-end to giving the chain back undone, or to saying that its ring is broken."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        before = ring.arena.read(ring.data, DATA_LEN)
        attack(ring)
        said = ring.said()
        if ring.used() is None:
            held_to_telling(check, said, "the chain to be given back undone")
            return
        held_to_undone(check, ring, before)


BREAKS: dict[str, Attack] = {
    "R13-next-on-all": lambda r: r.put(*((r.head, 16, 0, NEXT) for _ in range(r.queue.size))),
    "R13-next-on-all-writable": lambda r: r.put(*((r.data, 16, 0, NEXT | WRITE) for _ in range(r.queue.size))),
    "R30-status-unmapped": lambda r: r.chain(*r.parts()[:2], (FAR, 1, WRITE)),
    "R31-status-straddles-the-end": lambda r: r.chain(*r.parts()[:2], (r.end - 1, 2, WRITE)),
    "R32-status-wraps": lambda r: r.chain(*r.parts()[:2], (2**64 - 1, 2, WRITE)),
    "B24-nothing-writable": lambda r: r.chain((r.head, 16, 0), (r.data, DATA_LEN, 0)),
}


@case("HOST-PACKED", "virtio 2.8.17", kinds=BLOCK, features=PACKED, marks=HOSTILE, rows=BREAKS)
def a_packed_chain_that_cannot_be(check: Check, attack: Attack) -> None:
    """A chain that has no end, or no place for its status, is given back undone, or breaks its ring loudly."""
    returned_or_told(check, attack)


@case("HOST-R17P", "virtio 2.8", kinds=BLOCK, features=PACKED, marks=HOSTILE)
def a_chain_whose_rest_is_not_available(check: Check) -> None:
    """A descriptor that is not available is not used: a chain that leads to one breaks its ring loudly."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        ring.put((ring.head, 16, 0, NEXT))
        said = ring.said()
        check.expect(ring.used() is None, "nothing to be used", "a used descriptor")
        held_to_telling(check, said)


@case("HOST-B27P", "virtio 2.8.19", kinds=BLOCK, features=PACKED, marks=HOSTILE)
def a_packed_chain_out_of_order(check: Check) -> None:
    """Device-readable behind device-writable buffers, which no driver may make: served, an error, or a loud ring."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        ring.chain((ring.data, DATA_LEN, WRITE), (ring.head, 16, 0), (ring.status, 1, WRITE))
        said = ring.said()
        if ring.used() is None:
            held_to_telling(check, said, "a used descriptor")


TABLES: dict[str, Attack] = {
    "R20-table-of-0-bytes": lambda r: r.table(b"", 0),
    "R20-table-of-15-bytes": lambda r: r.table(bytes(16), 15),
    "R21-table-of-4-GiB": lambda r: r.table(bytes(48), 0xFFFF_FFF0),
    "R30-table-unmapped": lambda r: r.put((FAR, 48, 0, INDIRECT)),
    "R31-table-straddles-the-end": lambda r: r.put((r.end - 32, 48, 0, INDIRECT)),
    "R32-table-wraps": lambda r: r.put((2**64 - 16, 48, 0, INDIRECT)),
}


@case("HOST-PTABLE", "virtio 2.8.7", kinds=BLOCK, features=WITH_TABLES, marks=HOSTILE, rows=TABLES)
def a_packed_table_that_cannot_be(check: Check, attack: Attack) -> None:
    """A table that is not in guest memory, or of no entry, is given back undone, or breaks its ring loudly."""
    returned_or_told(check, attack)


@case("HOST-R24P", "virtio 2.8.7", kinds=BLOCK, features=WITH_TABLES, marks=HOSTILE,
      rows={"next": NEXT, "marks": AVAIL | USED, "indirect": INDIRECT, "all": 0xFFFF & ~WRITE})  # fmt: skip
def flags_in_a_packed_table(check: Check, flags: int) -> None:
    """In an indirect table only the write flag counts; ids and other flags are reserved, and ignored."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        ring.table(b"".join(_entry(part, flags, 0xEEEE) for part in ring.parts()))
        ring.works()


@case("HOST-R80", "virtio 2.8.6, 2.8.22", kinds=BLOCK, features=PACKED, marks=HOSTILE,
      rows={"size": SIZE, "32768": 32768, "65535": 65535})  # fmt: skip
def an_id_beyond_the_ring(check: Check, ident: int) -> None:
    """A buffer id is the driver's: it comes back as it was, or breaks the ring loudly; it is never an index."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        ring.chain(*ring.parts(), ids=ident)
        said = ring.said()
        if ring.used() is None:
            held_to_telling(check, said, f"the chain used under id {ident}")
        else:
            ring.works(ident=ident)


@case("HOST-R81", "virtio 2.8.6, 2.8.22", kinds=BLOCK, features=PACKED, marks=HOSTILE)
def an_id_that_is_in_flight(check: Check) -> None:
    """Chains with one id are each used under it, or break the ring; never a crash."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        for _ in range(SIZE // 3):
            ring.chain(*ring.parts(), ids=5)
        said = ring.said()
        found = ring.used()
        if found is None:
            held_to_telling(check, said, "the chains used under id 5")
        else:
            check.equal(found.id, 5, "id")


@case("HOST-R82", "virtio 2.8.6", kinds=BLOCK, features=PACKED, marks=HOSTILE)
def ids_that_differ_in_a_chain(check: Check) -> None:
    """The id of a chain is that of its last descriptor; those of the others are ignored."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        ring.chain(*ring.parts(), ids=[60, 61, 7])
        ring.works(ident=7)


@case("HOST-R17", "virtio 2.8.1", kinds=BLOCK, features=PACKED, marks=HOSTILE,
      rows={"both": AVAIL | USED, "neither": 0, "used": USED})  # fmt: skip
def marks_of_another_round(check: Check, marks: int) -> None:
    """A descriptor whose marks are not those of the round is not available: nothing is used, and nothing is touched."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        ring.chain(*ring.parts(), marks=marks)
        time.sleep(0.1)
        check.equal(ring.arena.read(ring.status, 1), b"\xff", "the status byte as it was,")
        check.equal(ring.queue.read_packed(0).flags & (AVAIL | USED), marks, "the marks as they were,")


@case("HOST-R84", "virtio 2.8.12", kinds=BLOCK, features=PACKED, marks=HOSTILE)
def a_batch_whose_third_is_bad(check: Check) -> None:
    """A bad chain is given back undone, or breaks its ring loudly, whatever came before it."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        ring.chain(*ring.parts(), ids=0)
        ring.chain(*ring.parts(), ids=3)
        ring.chain((ring.head, 16, 0), (ring.data, DATA_LEN, 0), ids=6)
        # Used descriptors stand in the order in which work ends, each as far on as its chain is long (2.8.6).
        said = how_told(guest, ring.queue, lambda: ring.used(6) is not None)
        found = [used for slot in (0, 3, 6) if (used := ring.used(slot)) is not None]
        ids = [used.id for used in found]
        check.expect(len(set(ids)) == len(ids) and set(ids) <= {0, 3, 6}, "ids 0, 3 and 6, once each", f"{ids}")
        if 6 not in ids:
            held_to_telling(check, said, "the third to be given back undone")


@case("HOST-R85", "virtio 2.8.10, 2.8.14", kinds=BLOCK, features=PACKED, marks=HOSTILE,
      rows={"flags-3": (0, 3), "flags-65535": (0, 0xFFFF), "beyond": (SIZE, 2), "65535": (0xFFFF, 2)})  # fmt: skip
def an_event_structure_of_garbage(check: Check, event: tuple[int, int]) -> None:
    """What the driver asks for and cannot be makes a call too many or too few, and no work undone."""
    with check.guest(packed=True, size=SIZE) as guest:
        ring = PackedRing(check, guest)
        ring.queue.driver_event = event
        ring.chain(*ring.parts())
        ring.works()


ERRORS: dict[str, Attack] = {
    "R30-data-unmapped": lambda r: r.chain((r.head, 16, 0), (FAR, DATA_LEN, WRITE), (r.status, 1, WRITE)),
    "R30-header-unmapped": lambda r: r.chain((FAR, 16, 0), (r.data, DATA_LEN, WRITE), (r.status, 1, WRITE)),
    "R31-data-straddles-the-end": lambda r: r.chain(
        (r.head, 16, 0), (r.end - 8, DATA_LEN, WRITE), (r.status, 1, WRITE)
    ),
    "R32-data-wraps": lambda r: r.chain((r.head, 16, 0), (2**64 - 64, DATA_LEN, WRITE), (r.status, 1, WRITE)),
    "R33-nothing-at-a-bad-place": lambda r: r.chain(r.parts()[0], (FAR, 0, WRITE), *r.parts()[1:]),
    "B23-header-of-15-bytes": lambda r: r.chain((r.head, 15, 0), (r.data, DATA_LEN, WRITE), (r.status, 1, WRITE)),
    "B25-status-alone": lambda r: r.chain((r.status, 1, WRITE)),
}


@case("HOST-PERROR", "virtio 5.2.6.2", kinds=BLOCK, features=PACKED, marks=HOSTILE, rows=ERRORS)
def a_packed_request_that_cannot_be_done(check: Check, attack: Attack) -> None:
    """A request that cannot be done and can be answered ends in IOERR, or breaks its ring loudly."""
    with check.guest(packed=True, size=SIZE, features=DIRECT) as guest:
        ring = PackedRing(check, guest)
        attack(ring)
        said = ring.said()
        if ring.used() is None:
            held_to_telling(check, said, "status IOERR")
            return
        status = ring.arena.read(ring.status, 1)[0]
        if status == StatusByte.OK:  # length 0: nothing was to be read there
            check.equal(ring.arena.read(ring.data, DATA_LEN), check.scratch.known[:DATA_LEN], "the sector,")
        else:
            check.expect(status in {StatusByte.IOERR, StatusByte.UNSUPP}, "status IOERR", f"status {status:#x}")
