"""Through preadv2 and pwritev2, in the worker itself: for cached data, and where io_uring is not to be had."""

from libc.stdint cimport int64_t, uint32_t

from vhostd.backends.block.engine cimport engine_t
from vhostd.backends.block.request cimport blk_req_t

cdef int sync_submit(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil
# A cached read without waiting for the disk: like sync_submit, or -EAGAIN.
cdef int64_t sync_read_nowait(engine_t *e, blk_req_t *r) noexcept nogil
# The mode of fallocate(2) for the segment at hand; -1: it must be zeroed by writing.
cdef int segment_mode(const engine_t *e, const blk_req_t *r) noexcept nogil
