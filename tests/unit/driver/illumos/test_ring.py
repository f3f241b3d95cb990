"""illumos_E3, illumos_11329: ring memory, the numbers of heads, chains against a model, and the missing fence."""

import itertools
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paper import Paper, use
from vhostd.driver.illumos.memory import GuestMemory, Layout, Zone
from vhostd.driver.illumos.ring import Chain, NoRoom, Numbers, Ring, ring_layout

# q, avail, its end, legacy used, legacy total, modern used, its end, modern total: the table of E.3.
TABLE = [
    (64, 1024, 1156, 4096, 8192, 1168, 1684, 1696),
    (128, 2048, 2308, 4096, 8192, 2320, 3348, 3360),
    (256, 4096, 4612, 8192, 12288, 4624, 6676, 6688),
    (512, 8192, 9220, 12288, 20480, 9232, 13332, 13344),
    (1024, 16384, 18436, 20480, 32768, 18448, 26644, 26656),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"q-{row[0]}")
def test_illumos_E3_layout(row):
    """E.3: where the three parts lie, and how long the block is."""
    size, avail, avail_end, legacy_used, legacy_len, modern_used, modern_end, modern_len = row
    legacy, modern = ring_layout(size, legacy=True), ring_layout(size, legacy=False)
    assert (legacy.desc, legacy.avail, legacy.used, legacy.length) == (0, avail, legacy_used, legacy_len)
    assert (modern.desc, modern.avail, modern.used, modern.length) == (0, avail, modern_used, modern_len)
    assert avail_end == avail + 4 + 2 * size
    assert modern_end == modern_used + 4 + 8 * size


def test_illumos_E3_numbers_are_next_fit():
    """E.3: 0, 1, 2 and up to the last, then the lowest that is free: not the last that came back."""
    numbers = Numbers(4)
    assert [numbers.take() for _ in range(3)] == [0, 1, 2]
    numbers.give(1)
    numbers.give(0)
    assert [numbers.take() for _ in range(4)] == [3, 0, 1, None]


@given(st.lists(st.one_of(st.just("take"), st.integers(0, 20)), max_size=60))
def test_illumos_F3_no_number_is_the_size_of_the_ring(operations):
    """R3.4, F3: a number is 0..q-1 and taken once."""
    numbers, taken = Numbers(7), []
    for operation in operations:
        if operation == "take":
            number = numbers.take()
            assert (number is None) == (len(taken) == 7)
            if number is not None:
                assert number in range(7)
                assert number not in taken
                taken.append(number)
        elif taken:
            numbers.give(taken.pop(operation % len(taken)))


def ring(size=8, *, indirect, **options):
    paper = Paper()
    return Ring(paper.memory, 0, size, legacy=True, indirect=indirect, **options)


@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6), writable=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_illumos_11329_a_chain_against_a_model(indirect, lengths, writable):
    """11329 (b): flags and next of every descriptor, whichever form it has; the last has no NEXT and next 0."""
    made = ring(indirect=indirect)
    chain = Chain(made, 6)
    for n, length in enumerate(lengths):
        chain.append(0x1400_0000 + n, length, write=n >= writable)
    made.submit(chain)
    at = chain.table if indirect else made.gpa
    numbers = range(len(lengths))
    for n in numbers:
        flags = (1 if n < len(lengths) - 1 else 0) | (2 if n >= writable else 0)
        want = struct.pack("<QIHH", 0x1400_0000 + n, lengths[n], flags, n + 1 if flags & 1 else 0)
        assert made.memory.arena.read(at + 16 * n, 16) == want
    assert chain.writable_len == sum(lengths[writable:])
    if indirect:
        assert made.dump()[:16] == struct.pack("<QIHH", chain.table, 16 * len(lengths), 4, 0)
    made.memory.arena.close()


