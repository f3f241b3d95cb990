"""Through preadv2 and pwritev2, in the worker itself: for cached data, and where io_uring is not to be had."""

from libc.errno cimport EFAULT, EINVAL, EOPNOTSUPP, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy
from posix.types cimport off_t
from posix.uio cimport iovec

from vhostd.atomics cimport load_acquire_u32, load_relaxed_u32
from vhostd.backends.block.engine cimport (
    BOUNCE_LEN, ENGINE_DONE, FALLOC_DISCARD, FALLOC_ZERO, TRANSFER_IOV_MAX, engine_t,
)
from vhostd.backends.block.request cimport OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_ZERO, blk_req_t
from vhostd.spec.layout cimport BLK_WRITE_ZEROES_UNMAP

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int fd, const iovec *iov, int count, off_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec *iov, int count, off_t offset, int flags)
    int RWF_NOWAIT, RWF_DSYNC

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
    ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset)
    int fdatasync(int fd)

cdef extern from "<fcntl.h>" nogil:
    int c_fallocate "fallocate"(int fd, int mode, off_t offset, off_t len)

cdef extern from * nogil:
    """
    /* What write-zeroes writes where the host cannot zero a range by itself. */
    static const uint8_t zero_bytes[65536] __attribute__((aligned(4096)));
    """
    const uint8_t zero_bytes[65536]


cdef int64_t or_errno(int64_t result) noexcept nogil:
    return result if result >= 0 else -<int64_t>errno


cdef int aligned(const blk_req_t *r, uint32_t align) noexcept nogil:
    cdef uint32_t i
    for i in range(r.iov_count):
        if (<uintptr_t>r.iov[i].iov_base | r.iov[i].iov_len) & (align - 1):
            return 0
    return 1


cdef int64_t bounced(engine_t *e, blk_req_t *r, int flags) noexcept nogil:
    """A direct transfer of buffers that the disk cannot take as they lie: a part of it, through a buffer of ours."""
    cdef uint8_t *bounce = <uint8_t *>e.bounce
    cdef uint64_t left = r.len - r.done
    cdef size_t want = <size_t>(left if left < BOUNCE_LEN else BOUNCE_LEN)
    cdef size_t at = 0
    cdef size_t part
    cdef uint32_t i = 0
    cdef int64_t got
    cdef iovec one
    if r.kind == OP_READ:
        got = or_errno(pread(e.disk.fd, bounce, want, <off_t>(r.offset + r.done)))
        if got <= 0:
            return got
        want = <size_t>got
    while at < want and i < r.iov_count:
        part = r.iov[i].iov_len if r.iov[i].iov_len < want - at else want - at
        if r.kind == OP_READ:
            memcpy(r.iov[i].iov_base, bounce + at, part)
        else:
            memcpy(bounce + at, r.iov[i].iov_base, part)
        at += part
        i += 1
    if r.kind == OP_READ:
        return <int64_t>want
    if load_acquire_u32(e.faulted):
        return -EFAULT  # acquire: pairs with the guard's release; the copy may be of zeroes that nobody wrote
    one.iov_base = bounce
    one.iov_len = want
    return or_errno(pwritev2(e.disk.fd, &one, 1, <off_t>(r.offset + r.done), flags))


cdef int64_t sync_read_nowait(engine_t *e, blk_req_t *r) noexcept nogil:
    cdef int count = <int>(r.iov_count if r.iov_count < TRANSFER_IOV_MAX else TRANSFER_IOV_MAX)
    return or_errno(preadv2(e.disk.fd, r.iov, count, <off_t>(r.offset + r.done), RWF_NOWAIT))


cdef int segment_mode(const engine_t *e, const blk_req_t *r) noexcept nogil:
    if r.kind == OP_DISCARD:
        return FALLOC_DISCARD
    if r.segments[r.segment].flags & BLK_WRITE_ZEROES_UNMAP:
        return FALLOC_DISCARD  # a hole reads as zeroes
    return FALLOC_ZERO if e.disk.zero_in_place else -1


cdef int64_t zero_by_writing(engine_t *e, blk_req_t *r, int flags) noexcept nogil:
    """A part of the segment at hand, as zeroes from a buffer of ours. Bytes, or -errno."""
    cdef uint64_t left = r.len - r.done
    cdef iovec one
    one.iov_base = <void *>zero_bytes
    one.iov_len = <size_t>(left if left < sizeof(zero_bytes) else sizeof(zero_bytes))
    return or_errno(pwritev2(e.disk.fd, &one, 1, <off_t>(r.offset + r.done), flags))


cdef int sync_submit(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil:
    cdef int count = <int>(r.iov_count if r.iov_count < TRANSFER_IOV_MAX else TRANSFER_IOV_MAX)
    cdef int flags = RWF_DSYNC if load_relaxed_u32(&e.disk.write_through) else 0
    cdef off_t at = <off_t>(r.offset + r.done)
    cdef int mode
    if r.kind == OP_READ:
        if e.disk.direct and not aligned(r, e.disk.memory_align):
            result[0] = bounced(e, r, 0)
        else:
            result[0] = or_errno(preadv2(e.disk.fd, r.iov, count, at, 0))
    elif r.kind == OP_WRITE:
        if e.disk.direct and not aligned(r, e.disk.memory_align):
            result[0] = bounced(e, r, flags)
        else:
            result[0] = or_errno(pwritev2(e.disk.fd, r.iov, count, at, flags))
    elif r.kind == OP_FLUSH:
        result[0] = or_errno(fdatasync(e.disk.fd))
    else:
        mode = segment_mode(e, r)
        if mode < 0 or r.done:
            result[0] = zero_by_writing(e, r, flags)
        elif c_fallocate(e.disk.fd, mode, at, <off_t>(r.len - r.done)) == 0:
            result[0] = <int64_t>(r.len - r.done)
        elif r.kind == OP_ZERO and (errno == EOPNOTSUPP or errno == EINVAL):
            result[0] = zero_by_writing(e, r, flags)
        else:
            result[0] = -<int64_t>errno
    return ENGINE_DONE
