"""The split ring, device side, against rings written field by field (virtio 2.7; HOSTILE R rows)."""

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_ring import AVAIL, DATA, INDIRECT, NEXT, TABLE, USED, UVA, WRITE, FakeGuest, FakeRing
from vhostd.errors import GuestMemoryError, LocalProtocolError, RemoteProtocolError
from vhostd.queues.counters import Counters
from vhostd.queues.queue import EXPLAIN, Code, Queue
from vhostd.spec import virtio

MODERN = int(virtio.Feature.VERSION_1 | virtio.Feature.INDIRECT_DESC)
EVENT = MODERN | int(virtio.Feature.EVENT_IDX)


@pytest.fixture
def ring():
    fake = FakeRing()
    yield fake
    fake.close()


@pytest.fixture
def event_ring():
    fake = FakeRing(features=EVENT)
    yield fake
    fake.close()


def lengths(buffers):
    return [length for _, length in buffers]


def test_an_empty_ring_is_empty(ring):
    """2.7.6: nothing is available while idx has not moved."""
    assert ring.queue.pop() is Code.EMPTY


def test_a_chain_comes_out_in_its_order(ring):
    """2.7.5: buffers follow next; 2.7.4.2: readable ones first."""
    ring.chain(2, [(DATA, 16, 0), (DATA + 16, 512, WRITE), (DATA + 1024, 1, WRITE)])
    ring.make_available(2)
    head, readable, writable = ring.queue.pop()
    assert head == 2
    assert lengths(readable) == [16]
    assert lengths(writable) == [512, 1]
    assert ring.queue.in_flight == 1


@pytest.mark.parametrize("head", [8, 60000, 65535], ids=["R1", "R2", "R3"])
def test_a_head_outside_the_table_breaks_the_ring_once(ring, head):
    """2.7.6: an avail entry names a descriptor. 8 names none of 0..7."""
    ring.make_available(head=head)
    assert ring.queue.pop() is Code.E_HEAD
    assert ring.queue.pop() is Code.E_BROKEN
    assert ring.queue.broken is Code.E_HEAD


@pytest.mark.parametrize(
    ("descriptors", "code"),
    [
        pytest.param([(0, DATA, 1, NEXT, 0)], Code.E_LOOP, id="R10-self"),
        pytest.param([(0, DATA, 1, NEXT, 1), (1, DATA, 1, NEXT, 0)], Code.E_LOOP, id="R10-two"),
        pytest.param([(i, DATA, 1, NEXT, (i + 1) % 8) for i in range(8)], Code.E_LOOP, id="R10-all"),
        pytest.param([(0, DATA, 0, NEXT, 0)], Code.E_LOOP, id="R11-empty"),
        pytest.param([(0, DATA, 1, NEXT, 8)], Code.E_NEXT, id="R12-size"),
        pytest.param([(0, DATA, 1, NEXT, 60000)], Code.E_NEXT, id="R12-far"),
        pytest.param([(0, DATA, 1, WRITE | NEXT, 1), (1, DATA, 1, 0, 0)], Code.E_ORDER, id="R27-order"),
        pytest.param([(0, DATA, 0xFFFFFFFF, NEXT, 1), (1, DATA, 1, 0, 0)], Code.E_LENGTH, id="R36"),
        pytest.param([(0, DATA, 0, INDIRECT, 0)], Code.E_TABLE, id="R20-0"),
        pytest.param([(0, DATA, 1, INDIRECT, 0)], Code.E_TABLE, id="R20-1"),
        pytest.param([(0, DATA, 15, INDIRECT, 0)], Code.E_TABLE, id="R20-15"),
        pytest.param([(0, DATA, 17, INDIRECT, 0)], Code.E_TABLE, id="R20-17"),
        pytest.param([(0, DATA, 0xFFFFFFF0, INDIRECT, 0)], Code.E_TABLE, id="R21-huge"),
        pytest.param([(0, DATA, 1 << 20, INDIRECT, 0)], Code.E_TABLE, id="R21-mib"),
        pytest.param([(0, DATA, 16, INDIRECT | NEXT, 1), (1, DATA, 1, 0, 0)], Code.E_INDIRECT, id="R23"),
        pytest.param([(0, 1 << 40, 16, INDIRECT, 0)], Code.E_TABLE, id="R30-table"),
        pytest.param([(0, 0xFFF0, 16 * 1025, INDIRECT, 0)], Code.E_TABLE, id="R26-1025"),
        pytest.param([(0, (1 << 64) - 16, 32, INDIRECT, 0)], Code.E_TABLE, id="R32-table"),
    ],
)
def test_a_chain_that_breaks_a_rule_breaks_the_ring(ring, descriptors, code):
    """2.7.5, 2.7.5.3.1: the driver's MUSTs; sticky, counted once, VRING_ERR raised, nothing published."""
    for index, addr, length, flags, next_ in descriptors:
        ring.desc(index, addr, length, flags, next_)
    ring.make_available(0)
    assert ring.queue.pop() is code
    assert ring.queue.pop() is Code.E_BROKEN
    ring.queue.flush()
    assert ring.used_idx == 0
    assert ring.errors() == 1
    assert ring.counters.snapshot()["ring_errors"] == 1
    assert EXPLAIN[code]


