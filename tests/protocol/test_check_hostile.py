"""`vhostd check --hostile`: each way to fail is noticed, and our devices fail in none."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.protocol.test_check import bad, check, image  # noqa: F401 - a fixture
from tests.support import wrong_backend
from tests.support.backends import start_card, start_vhostd
from tests.support.checked import checked
from tests.support.net import Netns
from tests.support.wrong_backend import WrongBackend
from vhostd.driver.conformance import all_cases
from vhostd.driver.conformance.case import Level
from vhostd.driver.conformance.runner import held_at
from vhostd.driver.conformance.verdict import Fault, Verdict

ROOT = Path(__file__).resolve().parents[2]

FAMILIES = {
    "HOST-RING",
    "HOST-LINK",
    "HOST-TABLE",
    "HOST-CHAIN",
    "HOST-ERROR",
    "HOST-SELF",
    "HOST-ORDER",
    "HOST-ODD",
    "HOST-PACKED",
    "HOST-PTABLE",
    "HOST-PERROR",
}


def test_there_are_three_hundred_and_each_has_a_row_of_the_catalogue():
    """HOSTILE 3 and 4: S, R, B and N rows."""
    cases = all_cases(hostile_ones=True)
    assert len(cases) >= 300
    for case in cases:
        family, _, row = case.id.partition(".")
        assert re.match(r"[SRBN]\d+", row if family in FAMILIES else family.removeprefix("HOST-")), case.id
        assert case.rule


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("dies", "the back-end died"), ("wedges", "fresh guest"), ("leaks", "more descriptors"), ("spins", "of a CPU")],
)
def test_each_way_to_fail_is_noticed(tmp_path, wrong, said):
    """A back-end that does one thing wrong when descriptors come with SET_OWNER."""
    program = shlex.join([sys.executable, wrong_backend.__file__])
    words = ["--hostile", "-k", "HOST-S20.set-owner.8", "--timeout", "0.5", "--start", f"{program} {{sock}} {wrong}"]
    code, report = check(tmp_path / "wrong.sock", *words)
    assert code == 1
    (found,) = [case for case in report["cases"] if case["verdict"] == "failed"]
    assert said in found["seen"]


def test_one_that_does_nothing_wrong_passes(tmp_path):
    """So that the verdicts above mean something."""
    program = shlex.join([sys.executable, wrong_backend.__file__])
    words = ["--hostile", "-k", "HOST-S20.set-owner.8", "--timeout", "0.5", "--start", f"{program} {{sock}}"]
    code, report = check(tmp_path / "right.sock", *words)
    assert (code, bad(report)) == (0, set())


RIGHT = [
    "HOST-RING.R1-head-is-size",
    "HOST-LINK.R10-self",
    "HOST-LINK.R12-next-60000",
    "HOST-TABLE.R24-next-past-the-table",
    "HOST-CHAIN.R30-status-unmapped",
    "HOST-CHAIN.B24-status-of-no-bytes",
    "HOST-ERROR.R30-data-unmapped",
]


def test_one_that_breaks_its_ring_loudly_passes(tmp_path):
    with checked(WrongBackend, tmp_path, " or ".join(RIGHT), hostile=True) as report:
        assert [(o.case_id, o.evidence.seen) for o in report.outcomes if o.verdict is not Verdict.PASSED] == []
        assert len(report.outcomes) == len(RIGHT)


@pytest.mark.parametrize(
    ("name", "wrong", "fault", "level"),
    [
        ("HOST-S1.2", (), Fault.WRONG_ANSWER, Level.SHOULD),
        ("HOST-S5.45", (), Fault.WRONG_ANSWER, Level.MUST),
        ("HOST-S40.set-vring-num.0x100", (), Fault.WRONG_ANSWER, Level.MUST),
        ("HOST-S135.63", (), Fault.WRONG_ANSWER, Level.SHOULD),
        ("HOST-R40.100", (), Fault.WRONG_ANSWER, Level.MUST),
        ("HOST-RING.R1-head-is-size", ("silent",), Fault.SILENT_RING_ERROR, Level.SHOULD),
        ("HOST-RING.R1-head-is-size", ("publishes what it cannot do",), Fault.WRONG_ANSWER, Level.MUST),
        ("HOST-CHAIN.R30-status-unmapped", ("takes what is not there for done",), Fault.WRONG_ANSWER, Level.MUST),
        ("HOST-ERROR.R30-data-unmapped", ("takes what is not there for done",), Fault.WRONG_ANSWER, Level.MUST),
    ],
)
def test_a_wrong_answer_is_noticed_and_weighed(tmp_path, name, wrong, fault, level):
    """This back-end knows no bad request, no ring but its own, and no memory that lies in two regions."""
    with checked(WrongBackend, tmp_path, name, *wrong, hostile=True) as report:
        (outcome,) = report.outcomes
        assert (outcome.verdict, outcome.fault) == (Verdict.FAILED, fault), outcome.evidence.seen
        assert held_at(outcome, report.by_id[name]) is level
        assert report.conforms is (level is Level.SHOULD)


def test_a_chain_may_be_given_back_undone(tmp_path):
    """No document forbids it: its head is the driver's."""
    with checked(WrongBackend, tmp_path, "HOST-LINK.R12", "publishes what it cannot do", hostile=True) as report:
        assert {outcome.verdict for outcome in report.outcomes} == {Verdict.PASSED}
        assert len(report.outcomes) == 3


