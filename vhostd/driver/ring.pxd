"""The driver's half of a ring as a C struct: split (2.7) or packed (2.8), behind one set of functions (virtqueue.pxd).

A chain is a list of descriptors in a book of our own, `desc` and `link`, named by its first one, its head. On a split
ring that book is the descriptor table which the device reads; on a packed one it is private, and a chain is written
into the ring when it is offered, with its head as buffer id.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.spec.layout cimport (
    packed_desc_t, packed_event_t, vring_avail_t, vring_desc_t, vring_used_t,
)

cdef enum:
    RING_EMPTY = 0
    RING_USED = 1
    RING_E_BROKEN = -1  # an earlier error: the ring stays broken
    RING_E_IDX = -2  # used.idx ran past what was made available
    RING_E_ID = -3  # a used element names no chain in flight
    RING_E_LEN = -4  # a used element claims more than the chain's writable bytes

cdef struct ring_t:
    vring_desc_t *desc
    vring_avail_t *avail  # NULL on a packed ring, as is `used`
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
    # A packed ring. A place counts descriptors modulo twice the size, so that it tells the wrap counter, too: the slot
    # is place % size, and the counter is 1 in the first half (2.8.1).
    packed_desc_t *packed  # NULL: the ring is split
    packed_event_t *driver_event  # our wish for calls
    packed_event_t *device_event  # the device's wish for kicks
    uint32_t avail_place  # the next one we fill
    uint32_t told_place  # what the device has been told
    uint32_t used_place  # where the next used descriptor appears
    uint32_t held  # the flags of the first descriptor since told_place, written last; HELD_NONE: none
    vring_desc_t *book  # desc of a packed ring, to be freed

cdef enum:
    HELD_NONE = 0xFFFFFFFF
