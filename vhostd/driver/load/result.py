"""What came of a job."""

import dataclasses
from typing import Self

from vhostd.driver.load.histogram import Histogram

SAMPLE_NS = 100_000_000  # between two samples of a running job


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a job. Latencies of reads, of writes (discards among them) and of flushes are kept apart.

    samples: requests in each tenth of a second. unsent: requests of an open loop that were due and never had room.
    """

    ios: int
    transferred_len: int
    seconds: float
    kicks: int
    publishes: int
    sleeps: int
    calls: int
    reads: Histogram
    writes: Histogram
    flushes: Histogram
    samples: tuple[int, ...] = ()
    unsent: int = 0

    @property
    def latency(self) -> Histogram:
        """Of reads and writes together."""
        return Histogram.sum((self.reads, self.writes))

    @property
    def iops(self) -> float:
        """Requests a second."""
        return self.ios / self.seconds if self.seconds else 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.transferred_len / self.seconds if self.seconds else 0.0

    @classmethod
    def nothing(cls, seconds: float) -> Self:
        """Return the result of a time without requests."""
        none = Histogram.empty()
        return cls(0, 0, seconds, 0, 0, 0, 0, none, none, none)

    def percentile(self, percent: float) -> float:
        """Return the latency in ns that `percent` of reads and writes did not exceed, to within 1.6 %."""
        return self.latency.percentile(percent)
