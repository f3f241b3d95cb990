"""The histogram's buckets, as the compiled loops fill them and Python reads them."""

from libc.stdint cimport UINT64_MAX
from libc.string cimport memset

BUCKET_COUNT = BUCKETS


cdef void histogram_clear(histogram_t *histogram) noexcept nogil:
    memset(histogram, 0, sizeof(histogram[0]))
    histogram.min_ns = UINT64_MAX


cdef tuple histogram_of(histogram_t *histogram):
    counts = tuple([histogram.counts[i] for i in range(BUCKETS)])
    least = histogram.min_ns if histogram.min_ns != UINT64_MAX else 0
    return counts, histogram.total_ns, least, histogram.max_ns


def bucket_index(ns):
    """Return the bucket of a latency of `ns` nanoseconds."""
    return bucket_of(ns)


def bucket_bounds(index):
    """Return the bounds in ns, [low, high), of a bucket. Raises IndexError outside 0..BUCKET_COUNT - 1."""
    if not 0 <= index < BUCKETS:
        raise IndexError(index)
    if index < 2 * STEPS:
        return index, index + 1
    octave, step = index // STEPS - 1, index % STEPS
    return (STEPS + step) << octave, (STEPS + step + 1) << octave


def filled(values):
    """Return (counts, total, least, most) of latencies in ns, counted as the loops count them."""
    cdef histogram_t histogram
    histogram_clear(&histogram)
    for value in values:
        histogram_add(&histogram, value)
    return histogram_of(&histogram)
