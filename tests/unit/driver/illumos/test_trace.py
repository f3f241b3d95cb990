"""illumos_E1, illumos_E2: every register access from reset to the first request, in order."""

from pathlib import Path

import pytest

from tests.support.bus import Bus
from tests.support.paper import card_config, disk_config, serves_id
from vhostd.driver.illumos import IllumosGuest, NoAttach, attach

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("device", "generation", "transport", "pairs", "most"),
    [
        ("block", 2019, "legacy", 1, 1),
        ("block", 2026, "legacy", 1, 1),
        ("block", 2026, "modern", 1, 1),
        ("net", 2019, "legacy", 1, 1),
        ("net", 2026, "legacy", 2, 16),
        ("net", 2026, "modern", 1, 1),
    ],
)
def test_illumos_E1_E2_trace(device, generation, transport, pairs, most):
    """The golden file is the table of E.1 or the text of E.2, row by row."""
    guest = IllumosGuest(device, generation, transport, pairs=pairs)
    bus = Bus(guest, config=disk_config() if device == "block" else card_config(pairs=most))
    if device == "block":
        serves_id(b"id".ljust(20, b"\0"))(bus)
    attach(guest, bus, bus.memory)
    name = f"trace_{transport}_{device}_{generation}.txt"
    want = [line for line in (GOLDEN / name).read_text().splitlines() if not line.startswith("#")]
    assert bus.lines == want


def test_illumos_E1_an_address_of_its_own():
    """E.1 step 9: without MAC, six writes of a random address."""
    guest = IllumosGuest("net", 2019, "legacy")
    bus = Bus(guest, (1 << 64) - 1 & ~(1 << 5), card_config())
    attach(guest, bus, bus.memory)
    assert [line for line in bus.lines if line.startswith("W8 1") and "<-" not in line] == [
        f"W8 {at:02x}" for at in range(0x14, 0x1A)
    ]


def test_illumos_F7_the_generation_changes_once():
    """F7: it is read once before the loop, so the newer driver would wait for ever; here it gives up."""
    guest = IllumosGuest("net", 2026, "modern")
    bus = Bus(guest, config=card_config())
    counter = iter([0])
    bus.generation = lambda: next(counter, 1)
    with pytest.raises(NoAttach, match="illumos_F7"):
        attach(guest, bus, bus.memory)
