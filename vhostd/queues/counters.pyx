"""Counters of one ring: written by its worker with relaxed stores, read by anyone, kept over reconnects."""

from libc.stdlib cimport calloc, free

from vhostd.atomics cimport load_relaxed_u64

RING_NAMES = ("kicks", "calls", "calls_suppressed", "chains", "poll_hits", "kick_recovered", "ring_errors")


cdef class Counters:
    """The counters of one ring of a device. `own` names those of the device type, in the order its handler counts."""

    def __cinit__(self):
        self.c = <counters_t *>calloc(1, sizeof(counters_t))
        if self.c == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.c)

    def snapshot(self, own=()):
        """Return name to count. Each value is whole; together they are as of slightly different moments."""
        names = (*RING_NAMES, *own)
        if len(names) > COUNTERS:
            raise ValueError(f"{len(names)} counters, room for {COUNTERS}")
        return {name: load_relaxed_u64(&self.c.c[i]) for i, name in enumerate(names)}
