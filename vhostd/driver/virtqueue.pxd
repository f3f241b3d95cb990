"""The driver's half of a ring: its functions, and the object that owns one.

One thread drives a ring; none of these takes the GIL or allocates. What the device wrote is checked here, once.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.driver.ring cimport (
    RING_E_BROKEN, RING_E_ID, RING_E_IDX, RING_E_LEN, RING_EMPTY, RING_USED, ring_t,
)
from vhostd.driver.ring_memory cimport RingMemory

# Take `count` linked descriptors off the free list; the head, or -1 when there are not so many.
cdef long ring_take(ring_t *ring, uint32_t count, uint64_t writable_len) noexcept nogil
# Give the chain that starts at `head` back to the free list.
cdef void ring_give(ring_t *ring, uint32_t head) noexcept nogil
# Put a head into the next avail slot; the device does not see it before ring_publish.
cdef void ring_offer(ring_t *ring, uint16_t head) noexcept nogil
# Let the device see all offered heads; true when it wants a kick (2.7.13.3, 2.7.13.4).
cdef bint ring_publish(ring_t *ring) noexcept nogil
# Whether there is a used element; a glance, or with acquire order what ring_pop then reads.
cdef bint ring_has_used(const ring_t *ring) noexcept nogil
# Read one used element and check it; the chain stays in flight until ring_give.
cdef int ring_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil
# Ask for a call at the next used element; true when one is already there, so that sleeping would miss it.
cdef bint ring_arm(ring_t *ring) noexcept nogil
# Ask for no calls (a hint: one may still come).
cdef void ring_disarm(ring_t *ring) noexcept nogil

cdef class Virtqueue(RingMemory):
    cdef readonly bint indirect
    cdef public int watch_fd
    cdef dict _tokens
    cdef dict _tables
    cdef int _raise_broken(self) except -1
