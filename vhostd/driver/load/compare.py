"""Back-ends beside each other: rounds in turn, medians, and how sure a ratio is.

For each job and each round every back-end is started, warmed up, measured and stopped, A B A B, so that the drift of a
machine falls on all alike. A ratio is that of medians; its spread are the least and the greatest ratio of one round,
where both were measured within seconds of each other.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vhostd.driver.load import contender as contenders
from vhostd.driver.load.contender import Contender
from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.histogram import Histogram
from vhostd.driver.load.measure import Measurement, Settings, free_cpus, measure, socket_in
from vhostd.driver.load.medium import Medium
from vhostd.driver.load.suite import Row


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Of the first contender to its best rival: of the medians, and the least and greatest of a round."""

    value: float
    low: float
    high: float
    rival: str


@dataclasses.dataclass(frozen=True)
class Standing:
    """A row and what each contender did in its rounds; `missing` have no such image."""

    row: Row
    rounds: Mapping[str, Sequence[Measurement]]
    missing: Sequence[str] = ()

    def iops(self, name: str) -> float:
        """Return the median of a contender's requests a second."""
        return statistics.median(one.result.iops for one in self.rounds[name])

    def cpu_ns(self, name: str) -> float | None:
        """Return the median of a contender's CPU a request."""
        known = [one.cpu_ns for one in self.rounds[name] if one.cpu_ns is not None]
        return statistics.median(known) if known else None

    def syscalls(self, name: str) -> float | None:
        """Return the median of a contender's system calls a request."""
        known = [one.syscalls for one in self.rounds[name] if one.syscalls is not None]
        return statistics.median(known) if known else None

    def latency(self, name: str) -> Histogram:
        """Return all latencies of a contender's rounds."""
        return Histogram.sum(one.result.latency for one in self.rounds[name])

    def steal(self) -> float:
        """Return the greatest share of the machine's time that its host took during a round."""
        return max((one.steal for rounds in self.rounds.values() for one in rounds), default=0.0)

    def ratio(self, subject: str) -> Ratio | None:
        """Return how many requests a second the subject does for one of its best rival; None without rivals."""
        rivals = [name for name in self.rounds if name != subject]
        if subject not in self.rounds or not rivals or self.row.job.idle:
            return None
        best = max(rivals, key=self.iops)
        each = [a.result.iops / b.result.iops for a, b in zip(self.rounds[subject], self.rounds[best], strict=True)]
        return Ratio(self.iops(subject) / self.iops(best), min(each), max(each), best)

    def cpu_ratio(self, subject: str) -> float | None:
        """Return the subject's CPU a request for one ns of its cheapest rival."""
        mine = self.cpu_ns(subject) if subject in self.rounds else None
        rivals = [cost for name in self.rounds if name != subject and (cost := self.cpu_ns(name))]
        if mine is None or not rivals or self.row.job.idle:
            return None
        return mine / min(rivals)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows; the first of `names` is the subject that ratios are of."""

    names: Sequence[str]
    standings: Sequence[Standing]

    @property
    def subject(self) -> str:
        """The contender that ratios are of."""
        return self.names[0]


def compare(
    entrants: Sequence[Contender],
    rows: Sequence[Row],
    medium: Medium,
    settings: Settings,
    *,
    rounds: int = 3,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure every contender in every row, `rounds` times in turn.

    settings.cpus: the generator's; each back-end gets the others, a row of several queues gives all to both.
    Raises BenchError when a contender cannot be started, DeviceError when one fails under load.
    """
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise BenchError(f"two contenders have one name: {', '.join(names)}")
    standings = []
    for row in rows:
        found: dict[str, list[Measurement]] = {}
        missing: list[str] = []
        for number in range(rounds):
            for entrant in entrants:
                say(f"{row.job.name}: round {number + 1} of {rounds}, {entrant.name}")
                medium.prepare(row.job.cache, row.job.folios)
                one = _once(entrant, row, medium, settings, folder)
                if one is not None:
                    found.setdefault(entrant.name, []).append(one)
                elif entrant.name not in missing:
                    missing.append(entrant.name)
        standings.append(Standing(row, found, tuple(missing)))
    return Comparison(names, standings)


def _once(entrant: Contender, row: Row, medium: Medium, settings: Settings, folder: Path | None) -> Measurement | None:
    with tempfile.TemporaryDirectory(prefix="vhostd-bench-", dir=folder) as place:
        sock = socket_in(Path(place), "s.sock")
        command = entrant.command(row.job, sock, medium.path, medium.length)
        if command is None:
            return None
        shared = row.job.queues > 1 or not settings.cpus
        own = dataclasses.replace(settings, cpus=()) if shared else settings
        with contenders.running(entrant.name, command, sock, set() if shared else free_cpus(settings.cpus)):
            return measure(sock, row.job, own)