def test_illumos_7572_a_table_ends_exactly_at_its_capacity():
    """7572: a chain of all entries fits, one more does not, and nothing is written behind the table."""
    made = ring(indirect=True)
    chain = Chain(made, 4)
    behind = chain.table + 64
    made.memory.arena.fill(behind, 16, 0xA5)
    for n in range(4):
        chain.append(0x1400_0000, 16, write=n == 3)
    with pytest.raises(NoRoom):
        chain.append(0x1400_0000, 16)
    made.submit(chain)
    assert made.memory.arena.read(behind, 16) == b"\xa5" * 16


def test_illumos_E3_a_table_is_zero_again_after_use():
    """A.1: zeroed at creation and after each use; the chain keeps its head."""
    made = ring(indirect=True)
    chain = Chain(made, 4)
    for _ in range(3):
        chain.append(0x1400_0000, 16, write=True)
        made.submit(chain)
        made.flush()
        use(made, chain.head, 16)
        assert made.reap() == [(chain, 16)]
        chain.clear()
        assert made.memory.arena.read(chain.table, 64) == bytes(64)
        assert chain.head == 0


def test_illumos_E3_direct_chains_go_round():
    """E.3: each descriptor takes the next number; after the wrap a chain's need not lie beside each other."""
    made = ring(size=8, indirect=False)
    first, second, third = (Chain(made, 3) for _ in range(3))
    for chain in (first, second):
        for _ in range(3):
            chain.append(0x1400_0000, 16)
    first.clear()
    for _ in range(3):
        third.append(0x1400_0000, 16)
    assert third.numbers == [6, 7, 0]
    made.submit(third)
    assert made.dump()[16 * 7 : 16 * 8] == struct.pack("<QIHH", 0x1400_0000, 16, 1, 0)
    assert made.dump()[:16] == struct.pack("<QIHH", 0x1400_0000, 16, 0, 0)


def test_illumos_R2_60_the_missing_fence():
    """R2.60, F5: the flag is read while the old index stands; what it said then decides about the kick."""
    made = ring(indirect=True, fence=False)
    chain = Chain(made, 1)
    chain.append(0x1400_0000, 16)
    made.submit(chain)
    made.memory.arena.write(made.used_gpa, b"\1\0")  # the device wants no kick, and forgets to ask again
    for _ in range(100):
        made.flush()
        if made.kicks_withheld:
            break
        assert os.eventfd_read(made.kick_fd.number) == 1  # kept off the processor meanwhile: the flag was read anew
    assert made.kicks_withheld == 1
    assert made.dump()[made.layout.avail + 2] == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(made.kick_fd.number)
    made.memory.arena.write(made.used_gpa, b"\0\0")
    made.flush()
    assert os.eventfd_read(made.kick_fd.number) == 1


@given(length=st.integers(1, 70_000), layout=st.sampled_from(Layout), start=st.integers(0, 69_999))
@settings(max_examples=60, deadline=None)
def test_illumos_R2_24_pages_of_every_layout(length, layout, start):
    """R2.24, E.5: pieces are whole pages but the last, none lies in another, and they hold what was written."""
    paper = Paper()
    memory = GuestMemory(paper.memory.arena, layout, seed=length)
    buffer = memory.buffer(Zone.DATA, length)
    assert buffer.length == length
    spans = sorted((gpa, gpa + piece) for gpa, piece in buffer.pieces)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert all(gpa % 4096 == 0 for gpa, _ in buffer.pieces)
    if layout is Layout.CONTIGUOUS:
        assert len(buffer.pieces) == 1
    if layout is Layout.SCATTERED:
        assert len(buffer.pieces) == -(-length // 4096)
    data = os.urandom(length)
    memory.write(buffer.pieces, data)
    begin = min(start, length - 1)
    assert memory.read(buffer.cut(begin, length - begin)) == data[begin:]
    memory.free(buffer.block)
    assert memory.buffer(Zone.DATA, length).block == buffer.block
    paper.memory.arena.close()
