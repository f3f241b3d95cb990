"""docs/driver.md: its numbers are the code's, and its examples run."""

import re
from pathlib import Path

import pytest

from tests.support.net import frame
from vhostd.driver.framework import vioblk, vioif
from vhostd.driver.layout import legacy_layout, modern_layout, packed_layout
from vhostd.driver.net import header_len
from vhostd.spec import blk
from vhostd.spec.virtio import Feature

TEXT = (Path(__file__).resolve().parents[2] / "docs/driver.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def rows(head):
    """The rows of the table with this head, as lists of words."""
    lines = TEXT.split(f"| {head} |", 1)[1].splitlines()[2:]
    found = []
    for line in lines:
        if not line.startswith("|"):
            return found
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.parametrize("row", rows("layout | q | avail | used | length"), ids=" ".join)
def test_rings_lie_where_the_page_says(row):
    """ILLUMOS R2.6, R2.54-F: a picture and a table that were not compared would disagree."""
    kind, size, *numbers = row
    make = {
        "legacy": legacy_layout,
        "modern": lambda size: modern_layout(size, event_idx=False),
        "packed": packed_layout,
    }[kind]
    layout = make(int(size))
    assert [layout.avail, layout.used, layout.length] == [int(number) for number in numbers]


def test_the_picture_of_rings_has_the_tables_numbers():
    for kind in ("legacy", "modern", "packed"):
        (row,) = [row for row in rows("layout | q | avail | used | length") if row[:2] == [kind, "256"]]
        picture = TEXT.split("legacy, q = 256", 1)[1].split("```", 1)[0]
        assert all(number in picture for number in row[2:])


def test_requests_lie_where_the_page_says():
    """ILLUMOS R2.6."""
    assert rows("part of a block request | offset | length") == [
        ["header", "0", str(blk.HEADER_LEN)],
        ["status", str(blk.HEADER_LEN), str(vioblk.HEAD_LEN - blk.HEADER_LEN)],
    ]
    assert rows("part of a frame's buffer | offset | length") == [
        ["header, legacy", "0", str(header_len(0))],
        ["header, modern", "0", str(header_len(Feature.VERSION_1))],
        ["frame", str(vioif.FRAME_AT), str(2048 - vioif.FRAME_AT)],
    ]


def test_the_example_of_a_disk(disk, capsys):
    """ILLUMOS R2.42."""
    exec(EXAMPLES[0], {"socket": str(disk.socket)})
    assert "sectors" in capsys.readouterr().out
    assert disk.on_disk(8 * 512, 5) == b"hello"


def test_the_example_of_a_card(card):
    """ILLUMOS R2.42."""
    running = card()
    wire = running.wire()
    exec(EXAMPLES[1], {"card_socket": str(running.backend.socket), "wire": wire, "frame": frame(length=400)})


def test_the_example_of_a_device_test(disk, image_bytes):
    """It fits in thirty lines, and holds on any back-end."""
    names = {"socket": str(disk.socket)}
    exec(EXAMPLES[2], names)
    assert names["data"] == image_bytes[3 * 512 :][:512]
    body = EXAMPLES[2].split("def bytes_in_pieces", 1)[1].split("data =", 1)[0]
    assert len(body.strip().splitlines()) <= 30
