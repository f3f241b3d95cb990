"""Stamps: a wrong byte is found wherever it is, and what lies there instead is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.driver.load.verify import examine
from vhostd.driver.stamp import Ledger, first_wrong, read_stamp, stamped
from vhostd.errors import LocalProtocolError

RUN = 0x1122334455667788


@given(st.integers(0, 8 * 512 - 1), st.integers(1, 255), st.integers(0, 2**40), st.integers(1, 2**31 - 1))
def test_every_changed_byte_is_found(at, flip, sector, generation):
    data = bytearray(stamped(4096, sector, generation, RUN))
    assert first_wrong(data, sector, generation, RUN) is None
    data[at] ^= flip
    assert first_wrong(data, sector, generation, RUN) == at


@given(st.integers(0, 2**40), st.integers(1, 2**31 - 2))
def test_no_two_stamps_are_alike(sector, generation):
    """Another sector, generation or run is another content, in its header and behind it."""
    mine = stamped(512, sector, generation, RUN)
    for other in (
        stamped(512, sector + 1, generation, RUN),
        stamped(512, sector, generation + 1, RUN),
        stamped(512, sector, generation, RUN + 1),
    ):
        assert other[:24] != mine[:24]
        assert sum(a != b for a, b in zip(other[24:], mine[24:], strict=True)) > 300


def test_a_stamp_says_who_wrote_it():
    found = read_stamp(stamped(512, 77, 3, RUN))
    assert (found.sector, found.generation, found.run, found.intact) == (77, 3, RUN, True)
    assert not read_stamp(bytes(512)).intact


def test_a_block_of_another_run_agrees_with_itself():
    data = stamped(1024, 8, 5, 99)
    assert first_wrong(data, 8, 0, RUN, any_run=True) is None
    assert first_wrong(data, 9, 0, RUN, any_run=True) == 0
    assert first_wrong(data, 8, 5, RUN) is not None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(512), "all zeroes"),
        (stamped(512, 11, 2, RUN), "what was written to sector 11, generation 2"),
        (stamped(512, 10, 3, RUN), "holds generation 3: an old content"),
        (stamped(512, 10, 4, 5), "generation 4 of another run"),
        (stamped(512, 10, 4, RUN)[:256] + bytes(256), "256 of the sector's 512 bytes differ"),
    ],
    ids=["zeroes", "misdirected", "stale", "foreign", "torn"],
)
def test_what_lies_there_instead_is_named(data, words):
    found = examine(10, 4, data, RUN, any_run=False)
    should = stamped(512, 10, 4, RUN)
    assert found.offset == next(i for i in range(512) if data[i] != should[i])
    assert (found.expected, found.seen) == (should[found.offset], data[found.offset])
    assert words in found.holds
    assert f"sector 10, byte {found.offset} (byte {5120 + found.offset} of the disk)" in str(found)


def test_a_ledger_starts_without_knowledge():
    ledger = Ledger(100, 10, RUN)
    assert (ledger.written, ledger.generation(100), ledger.generation(109), ledger.run) == (0, 0, 0, RUN)
    with pytest.raises(IndexError):
        ledger.generation(110)
    with pytest.raises(LocalProtocolError):
        Ledger(0, 0, RUN)
    with pytest.raises(LocalProtocolError):
        stamped(100, 0, 1, RUN)
