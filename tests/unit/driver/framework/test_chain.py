"""Pools and chains, without a socket: the reference devices of both formats use the rings."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.packed_device import PackedDevice
from tests.support.reference_device import ReferenceDevice
from vhostd.driver.arena import Arena
from vhostd.driver.framework.chain import TABLE, ChainQueue, Event, State
from vhostd.driver.framework.pool import Constraints, Pool, cut_up
from vhostd.driver.layout import legacy_layout
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError

MIB = 1 << 20
KINDS = {
    "split direct": {},
    "split indirect": {"indirect": True},
    "legacy direct": {"layout": True},
    "packed direct": {"packed": True},
    "packed indirect": {"packed": True, "indirect": True},
}


class Bench:
    """A ring, its chains and the device's half."""

    def __init__(self, kind, size=16, chains=8, capacity=4):
        options = dict(KINDS[kind])
        if options.pop("layout", False):
            options["layout"] = legacy_layout(size)
        self.arena = Arena.of(MIB)
        self.ring = Virtqueue(self.arena, size, **options)
        self.device = (PackedDevice if self.ring.packed else ReferenceDevice)(self.arena, self.ring)
        self.queue = ChainQueue(self.ring, chains=chains, capacity=capacity)

    def pop(self):
        """(what push takes, readable, writable), or None."""
        chain = self.device.pop()
        if chain is None:
            return None
        return (chain, chain.readable, chain.writable) if self.ring.packed else (chain[0], chain[1], chain[2])

    def push(self, what, length):
        self.device.push(what, length)
        if not self.ring.packed:
            self.device.publish()

    def close(self):
        self.queue.close()
        self.ring.close()
        left = self.arena.allocated
        self.arena.close()
        assert left == 0


@pytest.fixture(params=KINDS)
def bench(request):
    made = Bench(request.param)
    yield made
    made.close()


def test_one_interface_over_every_ring(bench):
    """ILLUMOS R2.1-F, R2.4-F, C.1: append, submit, flush; the device sees the same buffers whatever carries them."""
    chain = bench.queue.take()
    chain.append(0x1000, 16)
    chain.append(0x2000, 512, device_writes=True)
    chain.append(0x3000, 1, device_writes=True)
    bench.queue.submit(chain, awaited=True)
    assert bench.pop() is None  # not before the flush
    bench.queue.flush()
    what, readable, writable = bench.pop()
    assert (readable, writable) == ([(0x1000, 16)], [(0x2000, 512), (0x3000, 1)])
    bench.push(what, 513)
    assert bench.queue.wait(chain, 1).used_len == 513
    assert chain.state is State.POLLED
    bench.queue.give(chain)
    assert (chain.state, len(chain), chain.used_len, chain.cookie) == (State.ALLOCATED, 0, 0, None)
    assert bench.queue.free == 8


def test_a_chain_is_full_exactly_at_its_capacity(bench):
    """ILLUMOS R2.14-F, C.1-F (7572): one entry behind the table's end was the old mistake."""
    chain = bench.queue.take()
    for n in range(4):
        chain.append(0x1000 + n, 1)
    with pytest.raises(LocalProtocolError, match="room for 4"):
        chain.append(0x2000, 1)
    bench.queue.submit(chain)
    bench.queue.flush()
    assert len(bench.pop()[1]) == 4


def test_what_must_not_be_appended(bench):
    """2.7.4.2; ILLUMOS R2.34-F: what does not fit is refused where it is given."""
    chain = bench.queue.take()
    chain.append(0x1000, 1, device_writes=True)
    for length in (0, -1):
        with pytest.raises(LocalProtocolError, match="a buffer of"):
            chain.append(0x1000, length, device_writes=True)
    with pytest.raises(LocalProtocolError, match="behind a device-writable"):
        chain.append(0x1000, 1)
    bench.queue.give(chain)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_a_chain_moves_by_its_table_only(bench, state, event):
    """ILLUMOS R2.8-F, R1.3-F: legal transitions happen, every other raises, with or without -O."""
    chain = bench.queue.take()
    chain.state = state
    if (state, event) in TABLE:
        chain.move(event)
        assert chain.state is TABLE[state, event]
    else:
        with pytest.raises(LocalProtocolError, match=state.value):
            chain.move(event)
        assert chain.state is state
    chain.state = State.ALLOCATED
    bench.queue.give(chain)


