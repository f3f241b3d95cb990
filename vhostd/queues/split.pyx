"""The split ring (2.7), device side: take heads from the available ring, put them into the used ring, and the two
questions of notification. What lies behind a head is chain.pyx.

The driver is a thread that may do anything to this memory at any time. What we need to trust is ours: `next_avail`,
`next_used`, the `busy` bits. What is read from the rings is read once.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.atomics cimport (
    fence_full, load_acquire_u16, load_relaxed_u16, load_relaxed_u32, store_relaxed_u16, store_release_u16,
)
from vhostd.queues.codes cimport (
    VQ_CHAIN, VQ_E_AVAIL_IDX, VQ_E_BROKEN, VQ_E_BUSY, VQ_E_HEAD, VQ_EMPTY,
)
from vhostd.queues.counters cimport C_CHAINS, C_RING_ERRORS, count
from vhostd.spec.layout cimport AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY


cdef int split_pop(queue_t *q, uint16_t *head) noexcept nogil:
    """Take the next available head (2.7.6). VQ_CHAIN, VQ_EMPTY, or the error that broke the ring."""
    if q.broken:
        return VQ_E_BROKEN
    # acquire: pairs with the driver's barrier before avail.idx (2.7.13.3), so what
    # idx announces (the slot, the descriptors behind it) is visible from here on.
    cdef uint16_t idx = load_acquire_u16(&q.avail.idx)
    cdef uint16_t pending = <uint16_t>(idx - q.next_avail)  # both run free, mod 2**16
    if pending == 0:
        return VQ_EMPTY
    if pending > q.size:
        return split_break(q, VQ_E_AVAIL_IDX)
    # Read once: the guest may rewrite the slot between a check and a use.
    cdef uint16_t slot = load_relaxed_u16(&q.avail.ring[q.next_avail & q.mask])
    if slot >= q.size:
        return split_break(q, VQ_E_HEAD)  # sticky: told once, never spun upon
    cdef uint64_t bit = <uint64_t>1 << (slot & 63)
    if q.busy[slot >> 6] & bit:
        return split_break(q, VQ_E_BUSY)
    q.busy[slot >> 6] |= bit
    q.next_avail += 1
    q.in_flight += 1
    head[0] = slot
    return VQ_CHAIN


cdef void split_unpop(queue_t *q, uint16_t head) noexcept nogil:
    """Give back the head popped last, as if it had not been taken: it will be popped again."""
    q.busy[head >> 6] &= ~(<uint64_t>1 << (head & 63))
    q.next_avail -= 1
    q.in_flight -= 1


cdef void split_push(queue_t *q, uint16_t head, uint32_t written) noexcept nogil:
    """Return a chain (2.7.8). `written`: bytes of its device-writable buffers that we wrote. Not yet visible."""
    cdef uint16_t slot = q.next_used & q.mask
    q.used.ring[slot].id = head
    q.used.ring[slot].len = written
    q.next_used += 1
    q.in_flight -= 1
    count(q.counters, C_CHAINS, 1)
    q.busy[head >> 6] &= ~(<uint64_t>1 << (head & 63))


cdef void split_publish(queue_t *q) noexcept nogil:
    """Make everything pushed so far visible to the driver (2.7.8)."""
    if q.published == q.next_used:
        return
    # release: the elements, and the data and status they speak of, are visible before idx says so;
    # pairs with the driver's barrier after reading used.idx (2.7.14).
    store_release_u16(&q.used.idx, q.next_used)
    q.published = q.next_used


cdef uint16_t split_pending(const queue_t *q) noexcept nogil:
    """How many heads are announced; 0 also on a broken or disabled ring. A glance: nothing may be inferred from it."""
    if q.broken or not q.enabled:
        return 0
    return <uint16_t>(load_relaxed_u16(&q.avail.idx) - q.next_avail)


cdef void split_kicks_off(queue_t *q) noexcept nogil:
    """Ask the driver not to kick while we look at the ring anyway (2.7.10). A wish: no fence is needed."""
    if q.notify_off:
        return
    q.notify_off = 1
    # With EVENT_IDX an avail_event that we do not move on says the same, and the flag must stay 0 (2.7.10.1).
    if q.avail_event == NULL:
        store_relaxed_u16(&q.used.flags, USED_F_NO_NOTIFY)


cdef int split_kicks_on(queue_t *q) noexcept nogil:
    """Ask for the next kick (2.7.10). 1 when something became available meanwhile: no kick will come for that."""
    return split_kicks_on_past(q, q.next_avail)


cdef int split_kicks_on_past(queue_t *q, uint16_t seen) noexcept nogil:
    """Ask for a kick once avail.idx is past `seen` (2.7.10). 1 when it is by now: no kick will come for that.

    1, too, when guest memory vanished: somebody has to notice.
    """
    q.notify_off = 0
    if q.avail_event != NULL:
        store_relaxed_u16(q.avail_event, seen)
    else:
        store_relaxed_u16(&q.used.flags, 0)
    # full fence: our wish (a store) before our look at avail.idx (a load); pairs with the driver's fence between
    # its store of avail.idx and its load of our wish (2.7.13.4.1). Without it both may miss each other for ever.
    fence_full()
    return load_relaxed_u16(&q.avail.idx) != seen or load_relaxed_u32(q.mem.faulted)


cdef int split_wants_call(queue_t *q) noexcept nogil:
    """After split_publish: does the driver want to be called for what it has not been called for (2.7.7)?"""
    cdef uint16_t new = q.published
    cdef uint16_t old = q.signalled
    cdef uint16_t event
    if new == old:
        return 0
    # full fence: our store of used.idx before our load of its wish; pairs with the driver's fence between its
    # store of used_event (or avail.flags) and its second look at used.idx (2.7.14).
    fence_full()
    q.signalled = new
    if q.used_event == NULL:
        return not load_relaxed_u16(&q.avail.flags) & AVAIL_F_NO_INTERRUPT
    event = load_relaxed_u16(q.used_event)
    return <uint16_t>(new - event - 1) < <uint16_t>(new - old)


cdef int split_break(queue_t *q, int code) noexcept nogil:
    """The ring cannot be trusted any more. Sticky until it is built anew; returns the code, for the first to tell."""
    q.broken = code
    count(q.counters, C_RING_ERRORS, 1)
    return code
