"""The split ring (2.7), device side. One worker owns a queue; no function here takes the GIL."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from vhostd.queues.counters cimport counters_t
from vhostd.queues.memory cimport memmap_t
from vhostd.spec.layout cimport vring_avail_t, vring_desc_t, vring_used_t

cdef struct queue_t:
    # Set when built; the worker only reads them.
    vring_desc_t *desc
    vring_avail_t *avail
    vring_used_t *used
    uint16_t *used_event  # 2.7.7: behind avail.ring; NULL without EVENT_IDX
    uint16_t *avail_event  # 2.7.10: behind used.ring; NULL without EVENT_IDX
    const memmap_t *mem
    uint64_t *busy  # a bit for each head in flight
    counters_t *counters
    uint32_t chain_max  # descriptors in one chain, direct or indirect
    uint16_t size
    uint16_t mask
    uint16_t legacy  # without VERSION_1
    uint16_t indirect  # INDIRECT_DESC was negotiated
    # The worker's own. Both indices run free, mod 2**16.
    uint16_t next_avail  # next slot of the available ring to take
    uint16_t next_used  # next slot of the used ring to fill
    uint16_t published  # used.idx as the driver sees it
    uint16_t signalled  # used.idx when the driver was last asked whether it wants a call
    uint16_t enabled  # SET_VRING_ENABLE
    uint16_t notify_off  # the driver was told not to kick
    uint32_t in_flight  # chains popped and not yet pushed
    uint32_t hint  # memory_at's memory
    int call_fd  # -1: the driver polls
    int64_t call_looked  # when its mode was last looked at, ns
    int err_fd  # -1: nobody listens
    int broken  # 0, or the code that broke it

cdef int split_pop(queue_t *q, uint16_t *head) noexcept nogil
cdef void split_unpop(queue_t *q, uint16_t head) noexcept nogil
cdef void split_push(queue_t *q, uint16_t head, uint32_t written) noexcept nogil
cdef void split_publish(queue_t *q) noexcept nogil
cdef uint16_t split_pending(const queue_t *q) noexcept nogil
cdef void split_kicks_off(queue_t *q) noexcept nogil
cdef int split_kicks_on(queue_t *q) noexcept nogil
# As split_kicks_on, by one who has seen what is available up to index `seen` and needs more than that.
cdef int split_kicks_on_past(queue_t *q, uint16_t seen) noexcept nogil
cdef int split_wants_call(queue_t *q) noexcept nogil
cdef int split_break(queue_t *q, int code) noexcept nogil
