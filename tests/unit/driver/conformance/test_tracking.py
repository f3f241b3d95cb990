"""The cases for in-flight tracking and device state, which no installed back-end offers, on one in Python."""

import pytest

from tests.support.checked import checked
from tests.support.tracking_backend import TrackingBackend
from vhostd.driver.conformance.report import table
from vhostd.driver.conformance.verdict import Verdict

MISTAKES = {
    "inflight: too small": "VU-INFL-01.1x128",
    "inflight: not zeroed": "VU-INFL-02",
    "inflight: 20 bytes": "VU-INFL-03.24",
    "inflight: no version": "VU-INFL-05",
    "inflight: no used_idx": "VU-INFL-05",
    "inflight: left": "VU-INFL-06",
    "inflight: not again": "VU-INFL-07.3",
    "state: takes all": "VU-STATE-03",
}


def test_a_right_back_end_passes_all(tmp_path):
    with checked(TrackingBackend, tmp_path, "VU-INFL or VU-STATE") as report:
        assert {outcome.verdict for outcome in report.outcomes} == {Verdict.PASSED}, table(report)
        assert len(report.outcomes) >= 17


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(tmp_path, mistake):
    with checked(TrackingBackend, tmp_path, MISTAKES[mistake], mistake) as report:
        (outcome,) = report.outcomes
        assert outcome.verdict is Verdict.FAILED, table(report)
        assert outcome.evidence.expected
        assert outcome.evidence.seen
