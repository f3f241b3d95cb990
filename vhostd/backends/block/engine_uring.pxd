"""Through io_uring: batches in one system call, and nothing that waits for a disk waits in the worker."""

from libc.stdint cimport int64_t, uint32_t

from vhostd.backends.block.engine cimport engine_t
from vhostd.backends.block.request cimport blk_req_t

cdef int uring_submit(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil
