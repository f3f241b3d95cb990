"""The cases for packed rings, which no installed back-end offers, on one in Python that is right, and wrong in one way."""

import contextlib
import os

import pytest

from tests.support.packed_backend import PackedBackend
from vhostd.driver.conformance import all_cases
from vhostd.driver.conformance.report import Report, table
from vhostd.driver.conformance.runner import run
from vhostd.driver.conformance.selection import select
from vhostd.driver.conformance.target import probe, scratch
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


@contextlib.contextmanager
def checked(tmp_path, expression, *wrong, hostile=False):
    backend = PackedBackend(tmp_path / "packed.sock", *wrong)
    try:
        target = probe(str(tmp_path / "packed.sock"), timeout=0.5)
        assert target.pid == os.getpid()
        target.pid = 0  # it is ourselves, and never idle
        chosen = [case for case in select(all_cases(hostile_ones=hostile), expression) if "block" in case.kinds]
        report = Report(target, chosen)
        with scratch(target):
            report.outcomes = list(run(target, chosen))
        yield report
    finally:
        backend.close()


@pytest.mark.parametrize("chapter", ["packed_ring", "event_idx"])
def test_a_right_back_end_passes_all(tmp_path, chapter):
    """Every case of the chapter runs, IN_ORDER's too, and none is "not offered"."""
    with checked(tmp_path, chapter) as report:
        assert {outcome.verdict for outcome in report.outcomes} == {Verdict.PASSED}, table(report)
        assert len(report.outcomes) >= 20


def test_a_right_back_end_stands_what_is_hostile(tmp_path):
    with checked(tmp_path, "packed", hostile=True) as report:
        assert {outcome.verdict for outcome in report.outcomes} == {Verdict.PASSED}, table(report)
        assert len(report.outcomes) >= 39


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(tmp_path, mistake):
    case = MISTAKES[mistake]
    with checked(tmp_path, case, mistake, hostile=case.startswith("HOST")) as report:
        (outcome,) = report.outcomes
        assert outcome.verdict is Verdict.FAILED, table(report)
        assert outcome.evidence.expected
        assert outcome.evidence.seen
