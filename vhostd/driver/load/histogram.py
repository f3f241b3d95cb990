"""Latencies as counts: the percentiles of what the compiled loops have filled."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Self

from vhostd.driver.buckets import BUCKET_COUNT, bucket_bounds, filled

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How many latencies fell into each bucket. Sum, least and greatest, in ns, are exact."""

    counts: tuple[int, ...]
    total_ns: int
    min_ns: int
    max_ns: int

    @classmethod
    def empty(cls) -> Self:
        """Return one without a latency."""
        return cls((0,) * BUCKET_COUNT, 0, 0, 0)

    @classmethod
    def of(cls, values: Iterable[int]) -> Self:
        """Return the histogram of latencies in ns."""
        return cls(*filled(values))

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Return all latencies of several together."""
        full = [part for part in parts if part.count]
        if not full:
            return cls.empty()
        return cls(
            tuple(map(sum, zip(*(part.counts for part in full), strict=True))),
            sum(part.total_ns for part in full),
            min(part.min_ns for part in full),
            max(part.max_ns for part in full),
        )

    @property
    def count(self) -> int:
        """How many latencies there are."""
        return sum(self.counts)

    @property
    def mean_ns(self) -> float:
        """The mean, exact."""
        count = self.count
        return self.total_ns / count if count else 0.0

    def percentile(self, percent: float) -> float:
        """Return the latency in ns that `percent` of the requests did not exceed, to within 1.6 %.

        It is the middle of the bucket, and never outside what was seen. 0 without a latency.
        """
        wanted = percent / 100 * self.count
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                low, high = bucket_bounds(index)
                return float(min(max((low + high - 1) / 2, self.min_ns), self.max_ns))
        return float(self.max_ns)

    def filled_buckets(self) -> Iterator[tuple[int, int, int]]:
        """Yield (low, high, count) of each bucket that is not empty; a latency lies in [low, high), in ns."""
        for index, count in enumerate(self.counts):
            if count:
                yield (*bucket_bounds(index), count)
