"""Rings that no driver makes: heads, links, tables, addresses and indexes (HOSTILE R1 to R55, B20 to B27).

A chain that cannot be trusted stops its ring, and the back-end says so: by VRING_ERR, which tells which ring it was, or
by DEVICE_NEEDS_RESET. One that says nothing leaves a guest waiting for ever, and its operator without a word; one that
ends the connection instead takes every other ring of the device away.
"""

import os
import select
import struct
import time
from collections.abc import Callable

from vhostd.driver.conformance.case import BLOCK, Mark, RingFeature, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check, Guest
from vhostd.driver.conformance.hostile.tools import MIB
from vhostd.driver.conformance.verdict import Fault
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceGone
from vhostd.spec.blk import Request, StatusByte
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Status

HOSTILE = [Mark.HOSTILE]
NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 64
DATA_LEN = 512
FAR = 1 << 40  # in no region
START = 0x1000_0000
LENGTH = 32 * MIB
END = START + LENGTH
OF_ERR, OF_RESET, OF_END = "VRING_ERR", "DEVICE_NEEDS_RESET", "the end of the connection"
Part = tuple[int, int, int]
Entry = tuple[int, int, int, int]


class Ring:
    """A ring to write descriptors into, and the parts of one good request: a read, or a frame to send."""

    def __init__(self, check: Check, guest: Guest) -> None:
        self.check = check
        self.guest = guest
        self.arena = guest.arena
        self.queue: Virtqueue = guest.queue
        self.first_used = self.queue.used_idx
        self.head = self.arena.alloc(64, 16)
        self.data = self.arena.alloc(DATA_LEN, 16)
        self.status = self.arena.alloc(1)
        if check.is_block:
            self.arena.write(self.head, struct.pack("<IIQ", Request.IN, 0, check.scratch.first))
        self.arena.fill(self.status, 1, 0xFF)

    def desc(self, index: int, addr: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write a descriptor."""
        self.check.note(f"descriptor {index}: address {addr:#x}, length {length}, flags {flags:#x}, next {following}")
        self.queue.raw_desc(index, addr, length, flags, following)

    def chain(self, *parts: Part, first: int = 0) -> None:
        """Put (addr, length, flags) into successive descriptors, linked."""
        for n, (addr, length, flags) in enumerate(parts):
            last = n + 1 == len(parts)
            self.desc(first + n, addr, length, flags | (0 if last else NEXT), 0 if last else first + n + 1)

    def good(self) -> list[Part]:
        """Return the parts of a good request."""
        if not self.check.is_block:
            return [(self.head, 12, 0), (self.data, 60, 0)]
        return [(self.head, 16, 0), (self.data, DATA_LEN, WRITE), (self.status, 1, WRITE)]

    def table(self, entries: list[Entry], length: int | None = None, flags: int = 0) -> None:
        """Write an indirect table and, as descriptor 0, what refers to it."""
        raw = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
        at = self.arena.alloc(max(len(raw), 16), 16)
        self.arena.write(at, raw)
        self.check.note("indirect table: " + "; ".join(f"{a:#x} {n} {f:#x} {x}" for a, n, f, x in entries))
        self.desc(0, at, len(raw) if length is None else length, INDIRECT | flags, 1)

    def entries(self) -> list[Entry]:
        """Return a good request as entries of a table."""
        parts = self.good()
        return [
            (addr, length, flags | (NEXT if n + 1 < len(parts) else 0), (n + 1) % len(parts))
            for n, (addr, length, flags) in enumerate(parts)
        ]

    def offer(self, head: int = 0) -> None:
        """Make a head available, and kick."""
        self.check.note(f"head {head} is made available; kick")
        self.queue.raw_push(head)
        self.queue.kick(force=True)

    def said(self) -> str:
        """Return how the back-end says that the ring is broken, or nothing when it does not in time."""
        return how_told(self.guest, self.queue, lambda: self.used() > 0)

    def used(self) -> int:
        """Return how many elements were used since the attack began."""
        return (self.queue.used_idx - self.first_used) % 65536

    def told(self, said: str, otherwise: str = "") -> None:
        """Hold the back-end to having said that the ring is broken; `otherwise` is what it might have done instead."""
        held_to_telling(self.check, said, otherwise)


def how_told(guest: Guest, queue: Virtqueue, used: Callable[[], bool]) -> str:
    """Return how the back-end says that a ring is broken; nothing when it does not in time, or uses something."""
    frontend = guest.frontend
    deadline = time.monotonic() + guest.check.timeout
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([queue.err_fd.number, frontend.fileno()], [], [], 0.02)
            if queue.err_fd.number in ready and queue.take_err():
                return OF_ERR
            if frontend.fileno() in ready and frontend.closed_by_peer(0.2):
                return OF_END
            if used():
                return ""
        if frontend.protocol_features & ProtocolFeature.STATUS:
            status = frontend.ask_u64(FrontendRequest.GET_STATUS)
            return OF_RESET if status & Status.DEVICE_NEEDS_RESET else ""
    except DeviceGone:
        return OF_END
    return ""


def held_to_telling(check: Check, said: str, otherwise: str = "") -> None:
    """Hold the back-end to having said that a ring is broken, as `how_told` has it."""
    check.expect(
        said in {OF_ERR, OF_RESET},
        f"{otherwise}{otherwise and ', or '}VRING_ERR or DEVICE_NEEDS_RESET (virtio 2.1.2)",
        "only that the connection ended" if said else f"nothing in {check.timeout:g} s, and no used element",
        Fault.SILENT_RING_ERROR,
    )


def broken(check: Check, attack: Callable[[Ring], None], features: int = ALL_FEATURES) -> None:
    """Hold the back-end to stopping the ring and saying so: nothing is published for a chain that cannot be."""
    with check.guest(size=SIZE, features=features) as guest:
        ring = Ring(check, guest)
        attack(ring)
        said = ring.said()
        check.expect(not ring.used(), "nothing to be published for it", f"{ring.used()} used elements")
        ring.told(said)


def served_or_told(ring: Ring) -> None:
    """Hold the back-end to using the chain in some way, or to saying that its ring is broken."""
    said = ring.said()
    if not ring.used():
        ring.told(said, "a used element")


def links(*pairs: tuple[int, int], length: int = 16, flags: int = 0) -> Callable[[Ring], None]:
    """Descriptors that lead to each other in any way."""

    def attack(ring: Ring) -> None:
        for index, following in pairs:
            ring.queue.raw_desc(index, ring.head, length, flags | NEXT, following)
        ring.check.note("descriptors linked: " + " ".join(f"{a}->{b}" for a, b in pairs[:6]))
        ring.offer(pairs[0][0])

    return attack


def jump(by: int) -> Callable[[Ring], None]:
    """An available index that has gone somewhere."""

    def attack(ring: Ring) -> None:
        ring.chain(*ring.good())
        ring.check.note(f"avail.idx goes on by {by}; kick")
        ring.queue.avail_idx = (ring.queue.avail_idx + by) % 65536
        ring.queue.kick(force=True)

    return attack


def table_at(address: int, length: int = 48) -> Callable[[Ring], None]:
    """A descriptor of an indirect table that lies anywhere."""

    def attack(ring: Ring) -> None:
        ring.desc(0, address, length, INDIRECT)
        ring.offer()

    return attack


def tabled(change: Callable[[Ring], list[Entry]], length: int | None = None, flags: int = 0) -> Callable[[Ring], None]:
    """A table of such entries."""

    def attack(ring: Ring) -> None:
        ring.table(change(ring), length, flags)
        ring.offer()

    return attack


def direct(*parts: Callable[[Ring], Part] | Part) -> Callable[[Ring], None]:
    """A chain of such parts."""

    def attack(ring: Ring) -> None:
        ring.chain(*(part(ring) if callable(part) else part for part in parts))
        ring.offer()

    return attack


def straddling(ring: Ring) -> None:
    """A table whose first entry is the last 16 bytes of memory, and leads on."""
    ring.arena.write(END - 16, struct.pack("<QIHH", ring.head, 16, NEXT, 1))
    table_at(END - 16)(ring)


def h(ring: Ring) -> Part:
    """The header of a good request."""
    return ring.head, 16, 0


def d(ring: Ring) -> Part:
    """Its data."""
    return ring.data, DATA_LEN, WRITE


def s(ring: Ring) -> Part:
    """Its status."""
    return ring.status, 1, WRITE


ANY_RING: dict[str, Callable[[Ring], None]] = {
    "R1-head-is-size": lambda ring: ring.offer(SIZE),
    "R2-head-60000": lambda ring: ring.offer(60000),
    "R3-head-65535": lambda ring: ring.offer(65535),
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
    "R50-avail-idx-1-too-far": jump(SIZE + 1),
    "R50-avail-idx-32768": jump(32768),
    "R50-avail-idx-65535": jump(65535),
}
TABLES: dict[str, Callable[[Ring], None]] = {
    "R20-table-of-0-bytes": table_at(START + 4096, 0),
    "R20-table-of-1-byte": table_at(START + 4096, 1),
    "R20-table-of-15-bytes": table_at(START + 4096, 15),
    "R20-table-of-17-bytes": table_at(START + 4096, 17),
    "R20-table-of-47-bytes": tabled(Ring.entries, length=47),
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
# What 2.7.5.3.1 forbids to drivers, and some devices make sense of.
ODD_TABLES: dict[str, Callable[[Ring], None]] = {
    "R22-indirect-in-the-middle": tabled(
        lambda ring: [(ring.head, 16, NEXT, 1), (ring.data, 64, INDIRECT | NEXT, 2), (ring.status, 1, WRITE, 0)]
    ),
    "R23-indirect-with-next": tabled(Ring.entries, flags=NEXT),
}
DISK: dict[str, Callable[[Ring], None]] = {
    "R30-status-unmapped": direct(h, d, (FAR, 1, WRITE)),
    "R31-status-straddles-the-end": direct(h, d, (END - 1, 2, WRITE)),
    "R32-status-wraps": direct(h, d, (2**64 - 1, 2, WRITE)),
    "R34-status-at-the-top": direct(h, d, (2**64 - 1, 1, WRITE)),
    "B24-nothing-writable": direct(h, lambda ring: (ring.data, DATA_LEN, 0), lambda ring: (ring.status, 1, 0)),
    "B24-status-of-no-bytes": direct(h, lambda ring: (ring.status, 0, WRITE)),
    "B24-header-only": direct(h),
    "B25-nothing-at-all": direct((FAR, 0, 0)),
}
ERRORS: dict[str, Callable[[Ring], None]] = {
    "R30-data-unmapped": direct(h, (FAR, DATA_LEN, WRITE), s),
    "R30-header-unmapped": direct((FAR, 16, 0), d, s),
    "R31-data-straddles-the-end": direct(h, (END - 100, DATA_LEN, WRITE), s),
    "R31-header-straddles-the-end": direct((END - 8, 16, 0), d, s),
    "R32-data-wraps": direct(h, (2**64 - 256, DATA_LEN, WRITE), s),
    "R32-header-wraps": direct((2**64 - 8, 16, 0), d, s),
    "R34-data-at-the-top": direct(h, (2**64 - 1, 1, WRITE), s),
    "R34-header-at-the-top": direct((2**64 - 1, 1, 0), d, s),
    "R35-data-of-4-GiB": direct(h, (FAR, 0xFFFFFE00, WRITE), s),
    "B23-header-of-15-bytes": direct(lambda ring: (ring.head, 15, 0), d, s),
    "B26-read-into-readable": direct(h, lambda ring: (ring.data, DATA_LEN, 0), s),
    "R36-sum-past-32-bits": direct(h, (FAR, 0xFFFFFFFF, WRITE), (FAR, 0xFFFFFFFF, WRITE), s),
    "B23-header-writable": direct((FAR, 16, WRITE), d, s),
    "B25-status-alone": direct(s),
}
ORDERS: dict[str, Callable[[Ring], None]] = {
    "B27-writable-first": direct(s, h),
    "B27-readable-in-between": direct(h, d, h, s),
}


@case("HOST-RING", "virtio 2.7.5, 2.7.6", marks=HOSTILE, rows=ANY_RING)
def a_chain_that_cannot_be(check: Check, attack: Callable[[Ring], None]) -> None:
    """A head, a link or an index that the table does not have breaks the ring, which is said, and nothing else."""
    broken(check, attack)


@case("HOST-TABLE", "virtio 2.7.5.3", marks=HOSTILE, features=int(RingFeature.INDIRECT_DESC), rows=TABLES)
def an_indirect_table_that_cannot_be(check: Check, attack: Callable[[Ring], None]) -> None:
    """An indirect table is whole descriptors in guest memory that lead to each other and to no other table."""
    broken(check, attack)


@case(
    "HOST-ODD", "virtio 2.7.5.3.1", kinds=BLOCK, marks=HOSTILE, features=int(RingFeature.INDIRECT_DESC), rows=ODD_TABLES
)
def an_indirect_table_that_no_driver_may_make(check: Check, attack: Callable[[Ring], None]) -> None:
    """A table in a table, or one beside a next, is served, an error, or a loud ring."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        attack(ring)
        served_or_told(ring)


@case("HOST-R25", "virtio 2.7.5.3.1", kinds=BLOCK, marks=HOSTILE)
def an_indirect_table_without_the_feature(check: Check) -> None:
    """INDIRECT without INDIRECT_DESC, which no driver may set, is served, an error, or a loud ring."""
    with check.guest(size=SIZE, features=ALL_FEATURES & ~int(RingFeature.INDIRECT_DESC)) as guest:
        ring = Ring(check, guest)
        tabled(Ring.entries)(ring)
        served_or_told(ring)


@case("HOST-CHAIN", "virtio 2.7.4.2, 5.2.6", kinds=BLOCK, marks=HOSTILE, rows=DISK)
def a_chain_that_cannot_be_answered(check: Check, attack: Callable[[Ring], None]) -> None:
    """A request without a place for its status cannot be answered: the ring is broken, and that is said."""
    broken(check, attack)


@case("HOST-ERROR", "virtio 5.2.6.2", kinds=BLOCK, marks=HOSTILE, rows=ERRORS)
def a_request_that_cannot_be_done(check: Check, attack: Callable[[Ring], None]) -> None:
    """A request that cannot be done and can be answered ends in IOERR, or breaks its ring loudly."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        before = ring.arena.read(ring.data, DATA_LEN)
        attack(ring)
        said = ring.said()
        if not ring.used():
            ring.told(said, "status IOERR")
            return
        status = ring.arena.read(ring.status, 1)[0]
        check.expect(status in {StatusByte.IOERR, StatusByte.UNSUPP}, "status IOERR", f"status {status:#x}")
        check.equal(ring.arena.read(ring.data, DATA_LEN), before, "the data as it was,")


@case("HOST-ORDER", "virtio 2.7.4.2", kinds=BLOCK, marks=HOSTILE, rows=ORDERS)
def a_chain_out_of_order(check: Check, attack: Callable[[Ring], None]) -> None:
    """Device-readable behind device-writable buffers, which no driver may make: served, an error, or a loud ring."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        attack(ring)
        served_or_told(ring)


@case("HOST-R53", "virtio 2.7.13", marks=HOSTILE, kinds=BLOCK)
def a_head_that_is_in_flight(check: Check) -> None:
    """A head offered many times before it comes back is served once for each, or breaks the ring; never a crash."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        ring.chain(*ring.good())
        for _ in range(SIZE):
            ring.queue.raw_push(0)
        ring.queue.kick(force=True)
        check.note(f"head 0 is made available {SIZE} times; kick")
        said = how_told(guest, ring.queue, lambda: ring.used() >= SIZE)
        check.expect(ring.used() <= SIZE, f"at most {SIZE} used elements", f"{ring.used()}")
        if ring.used() < SIZE:
            ring.told(said, f"{SIZE} used elements")


@case("HOST-R55", "virtio 2.7.8", marks=HOSTILE, kinds=BLOCK, rows={"idx": 2, "flags": 0, "elements": 4})
def a_used_ring_that_the_driver_writes(check: Check, offset: int) -> None:
    """What a driver writes into the used ring decides nothing: the device goes on by its own index."""
    with check.guest(size=SIZE) as guest:
        guest.works(1)
        guest.arena.write(guest.queue.used_gpa + offset, b"\xee\xee")
        ring = Ring(check, guest)
        ring.chain(*ring.good())
        ring.offer()
        check.until(lambda: ring.arena.read(ring.status, 1) == b"\0", "status OK", "none")


@case("HOST-R72", "virtio 2.7.10", marks=HOSTILE)
def kicks_without_end(check: Check) -> None:
    """Kicks for nothing cost a bounded share of a CPU, and nothing afterwards."""
    with check.guest() as guest:
        for _ in range(20000):
            guest.queue.kick(force=True)
        guest.works(2)


@case("HOST-R77", "virtio 2.7.7", marks=HOSTILE, kinds=BLOCK)
def a_call_descriptor_that_is_full(check: Check) -> None:
    """Signalling never blocks: a driver that does not read its calls is served as ever."""
    with check.guest() as guest:
        guest.queue.take_call()  # a back-end may have called already: the write below is not to wait
        os.eventfd_write(guest.queue.call_fd.number, 2**64 - 2)
        os.set_blocking(guest.queue.call_fd.number, True)
        time.sleep(0.005)  # a back-end may look at the mode now and then, rather than at each call
        driver = guest.block(check.target.work_ring, poll=True)
        for _ in range(3):
            guest.queue.arm()
            driver.read(check.scratch.first, 512)
