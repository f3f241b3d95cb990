"""bench: drives any back-end with load, one on a socket, or several that it starts itself."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vhostd.cli import bench_words
from vhostd.cli.flags import UsageError
from vhostd.cli.signals import sigterm_as_interrupt
from vhostd.driver.load import calibrate, document, plot, tables
from vhostd.driver.load.awake import awake
from vhostd.driver.load.compare import Care, compare
from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.measure import Settings, measure
from vhostd.driver.load.medium import Medium
from vhostd.driver.load.result import Result
from vhostd.driver.load.runner import Watcher


def main(words: list[str]) -> int:
    """Measure: `vhostd bench SOCKET`, or `vhostd bench --compare ...`. 0 when all was measured."""
    found = bench_words.parser().parse_args(words)
    several = bool(found.compare or found.preset)
    if sum([found.socket is not None, several, found.calibrate]) != 1:
        raise UsageError("give a SOCKET, or --compare or --preset, or --calibrate")
    if (found.suite or found.job) and found.rw:
        raise UsageError("--rw makes a job of its own: leave --suite and --job away, or --rw")
    if found.plot is not None:
        plot.check(found.plot)
    if found.realtime:
        _become_realtime()
    # What is started on the way, back-ends or strace, is to be ended on the way out.
    with sigterm_as_interrupt(), awake() if found.awake else contextlib.nullcontext():
        return _measure(found, several=several)


def _measure(found: argparse.Namespace, *, several: bool) -> int:
    if found.calibrate:
        return _calibrate(found)
    if several:
        return _compare(found)
    if found.rw in bench_words.NET_RW:
        from vhostd.cli.bench_net import net

        return net(found)
    if found.suite or found.job:
        return _several_jobs(found)
    return _single(found)


def _single(found: argparse.Namespace) -> int:
    job = bench_words.job_of(found)
    if job.writes:
        print(f"vhostd bench: {job.name} overwrites the disk behind {found.socket}", file=sys.stderr)
    calibration = calibration_of(found)
    one = measure(found.socket, job, settings_of(found), watch=watcher())
    title = f"{job.name}, {one.backend}"
    lines = [title, "", *tables.report(one, calibration)]
    if found.histogram:
        lines += ["", *tables.histogram_lines(one.result.latency)]
    show(found, lines, document.single(one, calibration))
    if found.plot is not None:
        plot.draw_single(found.plot, one, title)
    return 0


def _several_jobs(found: argparse.Namespace) -> int:
    """Run named jobs against a back-end that is there: those that its disk can do."""
    rows = [row for row in bench_words.rows_of(found) if row.job.image == "file"]
    if not rows:
        raise BenchError("these jobs want a back-end that is started here: --preset or --compare instead of SOCKET")
    if any(row.job.writes for row in rows):
        print(f"vhostd bench: some of these jobs overwrite the disk behind {found.socket}", file=sys.stderr)
    calibration = calibration_of(found)
    lines: list[str] = []
    documents = []
    for row in rows:
        one = measure(found.socket, row.job, settings_of(found), watch=watcher())
        report = tables.idle_report(one) if row.job.idle else tables.report(one)
        lines += [row.job.name, *report, ""]
        documents.append(document.measurement(one))
    show(found, lines, {**document.head(), "measurements": documents,
                        "calibration": None if calibration is None else document.result(calibration)})  # fmt: skip
    return 0


def _compare(found: argparse.Namespace) -> int:
    folder = found.dir or Path.cwd()
    if not folder.is_dir():
        raise BenchError(f"--dir {folder}: there is no such folder")
    rows = bench_words.rows_of(found)
    entrants = bench_words.contenders_of(found)
    image = found.image or folder / f"vhostd-bench-{os.getpid()}.raw"
    if found.image is not None and image.exists() and any(row.job.writes for row in rows):
        print(f"vhostd bench: this overwrites {image}", file=sys.stderr)
    calibration = calibration_of(found)
    medium = Medium(image, found.image_size)
    settings = settings_of(found, cpus=found.cpus if found.cpus is not None else _first_cpu())
    care = Care(found.rounds, found.precision / 100, found.max_steal / 100)
    try:
        done = compare(entrants, rows, medium, settings, care, folder=found.dir, say=_say)
    finally:
        medium.remove()
        _say("")
    lines = tables.comparison_table(done, calibration)
    if found.histogram:
        for standing in done.standings:
            for name in standing.rounds:
                lines += ["", f"{standing.row.job.name}: {name}", *tables.histogram_lines(standing.latency(name))]
    show(found, lines, document.comparison(done, calibration))
    if found.plot is not None:
        plot.draw_comparison(found.plot, done)
    return 0


def _calibrate(found: argparse.Namespace) -> int:
    cpus = found.cpus or tuple(sorted(os.sched_getaffinity(0)))
    results = [(job, calibrate.calibrate(job, cpus)) for job in calibrate.JOBS]
    head = ["calibration", "M requests/s", "ns each", "p50 us", "p99 us"]
    rows = [
        [
            job.name,
            f"{one.iops / 1e6:.2f}",
            f"{1e9 / one.iops:.0f}",
            tables.us(one.percentile(50)),
            tables.us(one.percentile(99)),
        ]
        for job, one in results
    ]
    lines = [*tables.table(head, rows), "", "the generator against a disk that does nothing; the best of three tries"]
    show(found, lines, {**document.head(), "calibrations": [
        {"job": job.name, "result": document.result(one)} for job, one in results]})  # fmt: skip
    return 0


def settings_of(found: argparse.Namespace, *, cpus: tuple[int, ...] | None = None) -> Settings:
    """Return how the words want it measured."""
    chosen = cpus if cpus is not None else found.cpus or ()
    if wrong := set(chosen) - os.sched_getaffinity(0):
        raise UsageError(f"--cpus: core {min(wrong)} is not ours to use; there are {_names(os.sched_getaffinity(0))}")
    seconds = 2.0 if found.seconds is None else found.seconds
    if not seconds:
        raise UsageError("--seconds 0: nothing is measured in no time")
    return Settings(seconds, found.warm_up, found.seed, tuple(chosen), found.syscalls)


def calibration_of(found: argparse.Namespace) -> Result | None:
    """Return how fast the generator is, unless that is not wanted."""
    if found.no_calibration:
        return None
    return calibrate.calibrate(calibrate.ROW, tuple(sorted(os.sched_getaffinity(0))), seconds=0.1)


def show(found: argparse.Namespace, lines: Sequence[str], content: dict[str, Any]) -> None:
    """Print the table, and write the document where it is wanted."""
    print("\n".join(lines), file=sys.stderr if found.json == "-" else sys.stdout)
    if found.json is None:
        return
    text = json.dumps(content, indent=1) + "\n"
    if found.json == "-":
        sys.stdout.write(text)
        return
    try:
        Path(found.json).write_text(text)
    except OSError as error:
        raise BenchError(f"--json {found.json}: {error.strerror}") from error


def _become_realtime() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError as error:
        raise BenchError("--realtime: not permitted; as root, or with CAP_SYS_NICE, it is") from error


def _first_cpu() -> tuple[int, ...]:
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0],) if len(cpus) > 1 else ()


def _names(cpus: set[int]) -> str:
    return ", ".join(map(str, sorted(cpus)))


def _say(text: str) -> None:
    """Show what is being done, on a terminal in one line that is written over."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
    elif text:
        print(text, file=sys.stderr)


class _Progress:
    """A line that is written over once a second."""

    def __init__(self) -> None:
        self.shown_at = 0.0
        self.shown = 0

    def __call__(self, seconds: float, requests: int, over: bool) -> None:
        if over:
            _say("")
        elif seconds - self.shown_at >= 1.0:
            rate = (requests - self.shown) / (seconds - self.shown_at)
            _say(f"{seconds:5.0f} s  {requests:,} requests  {rate / 1e3:,.1f} kIOPS")
            self.shown_at, self.shown = seconds, requests


def watcher() -> Watcher | None:
    """Return what shows a load's progress, where somebody looks."""
    return _Progress() if sys.stderr.isatty() else None
