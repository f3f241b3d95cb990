"""The packed ring (2.8), driver side, written from the specification.

One ring of descriptors serves both ways: ours become available by their AVAIL and USED bits, the device writes used
ones over them, from the same start, and each side knows by its wrap counter which round a bit is from (2.8.1).

Ordering: a chain is written from behind, and the flags of the first descriptor of a batch come last, after everything
that they announce (2.8.21.1); then the device's wish is read (2.8.21.3). The wish for calls is stored before the next
used descriptor is looked at again (2.8.22).
"""

from libc.stdint cimport uint16_t, uint32_t

from vhostd.atomics cimport (
    fence_full, load_acquire_u16, load_relaxed_u16, load_relaxed_u32, store_relaxed_u16, store_release_u16,
)
from vhostd.driver.ring cimport (
    HELD_NONE, RING_E_BROKEN, RING_E_ID, RING_E_LEN, RING_EMPTY, RING_USED, ring_t,
)
from vhostd.spec.layout cimport (
    DESC_F_WRITE, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, PACKED_F_AVAIL, PACKED_F_USED, packed_desc_t, vring_desc_t,
)


cdef inline bint wrap_at(const ring_t *ring, uint32_t place) noexcept nogil:
    return place < ring.size  # the counter starts as 1 and is inverted at the end of each round


cdef inline uint32_t onward(const ring_t *ring, uint32_t place, uint32_t count) noexcept nogil:
    return (place + count) % (2 * ring.size)


cdef inline uint16_t event_of(const ring_t *ring, uint32_t place) noexcept nogil:
    return <uint16_t>(place % ring.size | (<uint32_t>wrap_at(ring, place) << 15))


cdef void packed_offer(ring_t *ring, uint16_t head) noexcept nogil:
    cdef uint32_t count = ring.count[head]
    cdef uint32_t at = head
    cdef uint32_t place = ring.avail_place
    cdef uint32_t i, marks, first_flags = 0
    cdef packed_desc_t *slot
    cdef const vring_desc_t *from_book
    for i in range(count):
        from_book = &ring.desc[at]
        slot = &ring.packed[place % ring.size]
        # 2.8.1: available is AVAIL as our wrap counter and USED as its inverse
        marks = PACKED_F_AVAIL if wrap_at(ring, place) else PACKED_F_USED
        slot.addr = from_book.addr
        slot.len = from_book.len
        slot.id = head  # 2.8.5: the last one's counts
        if i == 0:
            first_flags = from_book.flags | marks
        else:
            store_relaxed_u16(&slot.flags, <uint16_t>(from_book.flags | marks))
        place = onward(ring, place, 1)
        at = ring.link[at]
    if ring.held == HELD_NONE:
        ring.held = first_flags
    else:
        # release: the rest of the chain before the flags that announce it. The device comes here only after the first
        # chain of the batch, which is held back.
        store_release_u16(&ring.packed[ring.avail_place % ring.size].flags, <uint16_t>first_flags)
    ring.avail_place = place
    ring.next_avail += 1
    ring.in_flight += 1


cdef bint packed_publish(ring_t *ring) noexcept nogil:
    cdef uint32_t old = ring.told_place
    cdef uint32_t new = ring.avail_place
    cdef uint32_t round = 2 * ring.size
    cdef uint32_t place
    cdef uint16_t flags, off_wrap
    cdef bint wanted
    if ring.held == HELD_NONE:
        return False
    # release: every descriptor, table and buffer of the batch before the flags that announce it (2.8.21.1).
    store_release_u16(&ring.packed[old % ring.size].flags, <uint16_t>ring.held)
    ring.held = HELD_NONE
    ring.told_place = new
    ring.published = ring.next_avail
    ring.publishes += 1
    # full: the flags before the look at the device's wish; else we miss the wish while it misses them (2.8.21.3).
    fence_full()
    flags = load_relaxed_u16(&ring.device_event.flags) & 3
    if flags == EVENT_DESC and ring.event_idx:
        off_wrap = load_relaxed_u16(&ring.device_event.off_wrap)
        place = off_wrap & 0x7FFF
        if place >= ring.size:
            wanted = True  # names no descriptor: a kick too many harms nobody
        else:
            if not off_wrap >> 15:
                place += ring.size
            # 2.8.10: the descriptor that it names is among the new ones
            wanted = (place + round - old) % round < (new + round - old) % round
    else:
        wanted = flags != EVENT_DISABLE
    ring.kicks += wanted
    return wanted


cdef bint packed_has_used(const ring_t *ring) noexcept nogil:
    # acquire: the flags before the rest of the descriptor, and the buffers it speaks of (2.8.22)
    cdef uint16_t flags = load_acquire_u16(&ring.packed[ring.used_place % ring.size].flags)
    cdef bint wrap = wrap_at(ring, ring.used_place)
    return ((flags & PACKED_F_AVAIL) != 0) == wrap and ((flags & PACKED_F_USED) != 0) == wrap


cdef int packed_fail(ring_t *ring, int code) noexcept nogil:
    ring.broken = code
    return code


cdef int packed_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil:
    cdef packed_desc_t *slot = &ring.packed[ring.used_place % ring.size]
    cdef uint32_t id, used_len
    if ring.broken:
        return RING_E_BROKEN
    if not packed_has_used(ring):
        return RING_EMPTY
    id = load_relaxed_u16(&slot.id)
    # 2.8.4: the length counts only where the device says that it wrote
    used_len = load_relaxed_u32(&slot.len) if load_relaxed_u16(&slot.flags) & DESC_F_WRITE else 0
    if id >= ring.size or ring.count[id] == 0 or ring.in_flight == 0:
        return packed_fail(ring, RING_E_ID)
    if used_len > ring.writable_len[id]:
        return packed_fail(ring, RING_E_LEN)
    ring.used_place = onward(ring, ring.used_place, ring.count[id])  # 2.8.6: as many as its chain had
    ring.last_used += 1
    ring.in_flight -= 1
    head[0] = id
    length[0] = used_len
    return RING_USED


cdef bint packed_arm(ring_t *ring) noexcept nogil:
    if ring.event_idx:
        store_relaxed_u16(&ring.driver_event.off_wrap, event_of(ring, ring.used_place))
        # release: the place before the wish for exactly that
        store_release_u16(&ring.driver_event.flags, EVENT_DESC)
    else:
        store_relaxed_u16(&ring.driver_event.flags, EVENT_ENABLE)
    # full: the wish before the second look; else the device misses the wish while we miss its used descriptor (2.8.22).
    fence_full()
    return packed_has_used(ring)


cdef void packed_disarm(ring_t *ring) noexcept nogil:
    store_relaxed_u16(&ring.driver_event.flags, EVENT_DISABLE)


cdef void packed_reset(ring_t *ring, uint32_t place) noexcept nogil:
    cdef uint32_t i
    cdef bint mark
    for i in range(ring.size):
        # From the place on, the bits of the round before; behind it, those of this one: used, each time.
        mark = wrap_at(ring, place) if i < place % ring.size else not wrap_at(ring, place)
        ring.packed[i].addr = 0
        ring.packed[i].len = 0
        ring.packed[i].id = 0
        ring.packed[i].flags = PACKED_F_AVAIL | PACKED_F_USED if mark else 0
    ring.avail_place = ring.told_place = ring.used_place = place
    ring.held = HELD_NONE
    ring.driver_event.off_wrap = 0
    ring.driver_event.flags = EVENT_ENABLE
