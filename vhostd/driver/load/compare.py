"""Back-ends beside each other: rounds in turn, medians, and how sure a ratio is.

For each job and each round every back-end is started, warmed up, measured and stopped, A B A B, so that the drift of a
machine falls on all alike. A ratio is that of medians; its spread are the least and the greatest ratio of one round,
where both were measured within seconds of each other. A machine that is not quiet needs more rounds than one that is,
so there are more of them until the ratio is known well enough; and a round that the host of a virtual machine disturbs
is done again from the start.
"""

import dataclasses
import functools
import itertools
import math
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

TRIES = 4  # of a round that the host disturbs
ROUNDS_TIMES = 5  # so many times as many rounds as were asked for, at most, where the ratio is not yet known
ROUNDS_TOLD = 3  # who asks for fewer wants a quick look
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Care:
    """How sure a comparison is to be.

    rounds: at least. precision: more of them until a ratio is known to this share of it, 0 for no more. max_steal: the
    share of the machine's time that its host may take during a round, lest it be done again.
    """

    rounds: int = 3
    precision: float = 0.0
    max_steal: float = 1.0

    @property
    def most(self) -> int:
        """Rounds at the most."""
        return self.rounds * (ROUNDS_TIMES if self.precision and self.rounds >= ROUNDS_TOLD else 1)

    def suffices(self, number: int, ratio: "Ratio | None") -> bool:
        """Whether a row is known well enough after so many rounds."""
        if number < self.rounds:
            return False
        if ratio is None or number >= self.most:
            return True
        return ratio.doubt is not None and ratio.doubt <= self.precision


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Of the first contender to its best rival: of the medians, and the least and greatest of a round.

    doubt: half the width of the interval that the median of the rounds' ratios lies in with 95 % confidence, as a share
    of the ratio; None where there are too few of them to tell (fewer than six).
    """

    value: float
    low: float
    high: float
    rival: str
    doubt: float | None = None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return where the median lies of what `values` are drawn from, with 95 % confidence; None for too few.

    It is that of the sign test: each value lies above the median as often as below it, whatever their distribution.
    """
    count, ordered = len(values), sorted(values)
    below, outside = -1, 0.0
    while outside + 2 * math.comb(count, below + 1) / 2**count <= 1 - CONFIDENCE:
        below += 1
        outside += 2 * math.comb(count, below) / 2**count
    return None if below < 0 else (ordered[below], ordered[count - 1 - below])


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
        return max((one.steal or 0.0 for rounds in self.rounds.values() for one in rounds), default=0.0)

    def ratio(self, subject: str) -> Ratio | None:
        """Return how many requests a second the subject does for one of its best rival; None without rivals."""
        rivals = [name for name in self.rounds if name != subject]
        if subject not in self.rounds or not rivals or self.row.job.idle:
            return None
        best = max(rivals, key=self.iops)
        each = [a.result.iops / b.result.iops for a, b in zip(self.rounds[subject], self.rounds[best], strict=True)]
        value, sure = self.iops(subject) / self.iops(best), interval(each)
        return Ratio(value, min(each), max(each), best, None if sure is None else (sure[1] - sure[0]) / 2 / value)

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
    care: Care = Care(),
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure every contender in every row, in turn, as often as `care` has it.

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
        for number in itertools.count(1):
            for entrant in entrants:
                of = f"{care.rounds} to {care.most}" if care.most > care.rounds else f"{care.rounds}"
                say(f"{row.job.name}: round {number} of {of}, {entrant.name}")
                one = calm(functools.partial(_once, entrant, row, medium, settings, folder), care.max_steal)
                if one is not None:
                    found.setdefault(entrant.name, []).append(one)
                elif entrant.name not in missing:
                    missing.append(entrant.name)
            standing = Standing(row, found, tuple(missing))
            if care.suffices(number, standing.ratio(names[0])):
                break
        standings.append(standing)
    return Comparison(names, standings)


def calm(once: Callable[[], Measurement | None], max_steal: float) -> Measurement | None:
    """Measure until the host lets it be, some times at most, and return the least disturbed."""
    best: Measurement | None = None
    for _ in range(TRIES):
        one = once()
        if one is None:
            return None
        if best is None or (one.steal or 0.0) < (best.steal or 0.0):
            best = one
        if (one.steal or 0.0) <= max_steal:
            break
    return best


def _once(entrant: Contender, row: Row, medium: Medium, settings: Settings, folder: Path | None) -> Measurement | None:
    medium.prepare(row.job.cache, row.job.folios)
    with tempfile.TemporaryDirectory(prefix="vhostd-bench-", dir=folder) as place:
        sock = socket_in(Path(place), "s.sock")
        command = entrant.command(row.job, sock, medium.path, medium.length)
        if command is None:
            return None
        shared = row.job.queues > 1 or not settings.cpus
        own = dataclasses.replace(settings, cpus=()) if shared else settings
        with contenders.running(entrant.name, command, sock, set() if shared else free_cpus(settings.cpus)):
            return measure(sock, row.job, own)