def test_whoever_waits_frees_else_the_completion_does(bench):
    """ILLUMOS R2.9-F: what is awaited is not given to a completion, nor the other way round; each freed once."""
    done = []
    waited, called = bench.queue.take(), bench.queue.take()
    for chain in (waited, called):
        chain.append(0x1000, 4)
        chain.on_complete = lambda chain: (done.append(chain), bench.queue.give(chain))
    bench.queue.submit(waited, awaited=True)
    bench.queue.submit(called)
    bench.queue.flush()
    for what in [bench.pop()[0] for _ in range(2)]:
        bench.push(what, 0)
    bench.queue.wait(waited, 1)
    assert done == [called]
    with pytest.raises(LocalProtocolError):
        bench.queue.give(called)
    bench.queue.give(waited)
    assert bench.queue.free == 8
    with pytest.raises(LocalProtocolError, match="was not submitted for"):
        bench.queue.wait(called, 1)


def test_a_submit_that_fails_leaves_the_chain_with_its_owner(bench):
    """ILLUMOS R2.30-F, R2.56-F: room is decided by the ring itself; nothing is consumed."""
    chains = [bench.queue.take() for _ in range(8)]
    assert bench.queue.take() is None
    sent = 0
    for chain in chains:
        for n in range(4):
            chain.append(0x1000 + n, 1)
        try:
            bench.queue.submit(chain)
            sent += 1
        except LocalProtocolError:
            assert chain.state is State.ALLOCATED
            assert len(chain) == 4
    assert sent == (8 if bench.ring.indirect else 4)
    bench.queue.flush()
    assert sum(bench.pop() is not None for _ in range(8)) == sent


def test_waits_end(bench):
    """ILLUMOS D4-F: DeviceTimeout, and the chain is still the device's."""
    chain = bench.queue.take()
    chain.append(0x1000, 1)
    bench.queue.submit(chain, awaited=True)
    bench.queue.flush()
    with pytest.raises(DeviceTimeout):
        bench.queue.wait(chain, 0.02)
    assert chain.state is State.IN_FLIGHT
    with pytest.raises(LocalProtocolError):
        bench.queue.give(chain)


def test_evacuation_gives_every_chain_back_once(bench):
    """ILLUMOS R2.40-F, C.1: after a reset, what the device had is ours again, and the ring goes on from nothing."""
    chains = []
    for n in range(3):
        chain = bench.queue.take()
        chain.append(0x1000 + n, 1)
        bench.queue.submit(chain)
        chains.append(chain)
    bench.queue.flush()
    bench.pop()
    assert bench.queue.evacuate() == chains
    assert bench.queue.evacuated == 3
    assert all(chain.state is State.ALLOCATED for chain in chains)
    assert bench.queue.evacuate() == []
    for chain in chains:
        bench.queue.give(chain)
    bench.device.__init__(bench.arena, bench.ring)
    chain = bench.queue.take()
    chain.append(0x5000, 7)
    bench.queue.submit(chain)
    bench.queue.flush()
    assert bench.pop()[1] == [(0x5000, 7)]


