"""Samples of a running loop: how many requests were done at the end of each interval."""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from vhostd.atomics cimport load_acquire_u64, load_relaxed_u64, store_relaxed_u32, store_release_u64

from vhostd.errors import LocalProtocolError


cdef void gauge_begin(gauge_t *gauge, uint64_t now) noexcept nogil:
    gauge.taken = 0
    gauge.next_ns = now + gauge.interval_ns


cdef void gauge_take(gauge_t *gauge, uint64_t now, uint64_t value) noexcept nogil:
    cdef uint64_t taken = gauge.taken
    while now >= gauge.next_ns and taken < gauge.capacity:
        store_relaxed_u64(&gauge.samples[taken], value)
        taken += 1
        gauge.next_ns += gauge.interval_ns
    if now >= gauge.next_ns:  # full: only the wish to stop is still looked for
        gauge.next_ns = now + gauge.interval_ns
    # release: the samples before their number; pairs with the acquire of `samples`.
    store_release_u64(&gauge.taken, taken)


@cython.final
cdef class Gauge:
    """Room for `capacity` samples, `interval_ns` apart. One loop writes it, any thread reads it."""

    def __cinit__(self, capacity, interval_ns=100_000_000):
        memset(&self.gauge, 0, sizeof(self.gauge))
        if capacity < 1 or interval_ns < 1:
            raise LocalProtocolError("gauge: no room, or no time between samples")
        self.gauge.samples = <uint64_t *>calloc(capacity, sizeof(uint64_t))
        if self.gauge.samples == NULL:
            raise MemoryError
        self.gauge.capacity = capacity
        self.gauge.interval_ns = interval_ns

    def __dealloc__(self):
        free(self.gauge.samples)

    def stop(self):
        """Have the loop end within an interval; its requests in flight are still waited for."""
        store_relaxed_u32(&self.gauge.stop, 1)

    @property
    def samples(self):
        """The loop's count at the end of each interval so far."""
        cdef uint64_t taken = load_acquire_u64(&self.gauge.taken)
        cdef uint64_t i
        return [load_relaxed_u64(&self.gauge.samples[i]) for i in range(taken)]
