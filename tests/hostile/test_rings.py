"""R1 to R55: chains, tables and indices that no driver makes, on a ring of a running disk.

Each case runs twice: on the first ring of memory in one region without EVENT_IDX, and on the last of four rings with
EVENT_IDX over eight regions that touch.
"""

import contextlib
import struct
import time

import pytest

from tests.hostile.attack import ALL_FEATURES, MIB, alive, guest, header
from vhostd.driver.arena import Arena, Region, adjacent
from vhostd.driver.conformance.hostile.attacks import (
    DATA_LEN,
    DISK,
    ERRORS,
    FAR,
    INDIRECT,
    LINKS,
    NEXT,
    NO_HEADS,
    ODD_TABLES,
    ORDERS,
    SIZE,
    START,
    TABLES,
    WRITE,
    RawRing,
    d,
    direct,
    h,
    jump,
    s,
    table_at,
    tabled,
)
from vhostd.spec.blk import Request, StatusByte
from vhostd.spec.virtio import Feature


class Ring(RawRing):
    """A ring of a guest, and what must have come of what was done to it."""

    def __init__(self, made, index):
        super().__init__(made.queues[index], made.arena, header(Request.IN, 3))
        self.made = made
        self.index = index

    def read_ok(self):
        """The request comes back, with the image's bytes."""
        head, length = self.queue.raw_wait(3)
        assert length == DATA_LEN + 1
        assert self.arena.read(self.status, 1) == bytes([StatusByte.OK])
        assert self.arena.read(self.data, DATA_LEN) == self.made.target.content[3 * 512 :][:DATA_LEN]
        return head

    def error(self, status=StatusByte.IOERR):
        """The request comes back with a status that says no, and nothing but the status is written."""
        before = self.arena.read(self.data, DATA_LEN)
        self.queue.raw_wait(3)
        assert self.arena.read(self.status, 1) == bytes([status])
        assert self.arena.read(self.data, DATA_LEN) == before
        self.goes_on()

    def verr(self, published=0):
        """The ring stops, loudly and once; nothing is published for the bad chain; a restart cures it."""
        assert self.made.broke(self.index)
        until = time.monotonic() + 2
        while self.queue.used_idx != published and time.monotonic() < until:
            time.sleep(0.001)  # what came before is published at the end of the batch
        assert self.queue.used_idx == published
        self.queue.kick(force=True)
        for other in range(len(self.made.queues)):
            if other != self.index:
                assert self.made.reads(other)
        assert alive(self.made.frontend)
        assert self.queue.take_err() == 0  # told once
        base = self.made.frontend.get_base(self.index)
        assert published <= base <= published + SIZE
        self.queue.reset()
        self.made.frontend.bases.clear()
        self.made.start_ring(self.index)
        assert self.made.reads(self.index)

    def goes_on(self):
        """The ring serves a good request."""
        self.arena.fill(self.status, 1, 0xFF)
        self.arena.write(self.head, header(Request.IN, 3))
        self.good()
        self.offer()
        self.read_ok()


@contextlib.contextmanager
def made_ring(target, config, **options):
    if config == "plain":
        memory, features, queues, index = [Region(0x1000_0000, 8 * MIB)], ALL_FEATURES & ~Feature.EVENT_IDX, 1, 0
    else:
        memory, features, queues, index = adjacent(0x1000_0000, [MIB] * 8), ALL_FEATURES, 4, 3
    features = options.pop("features", features)
    with (
        Arena(memory) as arena,
        guest(target, arena=arena, features=features, queues=queues, size=SIZE, **options) as made,
    ):
        yield Ring(made, index)


@pytest.fixture(params=["plain", "event-idx-last-ring"])
def ring(request, target):
    with made_ring(target, request.param) as made:
        yield made


# Chains that break the ring.


