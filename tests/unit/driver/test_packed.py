"""The packed ring's driver half against a device's half written separately (virtio 2.8)."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.packed_device import AVAIL, DESC, DISABLE, ENABLE, USED, WRITE, PackedDevice
from vhostd.driver.arena import Arena
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, LocalProtocolError

MIB = 1 << 20


@pytest.fixture
def arena():
    with Arena.of(2 * MIB) as made:
        yield made


def pair(arena, size=8, *, slot=0, wrap=1, **options):
    half = slot | wrap << 15
    queue = Virtqueue(arena, size, packed=True, base=half | half << 16, **options)
    return queue, PackedDevice(arena, queue, slot, wrap)


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_chain_there_and_back(arena, indirect):
    """2.8.5, 2.8.7, 2.8.21: buffers in order, the id is the driver's, the length the device's."""
    queue, device = pair(arena, indirect=indirect)
    head = queue.add([(0x1000, 16)], [(0x2000, 512), (0x3000, 1)], token="t")
    assert device.pop() is None  # not before it is published
    queue.publish()
    taken = device.pop()
    assert (taken.id, taken.readable, taken.writable) == (head, [(0x1000, 16)], [(0x2000, 512), (0x3000, 1)])
    assert taken.descriptors == (1 if indirect else 3)
    assert queue.pop() is None
    device.push(taken, 513)
    assert queue.pop() == (head, 513, "t")
    assert (queue.free, queue.in_flight) == (8, 0)
    queue.close()


def test_a_batch_is_seen_whole_and_in_order(arena):
    """2.8.21.1: the first chain's flags come last; what is behind it is not looked at before."""
    queue, device = pair(arena)
    heads = [queue.add([(n, 1)], []) for n in range(3)]
    assert device.pop() is None
    queue.publish()
    assert [device.pop().id for _ in range(3)] == heads
    assert device.pop() is None
    queue.close()


def test_a_length_without_the_write_flag_is_none(arena):
    """2.8.4: it is reserved, and ignored."""
    queue, device = pair(arena)
    queue.add([(0, 4)], [])
    queue.publish()
    taken = device.pop()
    queue.raw_packed(0, 0, 77, taken.id, AVAIL | USED)
    assert queue.pop().length == 0
    queue.close()


@pytest.mark.parametrize(
    ("ident", "length", "what"),
    [(8, 0, "names no chain"), (65535, 0, "names no chain"), (5, 0, "names no chain"), (0, 5, "more bytes")],
)
def test_a_wrong_used_descriptor_breaks_the_ring(arena, ident, length, what):
    """ILLUMOS R3.4; 2.8.4: an id that is not in flight, and more bytes than there were."""
    queue, device = pair(arena)
    queue.add([], [(0, 4)])
    queue.publish()
    device.pop()
    queue.raw_packed(0, 0, length, ident, AVAIL | USED | WRITE)
    with pytest.raises(DeviceError, match=what):
        queue.pop()
    with pytest.raises(DeviceError):
        queue.add([(0, 1)], [])
    queue.close()


def test_a_full_ring_takes_no_more(arena):
    queue, device = pair(arena, 4)
    for n in range(4):
        queue.add([(n, 1)], [])
    with pytest.raises(LocalProtocolError, match="do not fit"):
        queue.add([(4, 1)], [])
    queue.publish()
    taken = [device.pop() for _ in range(4)]
    assert device.pop() is None
    for each in reversed(taken):
        device.push(each, 0)
    assert [used.head for used in queue.reap()] == [3, 2, 1, 0]
    queue.close()


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_sent_when_they_are_wanted(arena, event_idx):
    """2.8.10: the flags, and with EVENT_IDX one descriptor of one round."""
    queue, device = pair(arena, event_idx=event_idx)
    for _ in range(20):
        device.want_kicks(False)
        queue.add([(0, 1)], [])
        assert not queue.publish()
        device.push(device.pop(), 0)
        queue.pop()
        device.want_kicks(True)
        queue.add([(0, 1)], [])
        assert queue.publish()
        device.push(device.pop(), 0)
        queue.pop()
    queue.close()


def test_a_kick_for_a_descriptor_further_on(arena):
    """2.8.10: named ones that are not among the new are not announced."""
    queue, device = pair(arena, event_idx=True)
    arena.write(queue.used_gpa, (2 | 1 << 15).to_bytes(2, "little") + DESC.to_bytes(2, "little"))
    wanted = []
    for _ in range(4):
        queue.add([(0, 1)], [])
        wanted.append(queue.publish())
    assert wanted == [False, False, True, False]
    assert device.pop()
    queue.close()


@pytest.mark.parametrize("flags", [3, 0xFFFF, 0x8002])
@pytest.mark.parametrize("off_wrap", [0x7FFF, 0xFFFF, 8])
def test_garbage_in_the_device_event_never_hangs(arena, flags, off_wrap):
    """HOSTILE R85, the other way round: rather a kick too many."""
    queue, _ = pair(arena, event_idx=True)
    arena.write(queue.used_gpa, off_wrap.to_bytes(2, "little") + flags.to_bytes(2, "little"))
    queue.add([(0, 1)], [])
    assert queue.publish()
    queue.close()


