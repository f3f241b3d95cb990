"""The driver's half of the split ring against a device written from the specification."""

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference_device import ReferenceDevice, need_event
from vhostd.driver.arena import Arena, Region
from vhostd.driver.layout import legacy_layout
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError, RingError


@pytest.fixture
def arena():
    with Arena.of(1 << 20) as arena:
        yield arena


def make(arena, size=8, **options):
    queue = Virtqueue(arena, size, **options)
    return queue, ReferenceDevice(arena, queue, options.get("base", 0))


def test_a_direct_chain_is_what_the_device_walks(arena):
    """2.7.5: linked descriptors, readable before writable (2.7.4.2)."""
    queue, device = make(arena)
    head = queue.add([(0x1000, 16), (0x2000, 512)], [(0x3000, 4096), (0x4000, 1)])
    assert device.pop() is None
    queue.publish()
    assert device.pop() == (head, [(0x1000, 16), (0x2000, 512)], [(0x3000, 4096), (0x4000, 1)])
    assert (queue.free, queue.in_flight) == (4, 1)


def test_an_indirect_chain_takes_one_descriptor_and_frees_its_table(arena):
    """2.7.5.3."""
    queue, device = make(arena, indirect=True)
    before = arena.allocated
    head = queue.add([(0x1000, 16)], [(0x3000, 4096), (0x4000, 1)], token="t")
    queue.publish()
    assert queue.free == 7
    assert queue.read_desc(head).flags == 4
    assert device.serve(4097) == [(head, [(0x1000, 16)], [(0x3000, 4096), (0x4000, 1)])]
    assert queue.reap() == [(head, 4097, "t")]
    assert arena.allocated == before


def test_used_elements_come_in_the_devices_order_with_length_and_token(arena):
    """2.7.8: the device may use chains in any order."""
    queue, device = make(arena)
    heads = [queue.add([], [(0x1000, 100)], token=n) for n in range(3)]
    queue.publish()
    for _ in heads:
        device.pop()
    for n in (2, 0, 1):
        device.push(heads[n], n)
    device.publish()
    assert queue.reap() == [(heads[n], n, n) for n in (2, 0, 1)]
    assert queue.free == 8


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("size", [1, 2, 64, 32768])
def test_indexes_wrap_past_65536(event_idx, size):
    """2.7.6, 2.7.8: idx runs free modulo 2**16."""
    with Arena.of(2 << 20) as arena:
        queue, device = make(arena, size, event_idx=event_idx, base=65533)
        for n in range(8):
            head = queue.add([(0x1000, n + 1)], [])
            queue.publish()
            assert device.serve() == [(head, [(0x1000, n + 1)], [])]
            assert queue.reap() == [(head, 0, None)]
        assert queue.avail_idx == queue.used_idx == 5


def test_a_full_ring_refuses_and_stays_whole(arena):
    queue, device = make(arena, 4)
    for _ in range(2):
        queue.add([(0, 1)], [(1, 1)])
    with pytest.raises(LocalProtocolError, match="do not fit"):
        queue.add([(0, 1)], [])
    with pytest.raises(LocalProtocolError, match="needs a buffer"):
        queue.add([], [])
    queue.publish()
    assert len(device.serve()) == 2
    queue.reap()
    assert queue.free == 4


def test_a_chain_of_the_whole_ring_and_one_longer(arena):
    """2.7.5.3.1: a direct chain is no longer than the ring; an indirect one may be refused by it too, not by us."""
    queue, device = make(arena, 4)
    head = queue.add([(n, 1) for n in range(4)], [])
    queue.publish()
    assert device.serve() == [(head, [(n, 1) for n in range(4)], [])]
    queue.reap()
    with pytest.raises(LocalProtocolError, match="do not fit"):
        queue.add([(n, 1) for n in range(5)], [])
    queue.add([(n, 1) for n in range(5)], [], indirect=True)


@pytest.mark.parametrize(
    ("head", "length", "rule"),
    [(9, 0, "no chain in flight"), (8, 0, "no chain in flight"), (3, 0, "no chain in flight"), (0, 101, "writable")],
)
def test_a_wrong_used_element_breaks_the_ring_for_good(arena, head, length, rule):
    """2.7.8, 2.7.8.2: the id is a head in flight, the length no more than its writable bytes."""
    queue, device = make(arena)
    assert queue.add([], [(0x1000, 100)]) == 0
    queue.publish()
    device.pop()
    device.push(head, length)
    device.publish()
    for _ in range(2):
        with pytest.raises(DeviceError, match=rule):
            queue.pop()
    assert rule in queue.broken
    with pytest.raises(DeviceError, match=rule):
        queue.add([(0, 1)], [])
    queue.reset()
    assert queue.broken is None
    assert queue.free == 8


