"""Through a mapping of the image: a copy instead of a system call, for what is allocated and in the page cache."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from vhostd.backends.block.engine cimport blk_map_t, engine_t
from vhostd.backends.block.request cimport blk_req_t

cdef enum:
    CHUNK_SHIFT = 16  # 64 KiB: what the kernel maps around a fault

# For engine_t.submit; what it cannot do goes to engine_t.below. Worker only, no GIL.
cdef int mapped_submit(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil
# For engine_t.finished: the request was carried out below, all of it.
cdef void mapped_finished(engine_t *e, const blk_req_t *r) noexcept nogil

# The control thread, with no ring started. 0, or -errno with nothing mapped.
cdef int map_image(blk_map_t *m, int fd, uint64_t len, int writable, int stores) noexcept nogil
cdef void unmap_image(blk_map_t *m) noexcept nogil
# Whether something that was stored may not be in the file any more, which was found shorter. Any thread, no GIL.
cdef int stores_lost(const blk_map_t *m, int fd) noexcept nogil