@pytest.mark.parametrize("event_idx", [False, True])
def test_calls_come_when_they_are_asked_for(arena, event_idx):
    """2.8.10, 2.8.22: disarmed none, armed one, and what was there already is said."""
    queue, device = pair(arena, 4, event_idx=event_idx)
    for _ in range(12):
        queue.disarm()
        queue.add([], [(0, 8)])
        queue.publish()
        device.push(device.pop(), 8)
        assert not device.call()
        assert queue.arm()  # too late for a call
        queue.pop()
        assert not queue.arm()
        queue.add([], [(0, 8)])
        queue.publish()
        device.push(device.pop(), 8)
        assert device.call()
        assert queue.wait(1)[0].length == 8
    assert queue.driver_event[1] in (ENABLE, DESC)
    queue.disarm()
    assert queue.driver_event[1] == DISABLE
    queue.close()


@pytest.mark.parametrize("slot", [0, 1, 7])
@pytest.mark.parametrize("wrap", [0, 1])
def test_a_ring_that_starts_anywhere(arena, slot, wrap):
    """vhost-user, SET_VRING_BASE: slot and wrap counter; nothing looks used or available before anything was done."""
    queue, device = pair(arena, slot=slot, wrap=wrap)
    assert device.pop() is None
    assert queue.pop() is None
    assert queue.base == (slot | wrap << 15) * 0x10001
    for n in range(40):
        head = queue.add([(n, 1), (n, 2)], [])
        queue.publish()
        taken = device.pop()
        assert (taken.id, taken.readable) == (head, [(n, 1), (n, 2)])
        device.push(taken, 0)
        assert queue.pop().head == head
        assert queue.pop() is None
    assert queue.base & 0xFFFF == (slot + 80) % 8 | (wrap ^ ((slot + 80) // 8 & 1)) << 15
    queue.close()


def test_where_it_may_start(arena):
    with pytest.raises(LocalProtocolError, match="0x80088008"):
        Virtqueue(arena, 8, packed=True, base=0x80088008)
    with pytest.raises(LocalProtocolError, match="no place"):
        Virtqueue(arena, 8, packed=True, base=0x80018000)


def test_the_other_format_has_no_such_field(arena):
    """2.7, 2.8: fields of one are not read as the other's."""
    packed, _ = pair(arena)
    split = Virtqueue(arena, 8)
    for read in (lambda: packed.used_idx, lambda: packed.avail_flags, packed.raw_pop, lambda: packed.read_desc(0)):
        with pytest.raises(LocalProtocolError, match="packed ring has no"):
            read()
    for read in (lambda: split.read_packed(0), lambda: split.avail_place, lambda: split.device_event):
        with pytest.raises(LocalProtocolError, match="split ring has no"):
            read()
    packed.close()
    split.close()


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 2, 3, 8, 17, 64]),
    event_idx=st.booleans(),
    indirect=st.booleans(),
    slot=st.integers(0, 63),
    wrap=st.integers(0, 1),
    seed=st.integers(0, 1 << 32),
)
def test_any_history(size, event_idx, indirect, slot, wrap, seed):
    """Property: chains of any shape, taken and returned in any order and in any batches: each comes back once, and
    whoever sleeps is woken: a kick is wanted for what the device asked for, a call for what the driver did."""
    rng = random.Random(seed)
    with Arena.of(MIB) as arena:
        queue, device = pair(arena, size, slot=slot % size, wrap=wrap, event_idx=event_idx, indirect=indirect)
        out, taken, done = {}, [], 0
        device_sleeps = True
        device.want_kicks(True)
        serial = 0
        for _ in range(300):
            action = rng.randrange(4)
            if action == 0:
                for _ in range(rng.randrange(1, 4)):
                    readable = [(rng.randrange(1 << 40), rng.randrange(1, 99)) for _ in range(rng.randrange(3))]
                    writable = [(rng.randrange(1 << 40), rng.randrange(1, 99)) for _ in range(rng.randrange(3))]
                    count = len(readable) + len(writable)
                    if count == 0 or (1 if indirect and count > 1 else count) > queue.free:
                        continue
                    head = queue.add(readable, writable, token=serial)
                    assert head not in out
                    out[head] = serial, readable, writable
                    serial += 1
                if queue.publish():
                    device_sleeps = False
                elif device_sleeps:
                    assert not device.is_available(), "a device that sleeps was not woken"
            elif action == 1:
                while (chain := device.pop()) is not None:
                    assert out[chain.id][1:] == (chain.readable, chain.writable)
                    taken.append(chain)
                device_sleeps = True
                device.want_kicks(True)
            elif action == 2 and taken:
                armed = not queue.arm()
                for _ in range(rng.randrange(1, len(taken) + 1)):
                    chain = taken.pop(rng.randrange(len(taken)))
                    device.push(chain, rng.randrange(sum(length for _, length in chain.writable) + 1))
                called = device.call()
                assert called or not armed, "a driver that sleeps was not called"
            else:
                for used in queue.reap():
                    assert out.pop(used.head)[0] == used.token
                    done += 1
        assert queue.in_flight == len(out)
        assert done + len(out) == serial
        queue.close()
