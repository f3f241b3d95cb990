"""The cases for packed rings, which no installed back-end offers, on one in Python, right or wrong in one way."""

import pytest

from tests.support.checked import checked
from tests.support.packed_backend import PackedBackend
from vhostd.driver.conformance.report import table
from vhostd.driver.conformance.verdict import Verdict

MISTAKES = {
    "packed: wrong id": "PKD-05",
    "packed: used length": "PKD-06",
    "packed: flags of the first round": "PKD-04",
    "packed: wrong base": "PKD-08.3",
    "packed: never calls": "PKD-11.enable",
    "packed: calls always": "PKD-10",
    "packed: silent": "HOST-PACKED.B24-nothing-writable",
}


@pytest.mark.parametrize("chapter", ["packed_ring", "event_idx"])
def test_a_right_back_end_passes_all(tmp_path, chapter):
    """Every case of the chapter runs, IN_ORDER's too, and none is "not offered"."""
    with checked(PackedBackend, tmp_path, chapter) as report:
        assert {outcome.verdict for outcome in report.outcomes} == {Verdict.PASSED}, table(report)
        assert len(report.outcomes) >= 20


def test_a_right_back_end_stands_what_is_hostile(tmp_path):
    with checked(PackedBackend, tmp_path, "packed", hostile=True) as report:
        assert {outcome.verdict for outcome in report.outcomes} == {Verdict.PASSED}, table(report)
        assert len(report.outcomes) >= 38


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(tmp_path, mistake):
    case = MISTAKES[mistake]
    with checked(PackedBackend, tmp_path, case, mistake, hostile=case.startswith("HOST")) as report:
        (outcome,) = report.outcomes
        assert outcome.verdict is Verdict.FAILED, table(report)
        assert outcome.evidence.expected
        assert outcome.evidence.seen