# Of those that may be answered with an error, we break the ring for these: the chain as a whole cannot be.
BROKEN = ("R36-sum-past-32-bits", "B23-header-writable", "B25-status-alone")
VERR = {
    **NO_HEADS, **LINKS, **TABLES, **ODD_TABLES, **DISK, **ORDERS, **{name: ERRORS[name] for name in BROKEN},
    "R21-table-of-1-MiB": table_at(START + 4096, MIB),
    "R22-indirect-to-itself": tabled(lambda r: [(r.arena.regions[0].gpa, 48, INDIRECT, 0)]),
    "R36-sum-is-exactly-2^32": direct(h, (FAR, 0xFFFFFFFF - 16, WRITE), s),
    "R52-avail-idx-goes-back": jump(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", VERR)
def test_a_chain_that_breaks_the_ring(ring, name):
    """The ring stops, VRING_ERR is written once, nothing is published, other rings go on, a restart cures it."""
    VERR[name](ring)
    ring.verr()


def test_indirect_without_its_feature(target):
    """R25."""
    with made_ring(target, "plain", features=ALL_FEATURES & ~Feature.INDIRECT_DESC) as ring:
        ring.table(*ring.entries())
        ring.offer()
        ring.verr()


def test_avail_idx_goes_to_0(ring):
    """R52."""
    for _ in range(5):
        ring.goes_on()
    ring.queue.avail_idx = 0
    ring.queue.kick(force=True)
    ring.verr(published=5)


def test_good_requests_before_a_bad_one_are_answered(ring):
    """R1: what came before the bad head is complete and published."""
    ring.good()
    other = ring.arena.alloc(1)
    ring.arena.fill(other, 1, 0xFF)
    ring.chain((ring.head, 16, 0), (ring.data, DATA_LEN, WRITE), (other, 1, WRITE), first=10)
    ring.offer(0, 10, 60000, 0)
    ring.verr(published=2)
    assert ring.arena.read(other, 1) == b"\0"


# Requests that come back with an error: the status has a place.

IOERR = {
    **{name: attack for name, attack in ERRORS.items() if name not in BROKEN},
    "R32-header-wraps-to-memory": direct((2**64 - 16, 32, 0), d, s),
    "R35-data-of-4-GiB-in-memory": direct(h, (START, 0xFFFFFE00, WRITE), s),
    "R45-data-into-a-hole": direct(h, lambda r: (r.end - 256, 512, WRITE), s),
}


@pytest.mark.parametrize("name", IOERR)
def test_a_request_that_cannot_be_done(ring, name):
    """IOERR in the status byte, nothing else is written, the ring goes on."""
    IOERR[name](ring)
    ring.error()


# What must work, however odd.


def with_table(write=0, first=()):
    def attack(r):
        at = r.table(*r.entries())
        r.desc(0, at, 48, INDIRECT | write)
        r.offer()

    return attack


def chain_of_size(r):
    parts = [(r.head, 16, 0), *((r.data + n, 1, WRITE) for n in range(SIZE - 3))]
    r.chain(*parts, (r.data + SIZE - 3, DATA_LEN - SIZE + 3, WRITE), (r.status, 1, WRITE))
    r.offer()


def last_goes_to_0(r):
    r.desc(5, r.head, 16, NEXT, 6)
    r.desc(6, r.data, DATA_LEN, NEXT | WRITE, 0)
    r.desc(0, r.status, 1, WRITE)
    r.offer(5)


def backwards(r):
    r.desc(60, r.head, 16, NEXT, 30)
    r.desc(30, r.data, DATA_LEN, NEXT | WRITE, 1)
    r.desc(1, r.status, 1, WRITE, 65535)
    r.offer(60)


def unknown_flags(r):
    r.desc(0, r.head, 16, 0xFFF8 | NEXT, 1)
    r.desc(1, r.data, DATA_LEN, 0x8000 | NEXT | WRITE, 2)
    r.desc(2, r.status, 1, 0x7FF0 | WRITE, 9)
    r.offer()


def empty_at(address):
    def attack(r):
        r.chain(
            (address, 0, 0), (r.head, 16, 0), (address, 0, 0),
            (address, 0, WRITE), (r.data, DATA_LEN, WRITE), (address, 0, WRITE), (r.status, 1, WRITE),
        )  # fmt: skip
        r.offer()

    return attack


def indirect_behind_direct(r):
    at = r.arena.alloc(32, 16)
    r.arena.write(
        at, struct.pack("<QIHH", r.data, DATA_LEN, NEXT | WRITE, 1) + struct.pack("<QIHH", r.status, 1, WRITE, 0)
    )
    r.desc(0, r.head, 16, NEXT, 7)
    r.desc(7, at, 32, INDIRECT)
    r.offer()


def table_out_of_order(r):
    r.table((r.head, 16, NEXT, 3), (r.status, 1, WRITE, 0), (1, 1, NEXT, 0), (r.data, DATA_LEN, NEXT | WRITE, 1))
    r.offer()


def table_odd_address(r):
    entries = b"".join(struct.pack("<QIHH", *entry) for entry in r.entries())
    at = r.arena.alloc(64, 16) + 3
    r.arena.write(at, entries)
    r.desc(0, at, 48, INDIRECT)
    r.offer()


def flags_garbage(r):
    r.queue.avail_flags = 0xFFFE
    r.good()
    r.offer()


WORKS = {
    "R13-chain-of-size": chain_of_size,
    "R15-last-with-next-0": last_goes_to_0,
    "R15-backwards": backwards,
    "R16-unknown-flags": unknown_flags,
    "R26-indirect": with_table(),
    "R27-write-on-the-indirect-descriptor": with_table(WRITE),
    "R28-indirect-behind-direct": indirect_behind_direct,
    "R24-table-out-of-order": table_out_of_order,
    "R20-table-at-an-odd-address": table_odd_address,
    "R33-empty-and-unmapped": empty_at(FAR),
    "R33-empty-at-the-top": empty_at(2**64 - 1),
    "R33-empty-and-mapped": empty_at(0x1000_0000),
    "R55-avail-flags-garbage": flags_garbage,
}


@pytest.mark.parametrize("name", WORKS)
def test_a_chain_that_is_only_odd(ring, name):
    """It is served as any other."""
    WORKS[name](ring)
    ring.read_ok()
    ring.goes_on()


@pytest.mark.parametrize("count", [65, 128, 515, 1023, 1024, 1025, 1026, 4096], ids="R26-{}".format)
def test_tables_longer_than_the_ring(ring, count):
    """R26: up to 1024 entries are served on a ring of 64, as Windows makes them; more break the ring."""
    room = ring.arena.alloc(4096)
    data = [(room + n, 1, NEXT | WRITE, n + 2) for n in range(count - 3)]
    total = -(-(count - 2) // 512) * 512
    rest = (room + count - 3, total - (count - 3), NEXT | WRITE, count - 1)
    entries = [(ring.head, 16, NEXT, 1), *data, rest, (ring.status, 1, WRITE, 0)]
    assert len(entries) == count
    ring.table(*entries)
    ring.offer()
    if count > 1024:
        ring.verr()
    else:
        assert ring.queue.raw_wait(3) == (0, total + 1)
        assert ring.arena.read(room, total) == ring.made.target.content[1536:][:total]
        ring.goes_on()


# Buffers over the borders of regions that touch.

PAIR = adjacent(0x1000_0000, [MIB, MIB])
BORDER = 0x1000_0000 + MIB


@pytest.fixture
def pair(target):
    with Arena(PAIR) as arena, guest(target, arena=arena, size=SIZE, queues=2) as made:
        yield Ring(made, 0)


@pytest.mark.parametrize("split", [1, 8, 15], ids="R41-{}".format)
def test_a_header_over_two_regions(pair, split):
    """R41."""
    pair.head = pair.arena.reserve(BORDER - split, 16)
    pair.arena.write(pair.head, header(Request.IN, 3))
    pair.good()
    pair.offer()
    pair.read_ok()


@pytest.mark.parametrize("split", [1, 100, 511], ids="R40-{}".format)
def test_data_over_two_regions(pair, split):
    """R40."""
    pair.data = pair.arena.reserve(BORDER - split, DATA_LEN)
    pair.good()
    pair.offer()
    pair.read_ok()


def test_a_status_over_two_regions(pair):
    """R42: of two bytes, the last in the second region; the first is data's last."""
    at = pair.arena.reserve(BORDER - 1, 2)
    pair.chain((pair.head, 16, 0), (pair.data, DATA_LEN - 1, WRITE), (at, 2, WRITE))
    pair.offer()
    assert pair.queue.raw_wait(3) == (0, DATA_LEN + 1)
    assert pair.arena.read(at + 1, 1) == b"\0"
    assert pair.arena.read(pair.data, DATA_LEN - 1) + pair.arena.read(at, 1) == pair.made.target.content[1536:][:512]


@pytest.mark.parametrize("split", [8, 16, 40], ids="R43-{}".format)
def test_a_table_over_two_regions(pair, split):
    """R43: of three entries, cut in an entry and between two."""
    at = pair.arena.reserve(BORDER - split, 48)
    pair.arena.write(at, b"".join(struct.pack("<QIHH", *entry) for entry in pair.entries()))
    pair.desc(0, at, 48, INDIRECT)
    pair.offer()
    pair.read_ok()


def test_a_long_table_over_two_regions(pair):
    """R44: of 1024 entries, which kills libvhost-user."""
    room = pair.arena.alloc(1024)
    entries = [(pair.head, 16, NEXT, 1)]
    entries += [(room + n, 1, NEXT | WRITE, n + 2) for n in range(1021)]
    entries += [(room + 1021, 3, NEXT | WRITE, 1023), (pair.status, 1, WRITE, 0)]
    at = pair.arena.reserve(BORDER - 8200, 16384)
    pair.arena.write(at, b"".join(struct.pack("<QIHH", *entry) for entry in entries))
    pair.desc(0, at, 16384, INDIRECT)
    pair.offer()
    assert pair.queue.raw_wait(3) == (0, 1025)
    assert pair.arena.read(room, 1024) == pair.made.target.content[1536:][:1024]


@pytest.mark.parametrize("part", ["header", "data", "status", "table"], ids="R45-{}".format)
def test_a_hole_between_regions(target, part):
    """R45: as the end of memory."""
    regions = [Region(0x1000_0000, MIB), Region(0x1000_0000 + 2 * MIB, MIB)]
    with Arena(regions) as arena, guest(target, arena=arena, size=SIZE) as made:
        ring = Ring(made, 0)
        edge = regions[0].end - 8
        if part == "header":
            ring.chain((edge, 16, 0), (ring.data, DATA_LEN, WRITE), (ring.status, 1, WRITE))
        elif part == "data":
            ring.chain((ring.head, 16, 0), (edge, 2 * MIB, WRITE), (ring.status, 1, WRITE))
        elif part == "status":
            ring.chain((ring.head, 16, 0), (ring.data, DATA_LEN, WRITE), (edge, 16, WRITE))
        else:
            ring.desc(0, edge, 48, INDIRECT)
        ring.offer()
        if part in {"header", "data"}:
            ring.error()
        else:
            ring.verr()


def test_a_thousand_bytes_over_eight_regions(target):
    """R46: a descriptor for each byte, in all regions by turns."""
    regions = adjacent(0x1000_0000, [MIB] * 8)
    with Arena(regions) as arena, guest(target, arena=arena, size=SIZE) as made:
        ring = Ring(made, 0)
        rooms = [arena.alloc(256, 1, region) for region in regions]
        places = [rooms[n % 8] + n // 8 for n in range(512)]
        heads = [ring.arena.alloc(1, 1, regions[n % 8]) for n in range(16)]
        for at, byte in zip(heads, header(Request.IN, 3), strict=True):
            arena.write(at, bytes([byte]))
        parts = [(at, 1, 0) for at in heads] + [(FAR, 0, 0)] * 470
        parts += [(at, 1, WRITE) for at in places] + [(ring.status, 1, WRITE)]
        ring.table(*((*part[:2], part[2] | NEXT * (n + 1 < len(parts)), n + 1) for n, part in enumerate(parts)))
        ring.offer()
        assert ring.queue.raw_wait(3) == (0, 513)
        assert b"".join(arena.read(at, 1) for at in places) == made.target.content[1536:][:512]


# A guest that aims at its own rings hurts only itself.

ALIASES = {
    "R47-descriptor-table": lambda r: (r.queue.desc_gpa, DATA_LEN),
    "R47-avail-ring": lambda r: (r.queue.avail_gpa & ~511, DATA_LEN),
    "R47-used-ring": lambda r: (r.queue.used_gpa & ~511, DATA_LEN),
    "R49-own-header": lambda r: (r.head, DATA_LEN),
}


@pytest.mark.parametrize("name", ALIASES)
def test_data_goes_into_the_ring_itself(target, name):
    """R47, R49: whatever stands there then, the daemon and its other rings do not mind."""
    with guest(target, queues=4, size=SIZE) as made:
        ring = Ring(made, 0)
        at, length = ALIASES[name](ring)
        ring.chain((ring.head, 16, 0), (at, length, WRITE), (ring.status, 1, WRITE))
        ring.offer()
        for _ in range(3):
            ring.queue.kick(force=True)
            assert made.reads(3)
        assert alive(made.frontend)


def test_a_table_that_is_written_by_its_own_request(ring):
    """R49: it was read before."""
    at = ring.table(*ring.entries())
    ring.arena.write(at + 16, struct.pack("<QIHH", at, 512, NEXT | WRITE, 2))
    ring.arena.reserve(at + 48, 512)
    ring.offer()
    assert ring.queue.raw_wait(3) == (0, 513)
    assert ring.arena.read(at, 512) == ring.made.target.content[1536:2048]


def test_a_status_on_the_used_index(target):
    """R48: our next read of the used index never happens."""
    with guest(target, queues=2, size=SIZE) as made:
        ring = Ring(made, 0)
        ring.chain((ring.head, 16, 0), (ring.data, DATA_LEN, WRITE), (ring.queue.used_gpa + 2, 1, WRITE))
        for _ in range(5):
            ring.offer()
        assert made.reads(1)
        assert made.frontend.get_base(0) <= 5


def test_one_head_in_every_slot(ring):
    """R53: while it is in flight a second offer breaks the ring; returned, it may come again."""
    ring.good()
    ring.offer(*[0] * SIZE)
    deadline = 50
    while ring.queue.used_idx < SIZE and deadline and not ring.made.broke(ring.index, 0.02):
        deadline -= 1
    assert ring.queue.used_idx <= SIZE
    assert deadline
    assert alive(ring.made.frontend)


def test_one_head_twice_in_flight(target):
    """R53: on a request that takes a moment, the second offer is seen, and breaks the ring."""
    with guest(target, size=SIZE, memory_len=8 * MIB) as made:
        ring = Ring(made, 0)
        room = made.arena.alloc(2 * MIB)
        ring.data, length = room, 2 * MIB
        # Two reads of other blocks first, so that this one is handed to the kernel.
        ring.chain((ring.head, 16, 0), (room, length, WRITE), (ring.status, 1, WRITE))
        ring.offer(0, 0, 0)
        assert made.broke(0, 3) or ring.queue.used_idx == 3
        assert alive(made.frontend)


def test_heads_that_share_their_tail(ring):
    """R54: each is a valid chain."""
    ring.desc(62, ring.data, DATA_LEN, NEXT | WRITE, 63)
    ring.desc(63, ring.status, 1, WRITE)
    for n in range(60):
        ring.desc(n, ring.head, 16, NEXT, 62)
    ring.offer(*range(60))
    assert sorted(ring.queue.raw_wait(3)[0] for _ in range(60)) == list(range(60))


def test_a_guest_that_writes_the_used_ring(ring):
    """R55: our own index decides."""
    for n in range(10):
        ring.arena.fill(ring.queue.used_gpa, 4 + 8 * SIZE, 0xAA)
        ring.good()
        ring.offer()
        for _ in range(300):
            if ring.queue.used_idx == n + 1:
                break
            assert not ring.made.broke(ring.index, 0.01)
        assert ring.queue.used_idx == n + 1


@pytest.mark.parametrize("value", [0, 1, 2, 0x7FFF, 0x8000, 0xFFFF], ids="R71-{:#x}".format)
def test_used_event_of_any_value(target, value):
    """R71: at most a call too many or too few; a driver that asks properly then is called."""
    with guest(target, size=SIZE) as made:
        ring = Ring(made, 0)
        for n in range(20):
            ring.queue.used_event = (value + n) % 65536 if value else value
            ring.good()
            ring.offer()
            ring.read_ok()
        assert made.reads()


def test_used_event_outruns_us(target):
    """R71: moved at random while requests complete, by a hammer."""
    from vhostd.driver.hammer import Hammer

    with guest(target, size=SIZE) as made:
        view = made.arena.view(made.queue.avail_gpa + 4 + 2 * SIZE, 2)
        driver = made.block()
        driver.poll = True
        with Hammer.flip(view, [struct.pack("<H", n * 7919 % 65536) for n in range(64)]):
            for n in range(300):
                assert driver.read(n % 64, 512) == target.content[n % 64 * 512 :][:512]
        view.release()
        driver.poll = False
        assert driver.read(0, 512) == target.content[:512]
