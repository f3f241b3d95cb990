"""The split ring (2.7), driver side: what virtqueue.pyx's functions do on one. No GIL."""

from libc.stdint cimport uint16_t, uint32_t

from vhostd.driver.ring cimport ring_t

cdef void split_offer(ring_t *ring, uint16_t head) noexcept nogil
cdef bint split_publish(ring_t *ring) noexcept nogil
cdef bint split_has_used(const ring_t *ring) noexcept nogil
cdef int split_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil
cdef bint split_arm(ring_t *ring) noexcept nogil
cdef void split_disarm(ring_t *ring) noexcept nogil
