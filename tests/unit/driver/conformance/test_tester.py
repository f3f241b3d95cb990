"""The tester is tested: a back-end that is right passes, and one that does a thing wrong fails the case for it."""

import contextlib
import json
import xml.etree.ElementTree as ET

import pytest

from tests.support.checked import checked
from tests.support.wrong_backend import WrongBackend
from vhostd.driver.conformance import all_cases
from vhostd.driver.conformance.report import as_json, junit, table, tap
from vhostd.driver.conformance.selection import BadExpression, select
from vhostd.driver.conformance.verdict import Verdict
from vhostd.errors import DeviceError


def verdicts(report):
    return {outcome.case_id: outcome.verdict for outcome in report.outcomes}


MISTAKES = {
    "reserved bit": "VU-FEAT-03.48",
    "acks unasked": "VU-ACK-03.set-vring-num",
    "ignores the offset": "VU-CONF-03.num-queues",
    "status is lost": "VU-STAT-02.driver",
    "mmap offset": "VU-MEM-01.offset",
    "wrong base": "VU-BASE-01",
    "never stops": "VU-RING-10",
    "used length": "BLK-FLUSH-01",
    "calls always": "VU-CALL-06.1",
    "never calls": "VU-CALL-01",
    "serial of blanks": "BLK-ID-01",
    "behind the end": "BLK-ERR-01.end",
    "unknown is an error": "BLK-UNSUPP-01.0x1234",
}
SEEN = MISTAKES


@pytest.mark.parametrize("case", sorted(set(SEEN.values())))
def test_a_right_back_end_passes(tmp_path, case):
    """The fake is right when it is told to be: what fails below fails for its mistake."""
    with checked(WrongBackend, tmp_path, case) as report:
        assert verdicts(report) == {case: Verdict.PASSED}, table(report)
        assert report.conforms


@pytest.mark.parametrize("mistake", SEEN)
def test_a_mistake_is_noticed(tmp_path, mistake):
    """Each mistake fails the case that is about it, with what was expected, what was seen, and what was sent."""
    case = SEEN[mistake]
    with contextlib.ExitStack() as stack:
        try:
            report = stack.enter_context(checked(WrongBackend, tmp_path, case, mistake))
        except DeviceError:
            assert mistake in {"used length", "never calls"}
            return  # a disk that nobody can read is noticed before any case
        (outcome,) = report.outcomes
        assert outcome.verdict is Verdict.FAILED
        assert outcome.evidence.expected
        assert outcome.evidence.seen
        assert outcome.evidence.sent or mistake == "reserved bit"
        assert not report.conforms


def test_what_is_not_offered_is_never_passed(tmp_path):
    """Packed rings, in-flight tracking, discards: the fake has none of them."""
    with checked(WrongBackend, tmp_path, "packed_ring or inflight or block_ranges or dirty_log") as report:
        assert set(verdicts(report).values()) <= {Verdict.NOT_OFFERED, Verdict.FAILED, Verdict.PASSED}
        found = verdicts(report)
        assert all(v is Verdict.NOT_OFFERED for name, v in found.items() if name.startswith(("PKD-", "VU-INFL-")))
        assert all(o.reason for o in report.outcomes if o.verdict is Verdict.NOT_OFFERED)


def test_there_are_enough_cases():
    """At least 400, each with an id, a rule and the section it rests on."""
    cases = all_cases()
    assert len(cases) >= 400
    for case in cases:
        assert case.section.startswith(("virtio ", "vhost-user, ")), case.id
        assert case.rule.endswith("."), case.id


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("VU-MSG-01", lambda ids: all(i.startswith("VU-MSG-01.") for i in ids)),
        ("VU-MSG-01.status", lambda ids: ids == ["VU-MSG-01.status"]),
        ("messages and not VU-MSG-01", lambda ids: all(i.startswith("VU-MSG-") for i in ids)),
        ("(VU-MSG-03 or VU-MSG-05)", lambda ids: ids == ["VU-MSG-03", "VU-MSG-05"]),
    ],
)
def test_expressions(expression, holds):
    assert holds([case.id for case in select(all_cases(), expression)])


@pytest.mark.parametrize("bad", ["(", "a and", "or b", "a ) b", "not"])
def test_expressions_that_are_none(bad):
    with pytest.raises(BadExpression):
        select(all_cases(), bad)


def test_formats(tmp_path):
    """JUnit is XML with its counts, TAP has its plan and a line for each, JSON has all."""
    with checked(WrongBackend, tmp_path, "messages or VU-FEAT-03 or PKD-17", "reserved bit") as report:
        count = len(report.outcomes)
        suite = ET.fromstring(junit(report))
        assert int(suite.get("tests")) == count == len(suite.findall("testcase"))
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == 1
        assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped")) > 0
        lines = tap(report).splitlines()
        assert lines[:2] == ["TAP version 13", f"1..{count}"]
        assert len([line for line in lines if line.startswith(("ok ", "not ok "))]) == count
        assert len([line for line in lines if line.startswith("not ok ")]) == 1
        found = json.loads(as_json(report))
        assert len(found["cases"]) == count
        assert found["conforms"] is False
        assert "-k VU-FEAT-03.48" in table(report)
