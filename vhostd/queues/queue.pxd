"""A queue as the control thread builds it and a back-end runs it: ring, call and break, in one place."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.queues.counters cimport Counters
from vhostd.queues.memory cimport GuestMemory
from vhostd.queues.split cimport queue_t

# Publish what was pushed and call the driver if it wants that: at the end of a pass. Worker only, no GIL.
cdef void queue_flush(queue_t *q) noexcept nogil
# The same within a pass, if `much` was done for it or a cache line of used elements has gathered; whether it was. A
# driver that waits for the end of a batch and a device that waits for the next one would sleep in turns, and nothing is
# as dear as waking up. A ring whose memory has vanished is left for the end of the pass. Worker only, no GIL.
cdef int queue_flush_early(queue_t *q, int much) noexcept nogil
# Call the driver whatever it wishes: after a new call fd, since it may have missed one. Worker only, no GIL.
cdef void queue_call(queue_t *q) noexcept nogil
# Break the ring for `code`: sticky, counted, VRING_ERR raised. Returns code. Worker only, no GIL.
cdef int queue_break(queue_t *q, int code) noexcept nogil
# Take over the running state of the queue that `q` replaces. Worker only, no GIL.
cdef void queue_adopt(queue_t *q, const queue_t *old) noexcept nogil

cdef class Queue:
    cdef queue_t c
    cdef GuestMemory memory
    cdef Counters counters
    cdef readonly int index
