"""Counters of one ring: written by its worker with relaxed stores, read by anyone, kept over reconnects."""

from libc.stdint cimport uint64_t

from vhostd.atomics cimport load_relaxed_u64, store_relaxed_u64

cdef enum:
    COUNTERS = 32  # fields below fit; the rest is for the device type's own (see backends)

cdef enum ring_counter_t:
    C_KICKS = 0  # wake-ups by the kick eventfd
    C_CALLS  # call eventfd written
    C_CALLS_SUPPRESSED  # times that something was published and the driver wanted no call
    C_CHAINS  # chains returned
    C_POLL_HITS  # batches found by looking, before a kick was heard
    C_KICK_RECOVERED  # work found by the late look after falling asleep: the driver missed a fence
    C_RING_ERRORS
    C_OWN  # first counter of the device type

cdef struct counters_t:
    uint64_t c[COUNTERS]

# The worker is the only writer, so a load and a store do; relaxed, so that a reader sees no torn value.
cdef inline void count(counters_t *counters, int which, uint64_t n) noexcept nogil:
    store_relaxed_u64(&counters.c[which], load_relaxed_u64(&counters.c[which]) + n)

cdef class Counters:
    cdef counters_t *c
