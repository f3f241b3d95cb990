"""What carries requests out: the interface of engine_uring and engine_sync. Worker only, no GIL."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from vhostd.backends.block.request cimport blk_req_t, disk_t
from vhostd.uring.ring cimport uring_t

cdef enum:
    ENGINE_DONE = 0  # `result` is what the system call returned, or -errno
    ENGINE_LATER = 1  # a completion will come, with the same meaning

# What the rings of one disk know of its mapping. The control thread makes it before the first ring starts; `base`,
# `len` and `stores` stay as they are, the rest is the workers', with relaxed atomics but for `faulted`.
cdef struct blk_map_t:
    uint8_t *base  # NULL: not mapped
    uint64_t len  # bytes
    uint32_t stores  # writes may go through it, too
    uint32_t shrunk  # the file was found shorter than `len`: the mapping is used no more
    uint32_t stored  # something was stored, ever
    uint64_t *warm  # a bit for each chunk: allocated, and in the page cache when we last looked
    uint64_t *tried  # a bit for each chunk: was looked at and is not to be had; forgotten from time to time
    uint64_t words  # of each of the two

cdef struct engine_t:
    # Carry out what is left of `r`, or a part of it. `pending`: how many requests come in this batch.
    int (*submit)(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil
    disk_t *disk
    uint32_t waits_only  # this file system cannot say whether a read would wait
    const uint32_t *faulted  # of the guest memory at hand
    uring_t *uring  # NULL for engine_sync
    # engine_mapped only.
    blk_map_t *map  # NULL: not mapped
    int (*below)(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil
    # Told of each request that was carried out, all of it. NULL: does not want to know.
    void (*finished)(engine_t *e, const blk_req_t *r) noexcept nogil
    uint32_t size_seen  # in this turn the file was as long as the mapping; the handler's to clear
    uint64_t copies  # requests carried out by copying
    uint64_t below_count  # and by others
    int64_t major_faults  # of the worker's thread when last looked at; -1: never
    void *bounce  # BOUNCE_LEN bytes for direct transfers of unaligned buffers; NULL when not direct

cdef enum:
    BOUNCE_LEN = 262144
    TRANSFER_IOV_MAX = 1024  # IOV_MAX of the kernel
    FALLOC_DISCARD = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    FALLOC_ZERO = 17  # FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
