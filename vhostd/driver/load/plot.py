"""Pictures of what was measured, drawn by matplotlib, which is an extra."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vhostd.driver.load.cards import NetMeasurement
from vhostd.driver.load.compare import Comparison, Standing
from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.histogram import Histogram
from vhostd.driver.load.measure import Measurement
from vhostd.driver.load.result import SAMPLE_NS
from vhostd.driver.load.tables import kinds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")  # told apart by all
_SHARES = (0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)  # of requests that are slower
_PX = 110


def check(path: Path) -> None:
    """Raise BenchError, before anything is measured, when a picture cannot be drawn at the end."""
    if path.suffix not in SUFFIXES:
        raise BenchError(f"--plot {path}: the name ends in one of {', '.join(SUFFIXES)}")
    if not path.resolve().parent.is_dir():
        raise BenchError(f"--plot {path}: there is no such folder")
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise BenchError("--plot needs matplotlib: pip install 'vhostd[plot]'") from None


def draw_single(path: Path, one: Measurement | NetMeasurement, title: str) -> None:
    """Draw one job: latency distribution, and requests a second over time."""
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    _latency(left, [kind for kind in kinds_of(one) if kind[1].count])
    _over_time(right, [(one.backend, [one.result.samples])])
    _save(figure, path, title)


def draw_comparison(path: Path, found: Comparison) -> None:
    """Draw a comparison: one job as its latencies and its course, several as bars of ratios."""
    drawn = [s for s in found.standings if not s.row.job.idle and s.rounds]
    if len(drawn) == 1:
        _draw_job(path, found, drawn[0])
    elif drawn:
        _draw_jobs(path, found, drawn)
    else:
        raise BenchError("--plot: there is nothing to draw of a device that does nothing")


def _draw_job(path: Path, found: Comparison, standing: Standing) -> None:
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    names = [name for name in found.names if name in standing.rounds]
    _latency(left, [(name, standing.latency(name)) for name in names])
    _over_time(right, [(name, [one.result.samples for one in standing.rounds[name]]) for name in names])
    _save(figure, path, standing.row.job.name)


def _draw_jobs(path: Path, found: Comparison, drawn: Sequence[Standing]) -> None:
    figure = _figure(11, 1.7 + 0.2 * len(drawn) * (len(found.names) + 1))
    left, right = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(found.names)
    for number, name in enumerate(found.names):
        places, ratios, below, above, costs = [], [], [], [], []
        for place, standing in enumerate(drawn):
            if name not in standing.rounds:
                continue
            base = _base(found, standing)
            each = [one.result.iops / base for one in standing.rounds[name]]
            median = standing.iops(name) / base
            places.append(place + (number - (len(found.names) - 1) / 2) * height)
            ratios.append(median)
            below.append(max(0.0, median - min(each)))
            above.append(max(0.0, max(each) - median))
            costs.append((standing.cpu_ns(name) or math.nan) / 1e3)
        colour = _COLOURS[number % len(_COLOURS)]
        whiskers = {"elinewidth": 0.9, "ecolor": "#333333", "capsize": 1.5}
        left.barh(places, ratios, height * 0.92, label=name, color=colour, xerr=(below, above), error_kw=whiskers)
        right.barh(places, costs, height * 0.92, color=colour)
        for at, ratio, spread in zip(places, ratios, above, strict=True):
            left.annotate(
                f"{ratio:.2f}", (ratio + spread, at), (4, 0), textcoords="offset points", va="center", fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
    for place, standing in enumerate(drawn):
        if standing.row.goal:
            mark = left.plot([standing.row.goal] * 2, [place - 0.45, place + 0.45], color="#333333", ls=":", lw=1.3)
            mark[0].set_label("goal" if place == next(i for i, s in enumerate(drawn) if s.row.goal) else "_")
    left.set_yticks(range(len(drawn)), [standing.row.job.name for standing in drawn])
    left.set_ylim(len(drawn) - 0.5, -0.5)
    left.set_xlabel("requests/s, as a ratio to the best rival (log)")
    left.set_xscale("log")
    low, high = left.get_xlim()
    left.set_xlim(min(low, 0.4), max(high * 1.35, 1.5))
    _plain_log(left)
    left.axvline(1, color="#333333", lw=0.8)
    right.set_xlabel("back-end's CPU, µs/request (log)")
    right.set_xscale("log")
    _plain_log(right)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    _save(
        figure, path, f"{found.subject} beside {', '.join(found.names[1:]) or 'nobody'}: medians, whiskers are rounds"
    )


def _base(found: Comparison, standing: Standing) -> float:
    """Return what ratios are to: the best rival's median, or the subject's own where it has none."""
    rivals = [standing.iops(name) for name in standing.rounds if name != found.subject]
    return max(rivals) if rivals else standing.iops(next(iter(standing.rounds)))


def _latency(axes: "Axes", curves: Sequence[tuple[str, Histogram]]) -> None:
    """How many requests took longer: both scales logarithmic, so that the slowest are seen as well as the usual."""
    most = max((histogram.count for _, histogram in curves), default=1)
    for number, (name, histogram) in enumerate(curves):
        times, slower = [max(histogram.min_ns, 1) / 1e3], [1.0]
        left = total = histogram.count
        for _, high, count in histogram.filled_buckets():
            left -= count
            times.append(min(high, histogram.max_ns) / 1e3)
            slower.append(max(left, 0.5) / total)
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{name}: p50 {_us(histogram.percentile(50))}, p99.9 {_us(histogram.percentile(99.9))} µs"
        axes.step(times, slower, where="post", label=label, color=colour, lw=1.6)
    shares = [share for share in _SHARES if share >= 0.5 / most]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_yticks(shares, [f"p{100 * (1 - share):.6g}" for share in shares])
    axes.set_yticks([], minor=True)
    axes.set_ylim(shares[-1] * 0.6, 1.3)
    axes.set_xlabel("latency, µs (log)")
    axes.set_ylabel("percentile of requests")
    axes.invert_yaxis()
    _plain_log(axes)
    axes.set_title("how many requests were at least that fast", fontsize=10)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    else:
        axes.text(0.5, 0.5, "not measured: nothing comes back", transform=axes.transAxes, ha="center")


def _over_time(axes: "Axes", courses: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> None:
    """Requests a second in each interval; rounds of one contender thin, in its colour."""
    step = SAMPLE_NS / 1e9
    top = 0.0
    for number, (name, rounds) in enumerate(courses):
        for which, samples in enumerate(rounds):
            times = [(index + 0.5) * step for index in range(len(samples))]
            rates = [sample / step / 1e3 for sample in samples]
            top = max([top, *rates])
            label = name if which == 0 else "_"
            axes.plot(
                times, rates, color=_COLOURS[number % len(_COLOURS)], lw=1.4 if len(rounds) == 1 else 1.0,
                marker="." if len(samples) < 60 else None, ms=4, label=label,
            )  # fmt: skip
    axes.set_ylim(0, top * 1.12 or 1)
    axes.set_xlim(left=0)
    axes.set_xlabel("time, s")
    axes.set_ylabel("requests/s, thousands")
    axes.set_title(f"requests over time, intervals of {step:g} s", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, ncols=3)


def _us(ns: float) -> str:
    return f"{ns / 1e3:,.0f}" if ns >= 1e5 else f"{ns / 1e3:.3g}"


def _plain_log(axes: "Axes") -> None:
    """Number a logarithmic axis as people do: 1, 2, 5, 10, not powers; fewer where they would touch."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    axis = axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=99))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_PX, layout="constrained")


def _save(figure: "Figure", path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=12)
    try:
        figure.savefig(path)
    except OSError as error:
        raise BenchError(f"--plot {path}: {error.strerror}") from error
