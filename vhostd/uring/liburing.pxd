"""The calls of liburing we use."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_sqe:
        uint8_t flags
        uint32_t rw_flags
        uint32_t cancel_flags
    cdef struct io_uring_cqe:
        uint64_t user_data
        int32_t res
    cdef struct io_uring_params:
        uint32_t flags
        uint32_t features
        uint32_t cq_entries
    cdef struct io_uring_sq_t "io_uring_sq":
        unsigned *kflags
    cdef struct c_io_uring "io_uring":
        io_uring_sq_t sq
        int ring_fd
    cdef enum:
        IORING_SETUP_CQSIZE
        IORING_SETUP_CLAMP
        IORING_SETUP_R_DISABLED
        IORING_FEAT_NODROP
        IORING_SQ_TASKRUN
        IORING_FSYNC_DATASYNC
        IORING_ASYNC_CANCEL_ANY
    int io_uring_queue_init_params(unsigned entries, c_io_uring *ring, io_uring_params *p)
    void io_uring_queue_exit(c_io_uring *ring)
    io_uring_sqe *io_uring_get_sqe(c_io_uring *ring)
    void io_uring_sqe_set_data64(io_uring_sqe *sqe, uint64_t data)
    int io_uring_submit_and_get_events(c_io_uring *ring)
    int io_uring_register_eventfd(c_io_uring *ring, int fd)
    int io_uring_cq_eventfd_toggle(c_io_uring *ring, bint enabled)
    unsigned io_uring_cq_ready(const c_io_uring *ring)
    unsigned io_uring_peek_batch_cqe(c_io_uring *ring, io_uring_cqe **cqes, unsigned count)
    void io_uring_cq_advance(c_io_uring *ring, unsigned nr)
    void io_uring_prep_read(io_uring_sqe *sqe, int fd, void *buf, unsigned nbytes, uint64_t offset)
    void io_uring_prep_write(io_uring_sqe *sqe, int fd, const void *buf, unsigned nbytes, uint64_t offset)
    void io_uring_prep_readv2(io_uring_sqe *sqe, int fd, const iovec *iov, unsigned nr, uint64_t offset, int flags)
    void io_uring_prep_writev2(io_uring_sqe *sqe, int fd, const iovec *iov, unsigned nr, uint64_t offset, int flags)
    void io_uring_prep_fsync(io_uring_sqe *sqe, int fd, unsigned flags)
    void io_uring_prep_fallocate(io_uring_sqe *sqe, int fd, int mode, uint64_t offset, uint64_t len)
    void io_uring_prep_cancel64(io_uring_sqe *sqe, uint64_t user_data, int flags)
    void io_uring_prep_poll_add(io_uring_sqe *sqe, int fd, unsigned mask)
