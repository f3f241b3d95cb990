"""Tables and histograms for a terminal: lines of text, of what was measured."""

import math
from collections.abc import Sequence

from vhostd.driver.load.cards import NetMeasurement
from vhostd.driver.load.compare import Comparison, Ratio, Standing
from vhostd.driver.load.histogram import PERCENTILES, Histogram
from vhostd.driver.load.measure import Measurement
from vhostd.driver.load.result import Result

STEAL_TOLD = 0.03  # more than that is worth a line
_BAR_LEN = 50
_ROWS_MAX = 24


def us(ns: float) -> str:
    """Return a time of `ns` in microseconds, in three digits or so."""
    value = ns / 1e3
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: float | None) -> str:
    """Return a number per request, or a dash for what is not known."""
    return "-" if value is None else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.3f}"


def percent_name(percent: float) -> str:
    """Return p50, p99.9 ..."""
    return f"p{percent:g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return aligned lines: the first `left` columns to the left, numbers to the right."""
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    lines = []
    for row in every:
        cells = [
            f"{cell:<{width}}" if column < left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def latency_table(kinds: Sequence[tuple[str, Histogram]]) -> list[str]:
    """Return a line for each kind of request that was made: least, mean, percentiles, greatest, in us."""
    head = ["latency, us", "requests", "min", "mean", *map(percent_name, PERCENTILES), "max"]
    rows = [
        [
            name,
            f"{each.count:,}",
            us(each.min_ns),
            us(each.mean_ns),
            *(us(each.percentile(percent)) for percent in PERCENTILES),
            us(each.max_ns),
        ]
        for name, each in kinds
        if each.count
    ]
    return table(head, rows)


def kinds_of(one: Measurement | NetMeasurement) -> list[tuple[str, Histogram]]:
    """Return the names and latencies of what a job did, apart."""
    result = one.result
    if isinstance(one, NetMeasurement):
        return [("there and back" if one.job.rw == "echo" else "until returned", result.reads)]
    writes = "writes, discards" if one.job.discard_percent else "writes"
    return [("reads", result.reads), (writes, result.writes), ("flushes", result.flushes)]


def report(one: Measurement, calibration: Result | None = None) -> list[str]:
    """Return what one measurement has to say."""
    result, job = one.result, one.job
    rates = f"{result.iops / 1e3:,.1f} kIOPS, {result.bandwidth / 1e6:,.0f} MB/s"
    lines = [f"{result.ios:,} requests in {result.seconds:.2f} s: {rates}"]
    if job.rate:
        lines.append(
            f"asked for {job.rate:,} a second: "
            + (
                f"{result.unsent:,} were due and found no room in the queue"
                if result.unsent
                else "all were sent in time"
            )
        )
    lines += ["", *latency_table(kinds_of(one)), "", *_costs(one, "a request")]
    if one.swept is not None:
        lines.append(
            f"verified        every read, and at the end all {one.swept:,} blocks that were written: all right"
        )
    elif job.verify:
        lines.append("verified        every read: all right")
    if one.steal is not None and one.steal > STEAL_TOLD:
        lines.append(f"host            took {100 * one.steal:.0f} % of the machine meanwhile: another run will differ")
    if calibration is not None:
        lines.append(f"calibration     {calibration.iops / 1e6:.1f} million requests/s with a disk that does nothing")
    return lines


def net_report(one: NetMeasurement) -> list[str]:
    """Return what one measurement of a card has to say."""
    result = one.result
    rates = f"{result.iops / 1e3:,.1f} thousand/s, {8 * result.bandwidth / 1e9:,.2f} Gbit/s"
    lines = [f"{result.ios:,} frames in {result.seconds:.2f} s: {rates}"]
    if one.arrived is not None:
        lines.append(f"the tap has counted {one.arrived:,} of them, {max(0, result.ios - one.arrived):,} less")
    if result.latency.count:
        lines += ["", *latency_table(kinds_of(one))]
    return [*lines, "", *_costs(one, "a frame")]


def _costs(one: Measurement | NetMeasurement, per: str) -> list[str]:
    each = max(one.result.ios, 1)
    cpu = "not readable" if one.cpu_ns is None else f"{us(one.cpu_ns)} us {per}"
    calls = one.note or "not counted" if one.syscalls is None else f"{count(one.syscalls)} {per}"
    return [
        f"back-end        {one.backend}, process {one.pid}",
        f"  CPU           {cpu}",
        f"  system calls  {calls}",
        f"notifications   {count(one.result.kicks / each)} kicks and {count(one.result.calls / each)} calls {per}",
    ]


def idle_report(one: Measurement) -> list[str]:
    """Return what a back-end did while it was asked for nothing."""
    spent = "not readable" if one.cpu_ns is None else f"{one.cpu_ns / 1e3:,.0f} us"
    return [f"idle for {one.result.seconds:.1f} s: {spent} of CPU, {one.wakeups or 0:.1f} wake-ups a second"]


def histogram_lines(histogram: Histogram) -> list[str]:
    """Return bars of the latency distribution, on a logarithmic scale of time."""
    buckets = list(histogram.filled_buckets())
    if not buckets:
        return []
    low, high = max(buckets[0][0], 1), buckets[-1][1]
    # Half an octave a row, or wider when there would be too many.
    step = max(0.5, math.log2(high / low) / _ROWS_MAX)
    first = math.floor(math.log2(low) / step)
    rows: dict[int, int] = {}
    for start, end, number in buckets:
        middle = max((start + end - 1) / 2, 1)
        rows[math.floor(math.log2(middle) / step)] = rows.get(math.floor(math.log2(middle) / step), 0) + number
    total, most = histogram.count, max(rows.values())
    lines = ["latency from, us"]
    for row in range(first, max(rows) + 1):
        number = rows.get(row, 0)
        bar = "█" * round(_BAR_LEN * number / most) or ("▏" if number else "")
        share = f"{100 * number / total:.2f} %" if number else ""
        lines.append(f"{us(2 ** (row * step)):>14}  {share:>8} {bar}".rstrip())
    return lines


def comparison_table(found: Comparison, calibration: Result | None = None) -> list[str]:
    """Return a line for each job and contender; ratios stand on the subject's."""
    head = [
        "job",
        "back-end",
        "kIOPS",
        "MB/s",
        "p50 us",
        "p99 us",
        "CPU us",
        "calls",
        "ratio",
        "±",
        "spread",
        "CPU",
        "goal",
    ]
    rows: list[list[str]] = []
    for standing in found.standings:
        rows += _standing_rows(found, standing)
    if calibration is not None:
        latency = calibration.latency
        rows.append(
            ["calibration 4k QD32 poll", "(nothing)", f"{calibration.iops / 1e3:,.1f}", "", us(latency.percentile(50)),
             us(latency.percentile(99)), "", "", "", "", "", "", ""]
        )  # fmt: skip
    lines = table(head, rows, left=2)
    lines.append("")
    lines.append(
        f"medians of the rounds; ratio: {found.subject} to the best of the others, ±: where it lies with 95 % "
        "confidence, spread: of single rounds; calls: system calls a request"
    )
    disturbed = [standing for standing in found.standings if standing.steal() > STEAL_TOLD]
    lines += [
        f"{standing.row.job.name}: the host took up to {100 * standing.steal():.0f} % of the machine during a round"
        for standing in disturbed
    ]
    for standing in found.standings:
        lines += [f"{standing.row.job.name}: {name} has no such disk" for name in standing.missing]
    return lines


def _standing_rows(found: Comparison, standing: Standing) -> list[list[str]]:
    rows = []
    for name in found.names:
        if name not in standing.rounds:
            continue
        first = [standing.row.job.name, name]
        if standing.row.job.idle:
            spent = standing.cpu_ns(name)
            wakeups = max(one.wakeups or 0.0 for one in standing.rounds[name])
            text = "-" if spent is None else f"{spent / 1e3:.1f} us CPU, {wakeups:.1f} wake-ups/s"
            rows.append([*first, text, *[""] * 10])
            continue
        latency = standing.latency(name)
        length = standing.row.job.block_len
        ratio = standing.ratio(name) if name == found.subject else None
        cpu = standing.cpu_ns(name)
        rows.append(
            [
                *first,
                f"{standing.iops(name) / 1e3:,.1f}",
                f"{standing.iops(name) * length / 1e6:,.0f}",
                us(latency.percentile(50)),
                us(latency.percentile(99)),
                "-" if cpu is None else us(cpu),
                count(standing.syscalls(name)),
                *_ratio_cells(standing, ratio, name),
            ]
        )
    return rows


def _ratio_cells(standing: Standing, ratio: Ratio | None, name: str) -> list[str]:
    if ratio is None:
        return ["", "", "", "", ""]
    cpu = standing.cpu_ratio(name)
    goal, cpu_goal = standing.row.goal, standing.row.cpu_goal
    goals = " ".join([f"≥{goal:g}"] * bool(goal) + [f"CPU≤{cpu_goal:g}"] * bool(cpu_goal))
    if goals:
        met = ratio.value >= goal and (not cpu_goal or (cpu is not None and cpu <= cpu_goal))
        goals += " met" if met else " missed"
    return [
        f"{ratio.value:.2f}x",
        "-" if ratio.doubt is None else f"{100 * ratio.doubt:.0f} %",
        f"{ratio.low:.2f}-{ratio.high:.2f}",
        "-" if cpu is None else f"{cpu:.2f}x",
        goals,
    ]
