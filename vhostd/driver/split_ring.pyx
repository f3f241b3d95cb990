"""The split ring (2.7), driver side, written from the specification.

Ordering, each named where it happens: an idx is stored after what it announces (2.7.13.3); idx is stored before the
device's wish for kicks is read (2.7.13.4); the wish for calls is stored before used.idx is read again (2.7.14).
"""

from libc.stdint cimport uint16_t, uint32_t

from vhostd.atomics cimport (
    fence_full, load_acquire_u16, load_relaxed_u16, load_relaxed_u32, store_relaxed_u16, store_release_u16,
)
from vhostd.driver.ring cimport (
    RING_E_BROKEN, RING_E_ID, RING_E_IDX, RING_E_LEN, RING_EMPTY, RING_USED, ring_t,
)
from vhostd.spec.layout cimport AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY


cdef void split_offer(ring_t *ring, uint16_t head) noexcept nogil:
    store_relaxed_u16(&(&ring.avail.ring[0])[ring.next_avail % ring.size], head)
    ring.next_avail += 1
    ring.in_flight += 1


cdef bint split_publish(ring_t *ring) noexcept nogil:
    cdef uint16_t old = ring.published
    cdef uint16_t new = ring.next_avail
    cdef bint wanted
    if old == new:
        return False
    # release: descriptors, tables, buffers and slots before the idx that announces them (2.7.13.3).
    store_release_u16(&ring.avail.idx, new)
    ring.published = new
    ring.publishes += 1
    # full: idx before the look at the device's wish; else we miss the wish while it misses the idx (2.7.13.4).
    fence_full()
    if ring.event_idx:
        # 2.7.10: the entry avail_event names is among the new ones.
        wanted = <uint16_t>(new - load_relaxed_u16(ring.avail_event) - 1) < <uint16_t>(new - old)
    else:
        wanted = not load_relaxed_u16(&ring.used.flags) & USED_F_NO_NOTIFY
    ring.kicks += wanted
    return wanted


cdef bint split_has_used(const ring_t *ring) noexcept nogil:
    return load_acquire_u16(&ring.used.idx) != ring.last_used


cdef int fail(ring_t *ring, int code) noexcept nogil:
    ring.broken = code
    return code


cdef int split_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil:
    if ring.broken:
        return RING_E_BROKEN
    # acquire: used.idx before the elements and buffers it announces (2.7.14).
    cdef uint16_t pending = <uint16_t>(load_acquire_u16(&ring.used.idx) - ring.last_used)
    if pending == 0:
        return RING_EMPTY
    if pending > ring.in_flight:
        return fail(ring, RING_E_IDX)
    cdef uint32_t slot = ring.last_used % ring.size
    cdef uint32_t id = load_relaxed_u32(&(&ring.used.ring[0])[slot].id)
    cdef uint32_t used_len = load_relaxed_u32(&(&ring.used.ring[0])[slot].len)
    if id >= ring.size or ring.count[id] == 0:
        return fail(ring, RING_E_ID)
    if used_len > ring.writable_len[id]:
        return fail(ring, RING_E_LEN)
    ring.last_used += 1
    ring.in_flight -= 1
    head[0] = id
    length[0] = used_len
    return RING_USED


cdef bint split_arm(ring_t *ring) noexcept nogil:
    if ring.event_idx:
        store_relaxed_u16(ring.used_event, ring.last_used)  # 2.7.7.2: a call once idx passes this
    else:
        store_relaxed_u16(&ring.avail.flags, 0)
    # full: the wish before the second look; else the device misses the wish while we miss its used element.
    fence_full()
    return load_acquire_u16(&ring.used.idx) != ring.last_used


cdef void split_disarm(ring_t *ring) noexcept nogil:
    if ring.event_idx:
        store_relaxed_u16(ring.used_event, <uint16_t>(ring.last_used - 1))  # 2.7.7.1: flags stays 0
    else:
        store_relaxed_u16(&ring.avail.flags, AVAIL_F_NO_INTERRUPT)
