"""Every row of the review that asks something of the driver side (F) has a test that names it."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[4]
ROWS = {
    "R1.2": "one rendering of every bit field",
    "R1.3": "invariants are checked always",
    "R2.1": "generic core, specific drivers",
    "R2.4": "the classic layout, and any other",
    "R2.7": "templates are immutable",
    "R2.8": "states and their legal transitions",
    "R2.9": "whoever waits, frees",
    "R2.10": "one thread drives a device",
    "R2.11": "ranges without overflow",
    "R2.12": "an error for each status",
    "R2.14": "SEG_MAX counts data",
    "R2.16": "read-only is refused unless forced",
    "R2.17": "absent configuration values",
    "R2.18": "a frame at 2 modulo 4",
    "R2.21": "refill says how many",
    "R2.23": "pools of a fixed size",
    "R2.24": "buffers are checked when made",
    "R2.25": "used lengths are not trusted",
    "R2.27": "cork: mark, ask, look again",
    "R2.28": "timers look at the run state",
    "R2.30": "nothing is lost or taken twice",
    "R2.31": "reclaim before each send and by a timer",
    "R2.32": "nothing is acknowledged that is not implemented",
    "R2.33": "short refills are counted",
    "R2.34": "what does not fit is refused",
    "R2.37": "descriptors are given back early",
    "R2.39": "teardown paths are all run",
    "R2.40": "reset and clear",
    "R2.44": "shared memory starts as zero",
    "R2.46": "constraints are frozen",
    "R2.48": "teardown cannot fail",
    "R2.50": "a failed step undoes those before it",
    "R2.51": "configuration that changes while it is read",
    "R2.53": "every creation can fail",
    "R2.54": "one function for each layout",
    "R2.56": "counts are snapshots",
    "R2.57": "the index is read before what it covers",
    "R2.58": "close of half-made objects",
    "R2.60": "a full fence between index and flags",
    "R2.64": "teardown in each way of notification",
    "R2.65": "errors in cleanup are said",
    "R2.66": "zero is a value",
    "R3.4": "used ids are checked",
    "C.1": "11329: chains and reset",
    "C.2": "10012: identity",
    "C.3": "7366: bounded pools",
    "D1": "the write cache",
    "D2": "offloads",
    "D3": "link status",
    "D4": "deadlines",
    "D5": "legacy and modern",
    "D6": "fewer descriptors than queues",
    "D7": "read-only",
    "D9": "meaning of SEG_MAX and SIZE_MAX",
    "D10": "control commands",
    "D12": "discard",
}


@pytest.fixture(scope="module")
def named():
    """Rows that a docstring of a test names with its side."""
    found = set()
    for path in (HERE / "tests").rglob("test_*.py"):
        if path.name != Path(__file__).name:
            for words in re.findall(r"ILLUMOS ([^\"\n:]*)", path.read_text()):
                found.update(re.findall(r"((?:R\d+\.\d+|[CD]\.?\d+))-F", words))
    return found


@pytest.mark.parametrize("row", ROWS)
def test_the_row_has_a_test(named, row):
    assert row in named, ROWS[row]
