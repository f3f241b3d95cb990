"""What carries requests out: the interface of engine_uring and engine_sync. Worker only, no GIL."""

from libc.stdint cimport int64_t, uint32_t

from vhostd.backends.block.request cimport blk_req_t, disk_t
from vhostd.uring.ring cimport uring_t

cdef enum:
    ENGINE_DONE = 0  # `result` is what the system call returned, or -errno
    ENGINE_LATER = 1  # a completion will come, with the same meaning

cdef struct engine_t:
    # Carry out what is left of `r`, or a part of it. `pending`: how many requests come in this batch.
    int (*submit)(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil
    disk_t *disk
    uint32_t waits_only  # this file system cannot say whether a read would wait
    const uint32_t *faulted  # of the guest memory at hand
    uring_t *uring  # NULL for engine_sync
    void *bounce  # BOUNCE_LEN bytes for direct transfers of unaligned buffers; NULL when not direct

cdef enum:
    BOUNCE_LEN = 262144
    TRANSFER_IOV_MAX = 1024  # IOV_MAX of the kernel
    FALLOC_DISCARD = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    FALLOC_ZERO = 17  # FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
