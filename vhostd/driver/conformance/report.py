"""What came of the cases, for a reader and for programs: table, TAP 13, JUnit XML, JSON, a line of a page."""

import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO
from xml.sax.saxutils import escape, quoteattr

from vhostd.driver.conformance.case import Case
from vhostd.driver.conformance.runner import counts, held_at
from vhostd.driver.conformance.target import Target
from vhostd.driver.conformance.verdict import Outcome, Verdict

SENT_SHOWN = 12  # lines of what was sent, in a table


@dataclass
class Report:
    """A run: its target, its cases in order, what came of them so far."""

    target: Target
    cases: Sequence[Case]
    outcomes: list[Outcome] = field(default_factory=list)
    strict: bool = False

    @property
    def by_id(self) -> dict[str, Case]:
        """The cases by id."""
        return {case.id: case for case in self.cases}

    @property
    def totals(self) -> Counter[Verdict]:
        """How many cases have which verdict."""
        return Counter(outcome.verdict for outcome in self.outcomes)

    @property
    def complete(self) -> bool:
        """Whether every case has come to its end."""
        return len(self.outcomes) == len(self.cases)

    @property
    def conforms(self) -> bool:
        """Whether all of it was seen, and nothing says otherwise."""
        cases = self.by_id
        return self.complete and not any(
            counts(outcome, cases[outcome.case_id], strict=self.strict) for outcome in self.outcomes
        )

    def command(self, case: Case) -> str:
        """Return the command that reproduces a case."""
        words = ["vhostd check", self.target.path, "-k", case.id]
        if "hostile" in case.marks:
            words.append("--hostile")
        if self.target.profile:
            words += ["--profile", self.target.profile]
        if self.target.interface:
            words += ["--interface", self.target.interface]
        if self.target.process is not None:
            words += ["--start", shlex.quote(self.target.process.command)]
        return " ".join(words)


def summary(report: Report) -> str:
    """Return one line: what was checked and how it went."""
    totals = report.totals
    parts = [f"{totals[verdict]} {verdict}" for verdict in Verdict if totals[verdict]]
    cases = report.by_id
    must = sum(o.verdict is Verdict.FAILED and counts(o, cases[o.case_id], strict=False) for o in report.outcomes)
    failed = f" ({must} of a MUST)" if totals[Verdict.FAILED] else ""
    verdict = "conforms" if report.conforms else "does not conform" if report.complete else "was not seen to the end"
    return f"{report.target.path}: {report.target.kind} {verdict}: {len(report.outcomes)} cases, " + ", ".join(
        part + failed if part.endswith("failed") else part for part in parts
    )