@pytest.mark.parametrize("ident", [15, 16, 65535, 2**32 - 1])
def test_a_used_id_that_cannot_be_breaks_the_ring(ident):
    """ILLUMOS R3.4-F: q - 1 and not in flight, q, and more: an error, never a crash; and broken it stays."""
    bench = Bench("split direct")
    chain = bench.queue.take()
    chain.append(0x1000, 1)
    bench.queue.submit(chain)
    bench.queue.flush()
    bench.pop()
    bench.push(ident, 0)
    for _ in range(2):
        with pytest.raises(DeviceError):
            bench.queue.reap()
    bench.queue.evacuate()
    bench.close()


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 1 << 32))
def test_any_history_ends_with_everything_home(kind, seed):
    """Property, ILLUMOS C.1 (b), R2.57-F: after submits, completions, evacuations in any order all are as new."""
    rng = random.Random(seed)
    bench = Bench(kind)
    have = []
    for _ in range(200):
        action = rng.random()
        if action < 0.4 and (chain := bench.queue.take()) is not None:
            for n in range(rng.randrange(1, 5)):
                chain.append(0x1000 * n, n + 1, device_writes=n > 1)
            chain.on_complete = bench.queue.give
            try:
                bench.queue.submit(chain)
            except LocalProtocolError:
                bench.queue.give(chain)
        elif action < 0.6:
            bench.queue.flush()
            while (taken := bench.pop()) is not None:
                have.append(taken[0])
        elif action < 0.9 and have:
            bench.push(have.pop(rng.randrange(len(have))), 0)
        elif action < 0.97:
            bench.queue.reap()
        else:
            for chain in bench.queue.evacuate():
                bench.queue.give(chain)
            have.clear()
            bench.device.__init__(bench.arena, bench.ring)
    for chain in bench.queue.evacuate():
        bench.queue.give(chain)
    assert bench.queue.free == 8
    assert bench.ring.free == 16
    bench.close()


# Pools.


def test_a_pool_is_made_once_zeroed_and_given_back(bench):
    """ILLUMOS R2.23-F, R2.44-F: one allocation, all of it zero, and no more afterwards."""
    dirty = bench.arena.alloc(4096)
    bench.arena.fill(dirty, 4096, 0xAA)
    bench.arena.free(dirty)
    before = bench.arena.allocated
    pool = Pool(bench.arena, 4, 100)
    at = bench.arena.allocated
    assert all(buffer.read() == bytes(100) for buffer in pool.buffers)
    taken = [pool.take() for _ in range(4)]
    assert pool.take() is None
    assert (pool.free, pool.low, bench.arena.allocated) == (0, 0, at)
    taken[0].give()
    with pytest.raises(LocalProtocolError, match="not taken"):
        taken[0].give()
    pool.close()
    pool.close()
    assert bench.arena.allocated == before


def test_constraints_are_checked_when_a_buffer_is_made(bench):
    """ILLUMOS R2.24-F, R2.7-F, R2.46-F: alignment, segments, first segment; and nobody changes them afterwards."""
    constraints = Constraints(align=16, segment_len_max=64, segments_max=3, first_len_min=15)
    assert list(cut_up(0x100, 130, constraints)) == [(0x100, 64), (0x140, 64), (0x180, 2)]
    for gpa, length in ((0x101, 64), (0x100, 193), (0x100, 14)):
        with pytest.raises(LocalProtocolError):
            list(cut_up(gpa, length, constraints))
    with pytest.raises(AttributeError):
        constraints.align = 1
    before = bench.arena.allocated
    with pytest.raises(LocalProtocolError):
        Pool(bench.arena, 4, 200, constraints)
    with pytest.raises(LocalProtocolError):
        Pool(bench.arena, 1 << 20, 4096)
    assert bench.arena.allocated == before


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 101), (100, 1), (50, -1)])
def test_nobody_writes_behind_a_buffer(bench, offset, length):
    """ILLUMOS R2.34-F: offsets and lengths are checked."""
    pool = Pool(bench.arena, 1, 100)
    buffer = pool.take()
    with pytest.raises(LocalProtocolError):
        buffer.read(offset, length)
    if length >= 0:
        with pytest.raises(LocalProtocolError):
            buffer.write(bytes(length), offset)
    pool.close()