def indirect(ring, entries, at=0x20000, head=0, flags=INDIRECT):
    for i, (addr, length, f, next_) in enumerate(entries):
        ring.guest.write(at + 16 * i, struct.pack("<QIHH", addr, length, f, next_))
    ring.desc(head, at, 16 * len(entries), flags)
    ring.make_available(head)


def test_R22_an_indirect_descriptor_in_an_indirect_table(ring):
    """2.7.5.3.1: MUST NOT."""
    indirect(ring, [(DATA, 16, INDIRECT, 0)])
    assert ring.queue.pop() is Code.E_INDIRECT


def test_R22_in_the_middle_of_the_table(ring):
    """2.7.5.3.1: MUST NOT."""
    indirect(ring, [(DATA, 16, NEXT, 1), (DATA, 16, INDIRECT, 0)])
    assert ring.queue.pop() is Code.E_INDIRECT


def test_R24_next_outside_the_table(ring):
    """2.7.5.3: next is an index into the same table."""
    indirect(ring, [(DATA, 16, NEXT, 2), (DATA, 16, 0, 0)])
    assert ring.queue.pop() is Code.E_NEXT


def test_R24_a_loop_in_the_table(ring):
    """2.7.5: no loops."""
    indirect(ring, [(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)])
    assert ring.queue.pop() is Code.E_LOOP


def test_R25_indirect_without_the_feature():
    """2.7.5.3.1: MUST NOT set it unless negotiated."""
    ring = FakeRing(features=int(virtio.Feature.VERSION_1))
    indirect(ring, [(DATA, 16, 0, 0)])
    assert ring.queue.pop() is Code.E_INDIRECT
    ring.close()


@pytest.mark.parametrize("entries", [1, 8, 128, 515, 1024], ids=lambda n: f"R26-{n}")
def test_an_indirect_table_may_be_longer_than_the_ring(ring, entries):
    """ILLUMOS R2.14, HOSTILE R26: guests send tables longer than the ring; 1024 entries are taken."""
    indirect(ring, [(DATA, 1, NEXT if i < entries - 1 else 0, i + 1) for i in range(entries)])
    _, readable, writable = ring.queue.pop()
    assert sum(lengths(readable)) == entries
    assert writable == []


def test_R27_the_write_flag_of_the_indirect_descriptor_is_ignored(ring):
    """2.7.5.3.2: the device MUST ignore it."""
    indirect(ring, [(DATA, 16, 0, 0)], flags=INDIRECT | WRITE)
    _, readable, writable = ring.queue.pop()
    assert (lengths(readable), writable) == ([16], [])


def test_R28_an_indirect_descriptor_at_the_end_of_a_chain(ring):
    """2.7.5.3.2: the device MUST handle zero or more normal chained descriptors followed by one with INDIRECT."""
    ring.guest.write(0x20000, struct.pack("<QIHH", DATA + 64, 32, WRITE, 0))
    ring.desc(0, DATA, 16, NEXT, 1)
    ring.desc(1, 0x20000, 16, INDIRECT)
    ring.make_available(0)
    _, readable, writable = ring.queue.pop()
    assert (lengths(readable), lengths(writable)) == ([16], [32])


