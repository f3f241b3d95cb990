"""A log-linear histogram of nanoseconds as a C struct, filled by one thread without the GIL.

Below 64 ns each value has a bucket; above, each octave has 32, so that a bucket is at most 1/32 as wide as its lower
bound and its middle at most 1/64 (1.6 %) away from any value in it. The sum is exact, and so are the ends.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    STEPS = 32  # of an octave
    STEP_BITS = 5
    BUCKETS = 1216  # values up to 2**42 ns, above an hour; the last one takes what is longer

cdef struct histogram_t:
    uint64_t total_ns
    uint64_t min_ns
    uint64_t max_ns
    uint64_t counts[BUCKETS]

cdef extern from * nogil:
    int __builtin_clzll(unsigned long long value)


cdef inline uint32_t bucket_of(uint64_t ns) noexcept nogil:
    if ns < 2 * STEPS:
        return <uint32_t>ns
    cdef int octave = 63 - __builtin_clzll(ns)
    cdef uint64_t bucket = <uint64_t>((octave - STEP_BITS) * STEPS) + (ns >> (octave - STEP_BITS))
    return <uint32_t>bucket if bucket < BUCKETS else BUCKETS - 1


cdef inline void histogram_add(histogram_t *histogram, uint64_t ns) noexcept nogil:
    histogram.counts[bucket_of(ns)] += 1
    histogram.total_ns += ns
    if ns < histogram.min_ns:
        histogram.min_ns = ns
    if ns > histogram.max_ns:
        histogram.max_ns = ns


cdef void histogram_clear(histogram_t *histogram) noexcept nogil
# As (counts, total_ns, min_ns, max_ns), Python's: what load.histogram.Histogram is made of.
cdef tuple histogram_of(histogram_t *histogram)
