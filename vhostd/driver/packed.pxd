"""The packed ring (2.8), driver side: what virtqueue.pyx's functions do on one. No GIL."""

from libc.stdint cimport uint16_t, uint32_t

from vhostd.driver.ring cimport ring_t

cdef void packed_offer(ring_t *ring, uint16_t head) noexcept nogil
cdef bint packed_publish(ring_t *ring) noexcept nogil
cdef bint packed_has_used(const ring_t *ring) noexcept nogil
cdef int packed_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil
cdef bint packed_arm(ring_t *ring) noexcept nogil
cdef void packed_disarm(ring_t *ring) noexcept nogil
# Every slot as if all before `place` had been used and none after it: what a ring has that starts there.
cdef void packed_reset(ring_t *ring, uint32_t place) noexcept nogil