def test_R13_a_chain_as_long_as_the_ring(ring):
    """2.7.5: as many descriptors as there are."""
    ring.chain(0, [(DATA + 64 * i, 8, 0) for i in range(8)])
    ring.make_available(0)
    _, readable, _ = ring.queue.pop()
    assert lengths(readable) == [8] * 8


def test_R16_unknown_flags_are_ignored(ring):
    """2.7.5: reserved bits."""
    ring.desc(0, DATA, 16, 0xFFF8)
    ring.make_available(0)
    assert lengths(ring.queue.pop()[1]) == [16]


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        pytest.param(1 << 40, 16, id="R30"),
        pytest.param((1 << 20) - 8, 16, id="R31"),
        pytest.param((1 << 64) - 8, 16, id="R32"),
        pytest.param((1 << 64) - 1, 1, id="R34"),
    ],
)
def test_a_buffer_outside_memory_has_no_address(ring, addr, length):
    """HOSTILE R30-R34: the chain is bad, the ring is not; its bytes still count."""
    ring.desc(0, addr, length, NEXT, 1)
    ring.desc(1, DATA, 1, WRITE)
    ring.make_available(0)
    _, readable, writable = ring.queue.pop()
    assert sum(lengths(readable)) == length
    assert readable[-1][0] == 0
    assert lengths(writable) == [1]
    assert ring.queue.broken is None


def test_R33_an_empty_descriptor_is_skipped_wherever_it_points(ring):
    """HOSTILE R33: not touched, no buffer."""
    ring.desc(0, 1 << 50, 0, NEXT, 1)
    ring.desc(1, DATA, 4, 0)
    ring.make_available(0)
    assert lengths(ring.queue.pop()[1]) == [4]


def test_R40_a_buffer_over_two_adjacent_regions_becomes_two():
    """HOSTILE R40-R42: an address is good for its length in one region only."""
    ring = FakeRing(guest=FakeGuest(borders=(DATA + 100,)))
    ring.desc(0, DATA, 300, 0)
    ring.make_available(0)
    assert lengths(ring.queue.pop()[1]) == [100, 200]
    ring.close()


@pytest.mark.parametrize("entries", [3, 1024], ids=["R43", "R44"])
def test_an_indirect_table_over_two_regions(entries):
    """HOSTILE R43, R44: entry by entry, the one that the border cuts included."""
    at = 0x20000 - 24
    ring = FakeRing(guest=FakeGuest(borders=(0x20000,)))
    indirect(ring, [(DATA + i, 1, NEXT if i < entries - 1 else 0, i + 1) for i in range(entries)], at=at)
    assert sum(lengths(ring.queue.pop()[1])) == entries
    ring.close()


def test_R45_a_buffer_over_a_hole_is_bad():
    """HOSTILE R45: what follows the hole is not what the driver meant."""
    ring = FakeRing(guest=FakeGuest(borders=(DATA + 0x1000, DATA + 0x2000), holes=(DATA + 0x1000,)))
    ring.desc(0, DATA, 0x3000, 0)
    ring.make_available(0)
    readable = ring.queue.pop()[1]
    assert sum(lengths(readable)) == 0x3000
    assert readable[-1][0] == 0
    ring.close()


def test_R46_a_thousand_one_byte_descriptors_over_eight_regions():
    """HOSTILE R46."""
    borders = tuple(DATA + 0x1000 * i for i in range(1, 8))
    ring = FakeRing(guest=FakeGuest(borders=borders))
    entries = 1000
    table = [(DATA + 0x1000 * (i % 8) + i, 1, NEXT if i < entries - 1 else 0, i + 1) for i in range(entries)]
    indirect(ring, table)
    assert lengths(ring.queue.pop()[1]) == [1] * entries
    ring.close()


