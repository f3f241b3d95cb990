"""The rings of one handler: started, drained, replaced and told things by mail. Embedded by each handler."""

from libc.stdint cimport uint32_t, uint64_t

from vhostd.queues.queue cimport Queue
from vhostd.queues.split cimport queue_t
from vhostd.workers.handler cimport handler_t, source_t
from vhostd.workers.loop cimport Loop, worker_t
from vhostd.workers.mailbox cimport Mail

cdef enum:
    SLOTS_MAX = 2

# One ring of a handler. The worker's own, but for `index`.
cdef struct slot_t:
    queue_t *q  # NULL: not started
    source_t kick
    uint32_t index  # the vring's number
    uint32_t paused  # draining: nothing is popped
    uint32_t told  # its break was reported

cdef struct ringset_t:
    handler_t h  # first: a handler_t * is a ringset_t *
    slot_t slots[SLOTS_MAX]
    uint32_t slot_count
    uint32_t forsaken  # the front-end has gone: what is cancelled is dropped, not answered
    # Give up what can be given up of requests in flight; they complete, soon. NULL: nothing ever waits.
    void (*cancel)(ringset_t *r) noexcept nogil
    # A slot was started, stopped, enabled or replaced. NULL: nothing to do.
    void (*changed)(ringset_t *r, uint32_t slot) noexcept nogil

# Worker only, no GIL.
cdef int slot_open(const slot_t *s) noexcept nogil
# For handler_t.flush: publish and call for each ring, report breaks.
cdef void ringset_flush(handler_t *h) noexcept nogil
# For a turn's start: count what woke us.
cdef void slot_count_wake(slot_t *s, uint32_t ready) noexcept nogil

cdef class RingSet:
    cdef ringset_t *r  # the subclass's struct, made in its __cinit__ and freed in its __dealloc__
    cdef readonly list queues  # what each slot runs, as far as the control thread knows
    cdef readonly Loop loop
    cdef void set_up(self, ringset_t *r, Loop loop, list indices, uint64_t user)