class Progress:
    """A line on a terminal that says where we are; silent elsewhere."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self.stream = sys.stderr if stream is None else stream
        self.done = 0
        self.failed = 0
        self.shows = self.stream.isatty()

    def __call__(self, case: Case, outcome: Outcome | None) -> None:
        """Show a case that begins, count one that ended."""
        if outcome is not None:
            self.done += 1
            self.failed += outcome.verdict is Verdict.FAILED
        elif self.shows:
            line = f"{self.done + 1}/{self.total}  {self.failed} failed  {case.id}"
            self.stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.shows:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def table(report: Report) -> str:
    """Return a table by chapter, then each failing case with its evidence."""
    chapters: dict[str, Counter[Verdict]] = {}
    cases = report.by_id
    for outcome in report.outcomes:
        chapters.setdefault(cases[outcome.case_id].chapter, Counter())[outcome.verdict] += 1
    width = max([len(name) for name in chapters] + [7])
    lines = [f"{'chapter':{width}}  passed  failed  not offered  needs  broke off"]
    lines += [
        f"{name:{width}}  {c[Verdict.PASSED]:6}  {c[Verdict.FAILED]:6}  {c[Verdict.NOT_OFFERED]:11}  "
        f"{c[Verdict.NEEDS]:5}  {c[Verdict.BROKE_OFF]:9}"
        for name, c in chapters.items()
    ]
    for outcome in report.outcomes:
        if outcome.verdict in {Verdict.FAILED, Verdict.BROKE_OFF}:
            lines += ["", *explain_outcome(report, cases[outcome.case_id], outcome)]
    return "\n".join([*lines, "", summary(report)]) + "\n"


def explain_outcome(report: Report, case: Case, outcome: Outcome, *, shown: int = SENT_SHOWN) -> list[str]:
    """Return the lines that a maintainer of the back-end needs."""
    kind = f" ({outcome.fault})" if outcome.fault else ""
    lines = [
        f"{case.id}  {held_at(outcome, case)}  {outcome.verdict}{kind}",
        f"  rule: {case.rule}",
        f"  from: {case.section}",
    ]
    if outcome.reason:
        lines.append(f"  why: {outcome.reason}")
    sent = outcome.evidence.sent[-shown:] if shown else outcome.evidence.sent
    left = len(outcome.evidence.sent) - len(sent) + outcome.evidence.dropped
    if sent:
        lines.append("  sent:" + (f" ({left} lines before)" if left else ""))
        lines += [f"    {line}" for line in sent]
    if outcome.evidence.expected:
        lines += [f"  expected: {outcome.evidence.expected}", f"  seen: {outcome.evidence.seen}"]
    lines.append(f"  again: {report.command(case)}")
    return lines


def tap(report: Report) -> str:
    """Return TAP version 13: a case that is not offered, or that needs something, is skipped."""
    cases = report.by_id
    lines = ["TAP version 13", f"1..{len(report.outcomes)}"]
    for number, outcome in enumerate(report.outcomes, 1):
        case = cases[outcome.case_id]
        good = outcome.verdict not in {Verdict.FAILED, Verdict.BROKE_OFF}
        line = f"{'ok' if good else 'not ok'} {number} - {case.id} {case.rule}".replace("#", "")
        if outcome.verdict in {Verdict.NOT_OFFERED, Verdict.NEEDS}:
            line += f" # SKIP {outcome.verdict}: {outcome.reason}"
        lines.append(line)
        if not good:
            lines.append("  ---")
            lines += [f"  {key}: {json.dumps(value)}" for key, value in _as_dict(report, outcome).items()]
            lines.append("  ...")
    return "\n".join(lines) + "\n"


def junit(report: Report) -> str:
    """Return JUnit XML: a test suite, a class for each chapter."""
    cases = report.by_id
    totals = report.totals
    skipped = totals[Verdict.NOT_OFFERED] + totals[Verdict.NEEDS]
    numbers = f'failures="{totals[Verdict.FAILED]}" errors="{totals[Verdict.BROKE_OFF]}" skipped="{skipped}"'
    seconds = sum(outcome.seconds for outcome in report.outcomes)
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f'<testsuite name="vhostd check" tests="{len(report.outcomes)}" time="{seconds:.3f}" {numbers}>',
    ]
    for outcome in report.outcomes:
        case = cases[outcome.case_id]
        head = (
            f"  <testcase classname={quoteattr('vhostd.' + case.chapter)} name={quoteattr(case.id)} "
            f'time="{outcome.seconds:.3f}"'
        )
        body = escape("\n".join(explain_outcome(report, case, outcome, shown=0)))
        match outcome.verdict:
            case Verdict.PASSED:
                lines.append(head + "/>")
                continue
            case Verdict.FAILED:
                about = quoteattr(f"expected {outcome.evidence.expected}; saw {outcome.evidence.seen}")
                inner = f"<failure type={quoteattr(str(outcome.fault))} message={about}>{body}</failure>"
            case Verdict.BROKE_OFF:
                inner = f"<error message={quoteattr(outcome.reason)}>{body}</error>"
            case _:
                inner = f"<skipped message={quoteattr(f'{outcome.verdict}: {outcome.reason}')}/>"
        lines += [head + ">", "    " + inner, "  </testcase>"]
    return "".join(_printable(line) + "\n" for line in [*lines, "</testsuite>"])


def as_json(report: Report) -> str:
    """Return everything as one JSON object."""
    target = report.target
    found = {
        "target": {
            "path": target.path,
            "kind": target.kind,
            "profile": target.profile,
            "features": target.offer.features,
            "protocol_features": int(target.offer.protocol),
            "queues": target.offer.queues,
        },
        "conforms": report.conforms,
        "totals": {str(verdict): report.totals[verdict] for verdict in Verdict},
        "cases": [_as_dict(report, outcome) for outcome in report.outcomes],
    }
    return json.dumps(found, indent=1) + "\n"


FORMATS = {"table": table, "tap": tap, "junit": junit, "json": as_json}


def _as_dict(report: Report, outcome: Outcome) -> dict[str, Any]:
    case = report.by_id[outcome.case_id]
    found: dict[str, Any] = {
        "id": case.id,
        "chapter": case.chapter,
        "level": str(held_at(outcome, case)),
        "section": case.section,
        "rule": case.rule,
        "verdict": str(outcome.verdict),
        "seconds": round(outcome.seconds, 4),
    }
    if outcome.reason:
        found["reason"] = outcome.reason
    if outcome.verdict is Verdict.FAILED:
        found["fault"] = str(outcome.fault)
        found["expected"], found["seen"] = outcome.evidence.expected, outcome.evidence.seen
        found["sent"] = outcome.evidence.sent
    if outcome.verdict in {Verdict.FAILED, Verdict.BROKE_OFF}:
        found["command"] = report.command(case)
    return found


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in line)
