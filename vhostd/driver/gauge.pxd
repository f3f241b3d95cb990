"""What one loop shows of itself while it runs, and how it is stopped early; no lock, no GIL."""

from libc.stdint cimport uint32_t, uint64_t

from vhostd.atomics cimport load_relaxed_u32, store_relaxed_u64

cdef struct gauge_t:
    uint64_t interval_ns
    uint64_t next_ns  # when the next sample is due
    uint64_t taken  # samples so far; the reader's, too
    uint64_t capacity
    uint64_t *samples  # the loop's count at the end of each interval
    uint32_t stop

cdef void gauge_begin(gauge_t *gauge, uint64_t now) noexcept nogil
cdef void gauge_take(gauge_t *gauge, uint64_t now, uint64_t value) noexcept nogil


# A value of this moment, which grows. True when the loop is to end now.
cdef inline bint gauge_tick(gauge_t *gauge, uint64_t now, uint64_t value) noexcept nogil:
    if now >= gauge.next_ns:
        gauge_take(gauge, now, value)
        return load_relaxed_u32(&gauge.stop) != 0
    return False


cdef class Gauge:
    cdef gauge_t gauge