@pytest.mark.parametrize("ahead", [9, 32768, 65535], ids=lambda n: f"R50-{n}")
def test_an_index_further_ahead_than_the_ring_is_long(ring, ahead):
    """2.7.6: at most one entry a descriptor."""
    ring.set_avail_idx(ahead)
    assert ring.queue.pop() is Code.E_AVAIL_IDX


def test_R52_an_index_that_goes_back(ring):
    """HOSTILE R52: the same as a jump."""
    for head in range(2):
        ring.chain(head, [(DATA, 1, 0)])
        ring.make_available(head)
    ring.queue.pop()
    ring.queue.pop()
    ring.set_avail_idx(0)
    assert ring.queue.pop() is Code.E_AVAIL_IDX


def test_R53_a_head_offered_again_while_in_flight(ring):
    """2.7.13: a descriptor is the device's until it is used."""
    ring.chain(3, [(DATA, 1, 0)])
    ring.make_available(3)
    ring.make_available(3)
    assert ring.queue.pop()[0] == 3
    assert ring.queue.pop() is Code.E_BUSY


def test_R53_a_head_offered_again_after_use_is_fine(ring):
    """2.7.13: used means the driver's again."""
    ring.chain(3, [(DATA, 1, 0)])
    ring.make_available(3)
    head = ring.queue.pop()[0]
    ring.queue.push(head, 0)
    ring.make_available(3)
    assert ring.queue.pop()[0] == 3


def test_R54_heads_that_share_their_tail(ring):
    """HOSTILE R54: each is a chain; the guest hurts itself."""
    ring.desc(7, DATA, 8, 0)
    for head in range(3):
        ring.desc(head, DATA + 64, 8, NEXT, 7)
        ring.make_available(head)
    assert [ring.queue.pop()[0] for _ in range(3)] == [0, 1, 2]


def test_R55_what_the_guest_writes_into_the_used_ring_does_not_matter(ring):
    """HOSTILE R55: our own index decides."""
    for head in range(2):
        ring.chain(head, [(DATA, 1, 0)])
        ring.make_available(head)
    for _ in range(2):
        head = ring.queue.pop()[0]
        ring.guest.write(USED, b"\xff" * 64)
        ring.queue.push(head, 0)
        ring.queue.flush()
    assert ring.used_idx == 2
    assert ring.used(1) == (1, 0)


def test_used_elements_become_visible_together_with_the_index(ring):
    """2.7.8: id and bytes written; nothing before flush."""
    ring.chain(5, [(DATA, 512, WRITE)])
    ring.make_available(5)
    head = ring.queue.pop()[0]
    ring.queue.push(head, 512)
    assert ring.used_idx == 0
    ring.queue.flush()
    assert ring.used_idx == 1
    assert ring.used(0) == (5, 512)
    assert ring.queue.in_flight == 0


def test_a_chain_is_returned_once(ring):
    """ILLUMOS R2.9: who popped the chain pushes it, once."""
    ring.chain(5, [(DATA, 512, WRITE)])
    ring.make_available(5)
    ring.queue.pop()
    ring.queue.push(5, 0)
    with pytest.raises(LocalProtocolError):
        ring.queue.push(5, 0)


def use_one(ring, head=0):
    ring.chain(head, [(DATA, 1, 0)])
    ring.make_available(head)
    ring.queue.push(ring.queue.pop()[0], 0)
    ring.queue.flush()


def test_one_call_a_batch(ring):
    """2.7.7: without EVENT_IDX and NO_INTERRUPT the driver is called."""
    for head in range(4):
        ring.chain(head, [(DATA, 1, 0)])
        ring.make_available(head)
    for _ in range(4):
        ring.queue.push(ring.queue.pop()[0], 0)
    ring.queue.flush()
    ring.queue.flush()
    assert ring.calls() == 1


def test_R73_no_call_when_the_driver_wants_none(ring):
    """2.7.7: NO_INTERRUPT; the completion is visible all the same."""
    ring.set_avail_flags(1)
    use_one(ring)
    assert ring.calls() == 0
    assert ring.used_idx == 1
    assert ring.counters.snapshot()["calls_suppressed"] == 1


