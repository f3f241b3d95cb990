"""Memory of our own making: regions, allocation, sealing, closing."""

import os

import pytest

from vhostd.driver.arena import UVA_BASE, Arena, Region, adjacent
from vhostd.errors import LocalProtocolError

PAGE = 4096


def test_allocations_are_zeroed_aligned_and_apart():
    """Memory that was used before comes back zeroed: a ring must start as zeroes (2.7)."""
    with Arena.of(16 * PAGE) as arena:
        first = arena.alloc(100, 64)
        arena.fill(first, 100, 0xFF)
        arena.free(first)
        again = arena.alloc(100, 64)
        assert again == first
        assert again % 64 == 0
        assert arena.read(again, 100) == bytes(100)
        other = arena.alloc(1)
        assert not again <= other < again + 100


def test_what_is_freed_joins_its_neighbours():
    with Arena.of(PAGE) as arena:
        parts = [arena.alloc(1024) for _ in range(4)]
        with pytest.raises(LocalProtocolError, match="no room"):
            arena.alloc(1)
        for gpa in (parts[1], parts[3], parts[0], parts[2]):
            arena.free(gpa)
        assert arena.allocated == 0
        arena.alloc(PAGE)


def test_freeing_twice_or_what_was_never_given_raises():
    with Arena.of(PAGE) as arena:
        gpa = arena.alloc(8)
        arena.free(gpa)
        for wrong in (gpa, gpa + 1):
            with pytest.raises(LocalProtocolError, match="not allocated"):
                arena.free(wrong)


def test_a_hole_is_in_no_region():
    with Arena([Region(0, PAGE), Region(3 * PAGE, PAGE)]) as arena:
        arena.write(PAGE - 1, b"x")
        with pytest.raises(LocalProtocolError, match="no region"):
            arena.read(PAGE - 1, 2)
        with pytest.raises(LocalProtocolError, match="no region"):
            arena.read(2 * PAGE, 1)


def test_touching_regions_read_as_one_but_view_as_two():
    regions = adjacent(0x10000, [PAGE, PAGE, 2 * PAGE])
    with Arena(regions) as arena:
        gpa = arena.reserve(0x10000 + PAGE - 3, PAGE + 6)
        data = bytes(range(256)) * 16 + b"abcdef"
        arena.write(gpa, data)
        assert arena.read(gpa, len(data)) == data
        with pytest.raises(LocalProtocolError, match="3 regions"):
            arena.view(gpa, len(data))
        with pytest.raises(LocalProtocolError, match="taken"):
            arena.reserve(gpa + 10, 1)
        arena.free(gpa)
        assert arena.reserve(0x10000, 4 * PAGE) == 0x10000


def test_regions_that_overlap_are_refused():
    with Arena([Region(0, 2 * PAGE)]) as arena, pytest.raises(LocalProtocolError, match="overlaps"):
        arena.add(Region(PAGE, PAGE))


def test_front_end_addresses_differ_from_guest_addresses():
    with Arena([Region(0, PAGE), Region(PAGE, PAGE, uva=0x5000, mmap_offset=PAGE)]) as arena:
        assert arena.uva(12) == UVA_BASE + 12
        assert arena.uva(PAGE + 12) == 0x5000 + 12


def test_mmap_offset_bytes_lie_before_the_region_in_its_memfd():
    """vhost-user, "Memory region description": the region starts mmap_offset bytes into the file."""
    region = Region(0x4000, PAGE, mmap_offset=PAGE + 512)
    with Arena([region]) as arena:
        arena.write(0x4000, b"here")
        assert os.pread(arena.fd(region), 4, PAGE + 512) == b"here"
        assert os.fstat(arena.fd(region)).st_size == 2 * PAGE + 512


def test_a_sealed_region_cannot_shrink_and_an_unsealed_one_can():
    with Arena.of(2 * PAGE) as arena, pytest.raises(PermissionError):
        arena.truncate(arena.regions[0], PAGE)
    with Arena([Region(0, 2 * PAGE)], seal=False) as arena:
        arena.truncate(arena.regions[0], PAGE)


def test_close_is_idempotent_and_a_held_view_outlives_it():
    arena = Arena.of(PAGE)
    view = arena.view(arena.regions[0].gpa, 4)
    arena.close()
    arena.close()
    view[:] = b"kept"
    assert bytes(view) == b"kept"
    with pytest.raises(LocalProtocolError, match="after close"):
        arena.alloc(1)


def test_a_region_with_allocations_is_not_removed():
    with Arena([Region(0, PAGE), Region(PAGE, PAGE)]) as arena:
        second = arena.regions[1]
        gpa = arena.alloc(8, region=second)
        assert gpa >= PAGE
        with pytest.raises(LocalProtocolError, match="has allocations"):
            arena.remove(second)
        arena.free(gpa)
        arena.remove(second)
        assert len(arena.regions) == 1
