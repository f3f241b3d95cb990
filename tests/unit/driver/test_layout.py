"""Ring layouts: the table of ILLUMOS E.3, and the rules of 2.7 for every size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.driver.layout import legacy_layout, modern_layout, packed_layout
from vhostd.errors import LocalProtocolError


@pytest.mark.parametrize(
    ("size", "avail", "used", "total"),
    [
        (64, 1024, 4096, 8192),
        (128, 2048, 4096, 8192),
        (256, 4096, 8192, 12288),
        (512, 8192, 12288, 20480),
        (1024, 16384, 20480, 32768),
    ],
)
def test_legacy_rings_lie_as_a_legacy_guest_lays_them(size, avail, used, total):
    """2.7.2 and ILLUMOS E.3, legacy."""
    layout = legacy_layout(size)
    assert (layout.desc, layout.avail, layout.used, layout.length) == (0, avail, used, total)


@pytest.mark.parametrize(
    ("size", "avail_end", "used", "used_end", "total"),
    [
        (64, 1156, 1168, 1684, 1696),
        (128, 2308, 2320, 3348, 3360),
        (256, 4612, 4624, 6676, 6688),
        (512, 9220, 9232, 13332, 13344),
        (1024, 18436, 18448, 26644, 26656),
    ],
)
def test_modern_rings_lie_as_a_modern_guest_lays_them(size, avail_end, used, used_end, total):
    """2.7 and ILLUMOS E.3, modern, without EVENT_IDX."""
    layout = modern_layout(size, event_idx=False)
    assert layout.avail + 4 + 2 * size == avail_end
    assert layout.used == used
    assert layout.used + 4 + 8 * size == used_end
    assert layout.length == total


@given(st.integers(1, 32768), st.booleans(), st.sampled_from([16, 64, 4096]))
def test_parts_are_aligned_and_do_not_overlap(size, event_idx, align):
    """2.7; ILLUMOS R2.54-F: descriptors on 16, driver area on 2, device area on 4 bytes; nothing overlaps."""
    for layout in (modern_layout(size, event_idx=event_idx, align=align), legacy_layout(size, align)):
        assert layout.desc % 16 == layout.avail % 2 == layout.used % 4 == 0
        assert layout.desc + 16 * size <= layout.avail
        assert layout.avail + 4 + 2 * size + 2 * event_idx <= layout.used
        assert layout.used + 4 + 8 * size + 2 * event_idx <= layout.length
        assert layout.length % align == 0


@given(st.integers(1, 32768))
def test_the_parts_of_a_packed_ring(size):
    """2.8.10.1; ILLUMOS R2.54-F: descriptors on 16, both event suppression structures on 4 bytes."""
    layout = packed_layout(size)
    assert layout.desc == 0
    assert layout.avail == 16 * size
    assert layout.used == layout.avail + 4
    assert layout.length == layout.used + 4


@pytest.mark.parametrize("size", [0, -1, 32769])
def test_sizes_outside_the_limits_are_refused(size):
    """2.7: at most 32768."""
    for make in (legacy_layout, packed_layout, lambda n: modern_layout(n, event_idx=True)):
        with pytest.raises(LocalProtocolError, match=r"1\.\.32768"):
            make(size)