@pytest.mark.parametrize(("event", "called"), [(0, True), (1, False), (5, False), (0xFFFF, False)])
def test_R71_event_idx_says_when_to_call(event_ring, event, called):
    """2.7.7.2: when idx passes used_event."""
    event_ring.set_used_event(event)
    use_one(event_ring)
    assert bool(event_ring.calls()) is called


def test_event_idx_leaves_the_flags_alone(event_ring):
    """2.7.10.1: with EVENT_IDX the device MUST set flags to 0."""
    event_ring.queue.kicks_off()
    assert event_ring.used_flags == 0
    event_ring.queue.kicks_on()
    assert event_ring.avail_event == 0


def test_without_event_idx_the_flag_says_it(ring):
    """2.7.10: NO_NOTIFY, and off again."""
    ring.queue.kicks_off()
    assert ring.used_flags == 1
    assert ring.queue.kicks_on() is False
    assert ring.used_flags == 0


@pytest.mark.parametrize("features", [MODERN, EVENT])
def test_what_came_while_kicks_were_off_is_seen_when_they_are_on(features):
    """2.7.10.2: after enabling, look again."""
    ring = FakeRing(features=features)
    ring.queue.kicks_off()
    ring.chain(0, [(DATA, 1, 0)])
    ring.make_available(0)
    assert ring.queue.kicks_on() is True
    ring.close()


@pytest.mark.parametrize("size", [1, 2, 256], ids=lambda n: f"R76-{n}")
@pytest.mark.parametrize("features", [MODERN, EVENT])
def test_indices_wrap(size, features):
    """HOSTILE R76: 16-bit indices run free, past 65535."""
    ring = FakeRing(size=size, features=features, base=65530)
    for i in range(20):
        head = i % size
        ring.chain(head, [(DATA, 1, 0)])
        ring.make_available(head)
        assert ring.queue.pop()[0] == head
        ring.queue.push(head, i)
        ring.queue.flush()
        assert ring.used_idx == (65530 + i + 1) & 0xFFFF
        assert ring.used((65530 + i) % size) == (head, i)
    assert ring.queue.base == (65530 + 20) & 0xFFFF
    ring.close()


def test_the_largest_ring():
    """2.7: up to 32768 descriptors."""
    guest = FakeGuest(length=4 << 20)
    size = 32768
    desc, avail, used = UVA, UVA + 0x100000, UVA + 0x200000
    queue = Queue(0, size, desc, avail, used, 0, MODERN, guest.memory, Counters())
    queue.set_enabled(True)
    guest.write(16 * (size - 1), struct.pack("<QIHH", 0x300000, 4, 0, 0))
    guest.write(0x100000, struct.pack("<HHH", 0, 1, size - 1))
    assert queue.pop()[0] == size - 1
    guest.close()


@pytest.mark.parametrize("size", [0, 3, 100, 32769, 65536], ids=lambda n: f"S57-{n}")
def test_a_size_that_is_none(size):
    """2.7: a power of two up to 32768."""
    guest = FakeGuest()
    with pytest.raises(RemoteProtocolError, match=r"virtio 2\.7"):
        Queue(0, size, UVA, UVA + AVAIL, UVA + USED, 0, MODERN, guest.memory, Counters())
    guest.close()


@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [
        pytest.param(0, UVA + AVAIL, UVA + USED, id="S48-zero"),
        pytest.param(UVA - 16, UVA + AVAIL, UVA + USED, id="S48-below"),
        pytest.param((1 << 64) - 16, UVA + AVAIL, UVA + USED, id="S48-top"),
        pytest.param(UVA + 8, UVA + AVAIL, UVA + USED, id="S49-desc"),
        pytest.param(UVA, UVA + AVAIL + 1, UVA + USED, id="S49-avail"),
        pytest.param(UVA, UVA + AVAIL, UVA + USED + 2, id="S49-used"),
        pytest.param(UVA + (1 << 20) - 64, UVA + AVAIL, UVA + USED, id="S51-desc"),
        pytest.param(UVA, UVA + (1 << 20) - 20, UVA + USED, id="S51-used-event"),
        pytest.param(UVA, UVA + AVAIL, UVA + (1 << 20) - 68, id="S51-avail-event"),
    ],
)
def test_a_ring_that_does_not_lie_in_memory(desc, avail, used):
    """2.7: alignment; HOSTILE S51: the event fields belong to the ring."""
    guest = FakeGuest()
    with pytest.raises(GuestMemoryError, match="ring 0"):
        Queue(0, 8, desc, avail, used, 0, EVENT, guest.memory, Counters())
    guest.close()


