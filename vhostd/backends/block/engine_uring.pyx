"""Through io_uring: batches in one system call, and nothing that waits for a disk waits in the worker.

Two cases are faster in the worker itself, and stay there. A batch of one or two reads is tried from the page cache
first (RWF_NOWAIT): one call instead of an enter and its bookkeeping. And a buffered write: ext4 has no way to start
one without waiting, so io_uring hands each to a kernel thread, which costs more than the copy; it dirties the page
cache and waits for no disk, unless the guest has outrun the host's dirty limit.
"""

from libc.errno cimport EOPNOTSUPP
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t

from vhostd.atomics cimport load_relaxed_u32
from vhostd.backends.block.engine cimport ENGINE_DONE, ENGINE_LATER, TRANSFER_IOV_MAX, engine_t
from vhostd.backends.block.engine_sync cimport segment_mode, sync_read_nowait, sync_submit
from vhostd.backends.block.request cimport OP_FLUSH, OP_READ, OP_WRITE, blk_req_t
from vhostd.uring.liburing cimport (
    IORING_FSYNC_DATASYNC, io_uring_prep_fallocate, io_uring_prep_fsync, io_uring_prep_read, io_uring_prep_readv2,
    io_uring_prep_writev2, io_uring_sqe,
)
from vhostd.uring.ring cimport uring_entry

cdef extern from "<sys/uio.h>" nogil:
    int RWF_DSYNC

cdef enum:
    INLINE_BATCH = 2


cdef int misaligned(const engine_t *e, const blk_req_t *r) noexcept nogil:
    cdef uint32_t i
    for i in range(r.iov_count):
        if (<uintptr_t>r.iov[i].iov_base | r.iov[i].iov_len) & (e.disk.memory_align - 1):
            return 1
    return 0


cdef int uring_submit(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil:
    cdef uint32_t through = load_relaxed_u32(&e.disk.write_through)
    cdef uint32_t count = r.iov_count if r.iov_count < TRANSFER_IOV_MAX else TRANSFER_IOV_MAX
    cdef uint64_t at = r.offset + r.done
    cdef io_uring_sqe *sqe
    cdef int mode = 0
    if r.kind == OP_READ or r.kind == OP_WRITE:
        if e.disk.direct:
            if misaligned(e, r):
                return sync_submit(e, r, pending, result)
        elif r.kind == OP_WRITE and not through:
            return sync_submit(e, r, pending, result)
        elif r.kind == OP_READ and pending <= INLINE_BATCH and r.tries == 0 and not e.waits_only:
            result[0] = sync_read_nowait(e, r)
            if result[0] > 0:
                return ENGINE_DONE
            if result[0] == -EOPNOTSUPP:
                e.waits_only = 1
            # not in the page cache, or this file system cannot say: io_uring waits for it
    elif r.kind != OP_FLUSH:
        mode = segment_mode(e, r)
        if mode < 0 or r.done or r.tries:  # what fallocate could not do is written, in parts
            return sync_submit(e, r, pending, result)
    sqe = uring_entry(e.uring, <uint64_t><uintptr_t>r)
    if sqe == NULL:
        return sync_submit(e, r, pending, result)
    r.at_kernel = 1
    if r.kind == OP_READ:
        if count == 1:
            io_uring_prep_read(sqe, e.disk.fd, r.iov.iov_base, <unsigned>r.iov.iov_len, at)
        else:
            io_uring_prep_readv2(sqe, e.disk.fd, r.iov, count, at, 0)
    elif r.kind == OP_WRITE:
        io_uring_prep_writev2(sqe, e.disk.fd, r.iov, count, at, RWF_DSYNC if through else 0)
    elif r.kind == OP_FLUSH:
        io_uring_prep_fsync(sqe, e.disk.fd, IORING_FSYNC_DATASYNC)
    else:
        io_uring_prep_fallocate(sqe, e.disk.fd, mode, at, r.len - r.done)
    return ENGINE_LATER