def test_a_head_returned_twice_and_an_idx_that_runs_ahead_break_the_ring(arena):
    """2.7.8: used.idx never passes what was made available."""
    queue, device = make(arena)
    first, second = (queue.add([], [(0x1000, 1)]) for _ in range(2))
    queue.publish()
    device.push(first, 0)
    device.push(first, 0)
    device.publish()
    assert queue.pop().head == first
    with pytest.raises(DeviceError, match="no chain in flight"):
        queue.pop()
    queue.reset()
    device = ReferenceDevice(arena, queue)
    queue.add([(0, 1)], [])
    queue.publish()
    device.push(second, 0)
    device.push(second, 0)
    device.publish()
    with pytest.raises(DeviceError, match="ran past"):
        queue.pop()


def test_kicks_follow_the_flag_without_event_idx(arena):
    """2.7.10.1: used.flags bit 0 says no kicks."""
    queue, device = make(arena)
    device.want_kicks(False)
    queue.add([(0, 1)], [])
    assert not queue.publish()
    device.want_kicks(True)
    assert not queue.publish()  # nothing new
    queue.add([(0, 1)], [])
    assert queue.publish()
    assert (queue.kicks, queue.publishes) == (1, 2)


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(1, 8))
@settings(deadline=None)
def test_kicks_follow_avail_event(base, event, count):
    """2.7.10: a kick when the entry that avail_event names is among the new ones; flags are then of no account."""
    with Arena.of(1 << 16) as arena, Virtqueue(arena, 8, event_idx=True, base=base) as queue:
        device = ReferenceDevice(arena, queue, base)
        device.put16(device.avail_event_gpa, event)
        device.put16(queue.used_gpa, 1)
        for _ in range(count):
            queue.add([(0, 1)], [])
        assert queue.publish() == need_event(event, (base + count) % 65536, base)


@pytest.mark.parametrize("event_idx", [False, True])
def test_arming_asks_for_the_next_call_and_sees_what_came_before(arena, event_idx):
    """2.7.7: after asking for calls, look again."""
    queue, device = make(arena, event_idx=event_idx)
    heads = [queue.add([(0, 1)], []) for _ in range(3)]
    queue.publish()
    queue.disarm()
    device.push(heads[0], 0)
    assert not device.publish()
    assert queue.arm()
    queue.reap()
    assert not queue.arm()
    device.push(heads[1], 0)
    assert device.publish()
    assert queue.take_call() == 1
    assert queue.take_call() == 0
    queue.disarm()
    assert queue.avail_flags == (0 if event_idx else 1)  # 2.7.7.1: with EVENT_IDX flags stays 0


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("poll", [False, True])
def test_wait_returns_what_is_there_and_times_out_otherwise(arena, event_idx, poll):
    queue, device = make(arena, event_idx=event_idx)
    head = queue.add([], [(0x1000, 10)])
    queue.publish()
    with pytest.raises(DeviceTimeout, match="1 chains"):
        queue.wait(0.01, poll=poll)
    device.pop()
    device.push(head, 7)
    assert device.publish() is not poll
    assert queue.wait(0.01, poll=poll) == [(head, 7, None)]


def test_the_error_eventfd_ends_a_wait(arena):
    """vhost-user, "Ring states": a back-end tells of a bad ring by SET_VRING_ERR's eventfd."""
    queue, _ = make(arena)
    queue.add([(0, 1)], [])
    queue.publish()
    os.eventfd_write(queue.err_fd.number, 1)
    with pytest.raises(RingError):
        queue.wait(1)
    assert queue.take_err() == 1


def test_parts_may_lie_in_three_regions():
    regions = [Region(n << 20, 1 << 16) for n in (1, 2, 4)]
    with Arena(regions) as arena:
        parts = tuple(arena.alloc(2048, 16, region) for region in regions)
        with Virtqueue(arena, 64, parts=parts, event_idx=True) as queue:
            device = ReferenceDevice(arena, queue)
            head = queue.add([(5, 6)], [])
            queue.publish()
            assert device.serve() == [(head, [(5, 6)], [])]
            assert queue.uvas == tuple(arena.uva(gpa) for gpa in parts)


