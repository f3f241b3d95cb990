"""check: holds any vhost-user back-end to the documents."""

import contextlib
import sys
from pathlib import Path

from vhostd.cli.flags import Parser, UsageError
from vhostd.cli.signals import sigterm_as_interrupt
from vhostd.driver.conformance import all_cases
from vhostd.driver.conformance.case import Case
from vhostd.driver.conformance.report import FORMATS, Progress, Report, summary
from vhostd.driver.conformance.runner import run
from vhostd.driver.conformance.selection import select
from vhostd.driver.conformance.target import Process, Target, probe, scratch
from vhostd.driver.profiles import PROFILES
from vhostd.errors import VhostdError

DOES_NOT_CONFORM = 1
INTERRUPTED = 130


def main(words: list[str]) -> int:
    """Check a running back-end: `vhostd check SOCKET`."""
    parser = _parser()
    found = parser.parse_args(words)
    everything = all_cases(hostile_ones=found.hostile)
    if found.explain:
        return _explain(found.explain, [*all_cases(), *all_cases(hostile_ones=True)])
    cases = select(everything, found.k)
    if found.list:
        for case in cases:
            print(f"{case.id:24} {case.level:6} {','.join(case.kinds):10} {case.rule}")
        return 0
    if found.socket is None:
        parser.error("a SOCKET is missing")
    if not cases:
        raise UsageError(f"-k {found.k}: no case is called so; --list shows all")
    process = Process(found.start, found.socket) if found.start else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(sigterm_as_interrupt())
        if process is not None:
            stack.callback(process.stop)
            process.start()
        target = probe(
            found.socket,
            kind=found.device,
            timeout=found.timeout,
            profile=found.profile,
            interface=found.interface,
            process=process,
        )
        report = _run(target, [case for case in cases if target.kind in case.kinds], found)
    text = FORMATS[found.format](report)
    if found.output is None:
        sys.stdout.write(text)
    else:
        Path(found.output).write_text(text)
        print(summary(report))
    return 0 if report.conforms else DOES_NOT_CONFORM if report.complete else INTERRUPTED


def _run(target: Target, cases: list[Case], found: object) -> Report:
    report = Report(target, cases, strict=getattr(found, "strict", False))
    progress = Progress(len(cases))
    try:
        with scratch(target, writes=not getattr(found, "keep", False), start=getattr(found, "scratch", None)):
            # Ctrl-C ends the run, not the report: what was seen so far is worth reading.
            with contextlib.suppress(KeyboardInterrupt):
                for outcome in run(target, cases, progress):
                    report.outcomes.append(outcome)
            progress.clear()
    except VhostdError as error:
        if not report.outcomes:
            raise
        # A back-end that hangs or is gone is what the report tells of.
        print(f"vhostd check: the scratch area was not put back: {error}", file=sys.stderr)
    return report


def _explain(name: str, cases: list[Case]) -> int:
    chosen = [case for case in cases if case.id == name or case.id.partition(".")[0] == name]
    if not chosen:
        raise UsageError(f"--explain {name}: there is no such case; --list shows all")
    for case in chosen:
        needs = case.needs
        print(f"{case.id}  {case.level}  {', '.join(case.kinds)}  {' '.join(sorted(case.marks))}".rstrip())
        print(f"  {case.rule}\n  from: {case.section}")
        missing = needs.missing(case.kinds[0], 0, type(needs.protocol)(0), needs.queues)
        if missing:
            print(f"  only where it offers: {missing}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vhostd check",
        description="Hold a running vhost-user back-end, block or net, to the vhost-user document and to virtio. "
        "Cases that write use the last 4 MiB of a disk and put them back.",
    )
    parser.add_argument("socket", metavar="SOCKET", nargs="?", help="where the back-end listens")
    parser.add_argument("--device", choices=("block", "net"), help="what it is, where that cannot be seen")
    parser.add_argument(
        "-k", metavar="EXPR", default="", help="which cases: words of ids, chapters, marks; and, or, not"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and run none")
    parser.add_argument("--explain", metavar="ID", help="print a case's rule and where it stands")
    parser.add_argument("--hostile", action="store_true", help="run the hostile cases instead")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="start as this front-end does")
    parser.add_argument("--interface", metavar="NAME", help="the tap or other interface behind a card, for frames")
    parser.add_argument(
        "--start", metavar="COMMAND", help="how to start the back-end, with {sock}; it is started again when it dies"
    )
    parser.add_argument("--keep", action="store_true", help="write nothing to the disk")
    parser.add_argument("--scratch", metavar="SECTOR", type=int, help="where the 4 MiB begin that are written to")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=2.0, help="for each answer [%(default)s]")
    parser.add_argument("--strict", action="store_true", help="a SHOULD that does not hold counts as well")
    parser.add_argument("--format", choices=sorted(FORMATS), default="table", help="[%(default)s]")
    parser.add_argument("-o", "--output", metavar="FILE", help="where the report goes")
    return parser