def test_a_report_survives_a_back_end_that_hangs(tmp_path):
    """Without --start nobody gets it going again, and its scratch area cannot be put back."""
    process = subprocess.Popen([sys.executable, wrong_backend.__file__, tmp_path / "s", "wedges"])
    try:
        while not (tmp_path / "s").exists():
            time.sleep(0.01)
        words = ["--hostile", "-k", "HOST-S20.set-owner.8 or HOST-S6.1", "--timeout", "0.3"]
        code, report = check(tmp_path / "s", *words)
    finally:
        process.kill()
        process.wait()
    assert code == 1
    assert [case["fault"] for case in report["cases"] if case["verdict"] == "failed"] == ["wedge"]


def test_our_disk_stands_all_of_it(image, tmp_path):  # noqa: F811
    """No crash, wedge, leak or spin; each answer as the catalogue has it."""
    backend = start_vhostd(image, tmp_path / "disk.sock", queues=2)
    try:
        code, report = check(backend.socket, "--hostile")
        assert backend.alive
    finally:
        backend.stop()
    assert (code, bad(report)) == (0, set())
    assert report["totals"]["passed"] >= 300


@pytest.mark.root
def test_our_card_stands_all_of_it(tmp_path):
    netns = Netns()
    card = start_card(tmp_path / "net.sock", netns=f"/proc/{os.getpid()}/fd/{netns.fd}", queues=2)
    try:
        code, report = check(card.socket, "--hostile", "--interface", "tap0", netns=netns)
        assert card.alive
    finally:
        card.stop()
        netns.close()
    assert (code, bad(report)) == (0, set())
    assert report["totals"]["passed"] >= 300


def test_every_case_has_its_row_in_the_page():
    """docs/hostile.md says of each what is expected and what vhostd does; ranges stand for what lies in them."""
    rows = re.findall(r"^\| ([SRBN]\d.*?) \|", (ROOT / "docs/hostile.md").read_text(), re.MULTILINE)
    named = set()
    for row in rows:
        for part in row.split(", "):
            ends = [int(number) for number in re.findall(r"\d+", part)]
            named |= {f"{part[0]}{number}" for number in range(ends[0], ends[-1] + 1)}
    for case in all_cases(hostile_ones=True):
        family, _, row = case.id.partition(".")
        name = row if family in FAMILIES else family.removeprefix("HOST-")
        assert re.match(r"[SRBN]\d+", name).group() in named, case.id
