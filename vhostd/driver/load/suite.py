"""Jobs by name, and what vhostd means to reach in them beside qemu-storage-daemon at its best."""

import dataclasses
from collections.abc import Sequence

from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.job import Job


@dataclasses.dataclass(frozen=True)
class Row:
    """A job with its goals: requests a second, and CPU a request, both as ratios to the best rival's; 0 is no goal."""

    job: Job
    goal: float = 0.0
    cpu_goal: float = 0.0


_K128 = Job("read 128k QD8 event", 131072, 8, sequential=True)

ROWS = (
    Row(Job("randread 4k QD1 event"), 2.2),
    Row(Job("randread 4k QD1 poll", poll=True)),
    Row(Job("randread 4k QD32 event", depth=32), 3.6, 0.3),
    Row(Job("randread 4k QD32 poll", depth=32, poll=True), 3.5),
    Row(Job("randwrite 4k QD1 event", write_percent=100), 2.3),
    Row(Job("randwrite 4k QD32 event", depth=32, write_percent=100), 2.8),
    Row(Job("randrw 4k QD32 event", depth=32, write_percent=30)),
    Row(Job("randwrite 4k QD32 event large folios", depth=32, write_percent=100, folios="large"), 20.0),
    Row(_K128, 1.6),
    Row(dataclasses.replace(_K128, name="write 128k QD8 event", write_percent=100), 2.2),
    Row(Job("randread 4k QD32 event 2 queues", depth=32, queues=2), 4.5),
    Row(Job("null randread 4k QD32 event", depth=32, image="null"), 3.8),
    Row(Job("direct randread 4k QD32 event", depth=32, image="direct", cache="cold"), 1.0, 0.5),
    Row(Job("direct randwrite 4k QD32 event", depth=32, write_percent=100, image="direct", cache="cold"), 1.0, 0.5),
    Row(Job("idle", idle=True)),
)

_QUICK = (
    "randread 4k QD1 event",
    "randread 4k QD32 event",
    "randread 4k QD32 poll",
    "randwrite 4k QD32 event",
    "read 128k QD8 event",
)

SUITES: dict[str, tuple[Row, ...]] = {
    "all": ROWS,
    "goals": tuple(row for row in ROWS if row.goal or row.cpu_goal or row.job.idle),
    "quick": tuple(row for row in ROWS if row.job.name in _QUICK),
    "cached": tuple(row for row in ROWS if row.job.image == "file" and not row.job.idle),
}


def rows(suite: str | None, words: Sequence[str]) -> list[Row]:
    """Return a suite's rows, or those of all whose name contains one of `words`.

    Raises BenchError when there is none; a suite and words narrow each other.
    """
    found = list(SUITES[suite or "all"])
    if words:
        found = [row for row in found if any(word in row.job.name for word in words)]
    if not found:
        names = "\n  ".join(row.job.name for row in ROWS)
        raise BenchError(f"no job is called {', '.join(words)}; there are\n  {names}")
    return found
