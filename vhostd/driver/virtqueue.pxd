"""The driver's half of a split ring as a C struct and its functions.

One thread drives a ring; none of these takes the GIL or allocates. What the device wrote is checked here, once.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.spec.layout cimport vring_avail_t, vring_desc_t, vring_used_t

cdef enum:
    RING_EMPTY = 0
    RING_USED = 1
    RING_E_BROKEN = -1  # an earlier error: the ring stays broken
    RING_E_IDX = -2  # used.idx ran past what was made available
    RING_E_ID = -3  # a used element names no chain in flight
    RING_E_LEN = -4  # a used element claims more than the chain's writable bytes

cdef struct ring_t:
    vring_desc_t *desc
    vring_avail_t *avail
    vring_used_t *used
    uint16_t *used_event  # behind avail.ring: written by us, with event_idx
    uint16_t *avail_event  # behind used.ring: written by the device, with event_idx
    uint32_t size
    bint event_idx
    uint16_t next_avail  # free running: the next avail slot we fill
    uint16_t published  # free running: what the device has been told
    uint16_t last_used  # free running: the next used slot we read
    int broken  # 0, or the code that broke it
    uint32_t in_flight  # chains offered and not yet used
    # Our own book of descriptors: the table itself is memory a device could write.
    uint32_t free_head
    uint32_t free_count
    uint32_t *link  # next descriptor of a chain, or of the free list
    uint32_t *tail  # of the chain that starts here
    uint32_t *count  # descriptors of the chain in flight that starts here; 0: none does
    uint64_t *writable_len  # bytes of that chain the device may write
    uint64_t kicks  # kicks found wanted
    uint64_t publishes

# Take `count` linked descriptors off the free list; the head, or -1 when there are not so many.
cdef long ring_take(ring_t *ring, uint32_t count, uint64_t writable_len) noexcept nogil
# Give the chain that starts at `head` back to the free list.
cdef void ring_give(ring_t *ring, uint32_t head) noexcept nogil
# Put a head into the next avail slot; the device does not see it before ring_publish.
cdef void ring_offer(ring_t *ring, uint16_t head) noexcept nogil
# Let the device see all offered heads; true when it wants a kick (2.7.13.3, 2.7.13.4).
cdef bint ring_publish(ring_t *ring) noexcept nogil
# Read one used element and check it; the chain stays in flight until ring_give.
cdef int ring_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil
# Ask for a call at the next used element; true when one is already there, so that sleeping would miss it.
cdef bint ring_arm(ring_t *ring) noexcept nogil
# Ask for no calls (a hint: one may still come).
cdef void ring_disarm(ring_t *ring) noexcept nogil

cdef class Virtqueue:
    cdef ring_t ring
    cdef readonly object arena
    cdef readonly object kick_fd
    cdef readonly object call_fd
    cdef readonly object err_fd
    cdef readonly bint indirect
    cdef readonly unsigned long long desc_gpa
    cdef readonly unsigned long long avail_gpa
    cdef readonly unsigned long long used_gpa
    cdef public int watch_fd
    cdef object _allocation
    cdef dict _tokens
    cdef dict _tables
    cdef unsigned char[::1] _desc_view
    cdef unsigned char[::1] _avail_view
    cdef unsigned char[::1] _used_view
    cdef bint _open
    cdef int _check(self) except -1
    cdef int _raise_broken(self) except -1
    cdef void _write_desc(self, uint32_t index, uint64_t addr, uint32_t length, uint16_t flags, uint16_t next_) noexcept