def test_S52_a_ring_over_two_regions_is_refused():
    """HOSTILE S52: adjacent for the front-end is not adjacent for us."""
    guest = FakeGuest(borders=(64,))
    with pytest.raises(GuestMemoryError):
        Queue(0, 8, UVA, UVA + AVAIL, UVA + USED, 0, MODERN, guest.memory, Counters())
    guest.close()


def test_a_replacement_goes_on_where_the_old_one_was(ring):
    """queues: new memory makes a new Queue, which adopts the running state."""
    for head in range(3):
        ring.chain(head, [(DATA, 1, 0)])
        ring.make_available(head)
    ring.queue.pop()
    new = ring.make_queue(MODERN, 0)
    new.adopt(ring.queue)
    assert new.in_flight == 1
    assert new.pop()[0] == 1
    new.push(0, 7)
    new.flush()
    assert ring.used(0) == (0, 7)


def test_vanished_memory_breaks_the_ring_and_publishes_nothing(ring):
    """HOSTILE S78: the file behind guest memory is truncated under us."""
    ring.chain(0, [(DATA, 1, 0)])
    ring.make_available(0)
    head = ring.queue.pop()[0]
    os.ftruncate(ring.guest.files[0].number, 0)
    ring.queue.push(head, 0)
    ring.queue.flush()
    assert ring.guest.fault.raised
    assert ring.queue.broken is Code.E_FAULT


buffers = st.lists(st.tuples(st.integers(0, 0x8000), st.integers(0, 4096), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(buffers, min_size=1, max_size=40), st.booleans())
def test_bytes_in_are_bytes_out(chains, event_idx):
    """Property: whatever the framing, each chain has the bytes its descriptors name, in order, once."""
    ring = FakeRing(size=8, features=EVENT if event_idx else MODERN)
    try:
        for chain in chains:
            ordered = sorted(chain, key=lambda b: b[2])
            ring.chain(0, [(DATA + a, n, WRITE if w else 0) for a, n, w in ordered])
            ring.make_available(0)
            head, readable, writable = ring.queue.pop()
            assert sum(lengths(readable)) == sum(n for _, n, w in ordered if not w)
            assert sum(lengths(writable)) == sum(n for _, n, w in ordered if w)
            ring.queue.push(head, 0)
            ring.queue.flush()
        assert ring.used_idx == len(chains)
        assert ring.queue.in_flight == 0
    finally:
        ring.close()


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=128, max_size=128), st.binary(min_size=20, max_size=20), st.binary(max_size=512))
def test_R90_random_rings_never_do_more_than_break(table, avail, indirect_table):
    """HOSTILE R90: whatever is in the ring, an answer comes, and it is a chain, nothing, or a break."""
    ring = FakeRing(size=8, features=EVENT)
    try:
        ring.guest.write(TABLE, table)
        ring.guest.write(AVAIL, avail)
        ring.guest.write(0x20000, indirect_table)
        for _ in range(10):
            got = ring.queue.pop()
            if isinstance(got, Code):
                assert got in Code
                if got is Code.EMPTY:
                    break
            else:
                for address, length in (*got[1], *got[2]):
                    assert length > 0
                    assert address == 0 or any(
                        low <= address and address + length <= low + region.length
                        for region in ring.guest.regions
                        for low in [ring.guest.memory.translate(region.gpa, region.length)]
                    )
                ring.queue.push(got[0], 0)
        ring.queue.flush()
        assert ring.queue.in_flight in (0, 1)
    finally:
        ring.close()