def test_without_event_idx_the_bytes_behind_the_rings_are_not_touched(arena):
    """2.7.6, 2.7.8: the event fields exist only with EVENT_IDX; ILLUMOS E.3."""
    start = arena.alloc(4096, 4096)
    arena.fill(start, 4096, 0xEE)
    parts = (start, start + 128, start + 256)
    queue, device = make(arena, 8, parts=parts)
    for _ in range(20):
        queue.add([(0, 1)], [])
        queue.publish()
        device.serve()
        queue.reap()
        queue.arm()
    assert arena.read(start + 128 + 20, 256 - 148) == b"\xee" * 108
    assert arena.read(start + 256 + 68, 64) == b"\xee" * 64
    with pytest.raises(LocalProtocolError, match="EVENT_IDX"):
        _ = queue.used_event


def test_raw_access_writes_anything(arena):
    queue, _ = make(arena)
    queue.raw_desc(3, 2**64 - 1, 2**32 - 1, 0xFFFF, 77)
    assert queue.read_desc(3) == (2**64 - 1, 2**32 - 1, 0xFFFF, 77)
    assert arena.read(queue.desc_gpa + 48, 16) == struct.pack("<QIHH", 2**64 - 1, 2**32 - 1, 0xFFFF, 77)
    queue.raw_push(60000)
    queue.publish()
    assert arena.read(queue.avail_gpa + 4, 2) == struct.pack("<H", 60000)
    queue.avail_idx = 9000
    queue.avail_flags = 0xFFFE
    assert arena.read(queue.avail_gpa, 4) == struct.pack("<HH", 0xFFFE, 9000)
    with pytest.raises(IndexError):
        queue.raw_desc(8, 0, 0)
    arena.write(queue.used_gpa + 2, struct.pack("<HII", 1, 999, 5))
    assert queue.raw_pop() == (999, 5)
    assert queue.raw_pop() is None


def test_close_is_idempotent_and_gives_everything_back(arena):
    queue, _ = make(arena, 16, layout=legacy_layout(16), indirect=True)
    queue.add([(0, 1)], [(1, 1)])
    queue.close()
    queue.close()
    assert arena.allocated == 0
    for call in (queue.pop, queue.publish, queue.reset, lambda: queue.add([(0, 1)], [])):
        with pytest.raises(LocalProtocolError, match="after close"):
            call()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_traffic_comes_back_as_it_went(data):
    """Chains of any shape, direct or indirect, used in any order and in batches, with calls and kicks as promised."""
    size = data.draw(st.sampled_from([1, 2, 4, 16, 128]))
    event_idx = data.draw(st.booleans())
    base = data.draw(st.integers(65500, 65535) | st.just(0))
    with Arena.of(1 << 18) as arena, Virtqueue(arena, size, event_idx=event_idx, base=base) as queue:
        device = ReferenceDevice(arena, queue, base)
        idle = arena.allocated
        flying, held, token = {}, [], 0
        kicked = True  # a device looks at its ring when it starts
        for step in data.draw(st.lists(st.sampled_from(["add", "publish", "pop", "use", "reap"]), max_size=60)):
            if step == "add":
                buffers = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=3)
                readable, writable = data.draw(buffers), data.draw(buffers)
                indirect = data.draw(st.booleans())
                need = 1 if indirect else len(readable) + len(writable)
                if len(readable) + len(writable) > 0 and need <= queue.free:
                    head = queue.add(readable, writable, token=token, indirect=indirect)
                    assert head not in flying
                    flying[head] = (readable, writable, token)
                    token += 1
            elif step == "publish":
                kicked |= queue.publish()
            elif step == "pop":
                if not kicked:
                    continue
                device.want_kicks(False)
                while (chain := device.pop()) is not None:
                    held.append(chain)
                device.want_kicks(True)
                kicked = bool(device.pending())
            elif step == "use" and held:
                for _ in range(data.draw(st.integers(1, len(held)))):
                    head, readable, writable = held.pop(data.draw(st.integers(0, len(held) - 1)))
                    assert (readable, writable) == flying[head][:2]
                    device.push(head, min(sum(length for _, length in writable), 2**32 - 1))
                device.publish()
            elif step == "reap":
                for used in queue.reap():
                    _, writable, sent = flying.pop(used.head)
                    assert used.token == sent
                    assert used.length == min(sum(length for _, length in writable), 2**32 - 1)
        kicked |= queue.publish()
        assert kicked or not device.pending(), "an entry that was published and never announced"
        for head, *_ in held:
            device.push(head, 0)
        device.publish()
        device.serve()
        for used in queue.reap():
            flying.pop(used.head)
        assert not flying
        assert queue.free == size
        assert arena.allocated == idle
