"""What was measured as a JSON document, for other programs. docs/bench.md describes each member."""

import dataclasses
import os
import platform
import time
from typing import Any

from vhostd import __version__
from vhostd.driver.load.cards import NetMeasurement
from vhostd.driver.load.compare import Comparison, Standing
from vhostd.driver.load.histogram import PERCENTILES, Histogram
from vhostd.driver.load.measure import Measurement
from vhostd.driver.load.result import SAMPLE_NS, Result

VERSION = 1


def head() -> dict[str, Any]:
    """Return what every document starts with."""
    return {
        "version": VERSION,
        "tool": f"vhostd bench {__version__}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": {"kernel": platform.release(), "machine": platform.machine(), "cpus": len(os.sched_getaffinity(0))},
    }


def latency(histogram: Histogram) -> dict[str, Any]:
    """Return a histogram in ns: ends, mean, percentiles, and the buckets that are not empty as [low, high, count]."""
    return {
        "count": histogram.count,
        "min_ns": histogram.min_ns,
        "mean_ns": histogram.mean_ns,
        "max_ns": histogram.max_ns,
        "percentiles_ns": {f"{percent:g}": histogram.percentile(percent) for percent in PERCENTILES},
        "buckets": [list(bucket) for bucket in histogram.filled_buckets()],
    }


def result(one: Result) -> dict[str, Any]:
    """Return a result."""
    each = max(one.ios, 1)
    return {
        "requests": one.ios,
        "bytes": one.transferred_len,
        "seconds": one.seconds,
        "iops": one.iops,
        "bytes_per_second": one.bandwidth,
        "kicks_per_request": one.kicks / each,
        "calls_per_request": one.calls / each,
        "unsent": one.unsent,
        "sample_seconds": SAMPLE_NS / 1e9,
        "samples": list(one.samples),
        "latency": latency(one.latency),
        "reads": latency(one.reads),
        "writes": latency(one.writes),
        "flushes": latency(one.flushes),
    }


def measurement(one: Measurement | NetMeasurement) -> dict[str, Any]:
    """Return a measurement with its job."""
    return {
        "job": dataclasses.asdict(one.job),
        "result": result(one.result),
        "backend": {
            "name": one.backend,
            "pid": one.pid,
            "cpu_ns_per_request": None if one.job.idle else one.cpu_ns,
            "idle_cpu_ns": one.cpu_ns if one.job.idle else None,
            "idle_wakeups_per_second": one.wakeups,
            "syscalls_per_request": one.syscalls,
            "syscalls_note": one.note,
        },
        "verified_blocks": one.swept,
        "steal": one.steal,
    }


def single(one: Measurement | NetMeasurement, calibration: Result | None) -> dict[str, Any]:
    """Return the document of one measurement."""
    return {**head(), **measurement(one), "calibration": None if calibration is None else result(calibration)}


def comparison(found: Comparison, calibration: Result | None) -> dict[str, Any]:
    """Return the document of a comparison: a row for each job, all rounds in it."""
    return {
        **head(),
        "contenders": list(found.names),
        "rows": [_row(found, standing) for standing in found.standings],
        "calibration": None if calibration is None else result(calibration),
    }


def _row(found: Comparison, standing: Standing) -> dict[str, Any]:
    ratio = standing.ratio(found.subject)
    return {
        "job": dataclasses.asdict(standing.row.job),
        "goal": standing.row.goal or None,
        "cpu_goal": standing.row.cpu_goal or None,
        "medians": {
            name: {
                "iops": standing.iops(name),
                "cpu_ns_per_request": standing.cpu_ns(name),
                "syscalls_per_request": standing.syscalls(name),
            }
            for name in standing.rounds
        },
        "ratio": None if ratio is None else dataclasses.asdict(ratio),
        "cpu_ratio": standing.cpu_ratio(found.subject),
        "rounds": {name: [measurement(one) for one in rounds] for name, rounds in standing.rounds.items()},
        "missing": list(standing.missing),
    }
