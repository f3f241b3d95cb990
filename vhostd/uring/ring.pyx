"""One io_uring: prepared entries in, completions out."""

import errno
import os

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close

from vhostd.uring.liburing cimport (
    IORING_FEAT_NODROP, IORING_SETUP_CLAMP, IORING_SETUP_CQSIZE, IORING_SETUP_R_DISABLED, IORING_SQ_TASKRUN,
    io_uring_cq_advance, io_uring_cq_ready, io_uring_cqe, io_uring_get_sqe,
    io_uring_params, io_uring_peek_batch_cqe, io_uring_prep_cancel64, io_uring_queue_exit, io_uring_queue_init_params,
    io_uring_cq_eventfd_toggle, io_uring_register_eventfd, io_uring_sqe, io_uring_sqe_set_data64,
    io_uring_submit_and_get_events,
)
from vhostd.atomics cimport fence_full, load_relaxed_u32

from vhostd.errors import BackendError

cdef extern from * nogil:
    """
    /* Younger than the liburing of Debian 12; the numbers are the kernel's ABI. */
    #ifndef IORING_SETUP_COOP_TASKRUN
    #define IORING_SETUP_COOP_TASKRUN (1U << 8)
    #endif
    #ifndef IORING_SETUP_TASKRUN_FLAG
    #define IORING_SETUP_TASKRUN_FLAG (1U << 9)
    #endif
    #ifndef IORING_SETUP_SINGLE_ISSUER
    #define IORING_SETUP_SINGLE_ISSUER (1U << 12)
    #endif
    #ifndef IORING_SETUP_DEFER_TASKRUN
    #define IORING_SETUP_DEFER_TASKRUN (1U << 13)
    #endif
    #include <errno.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* io_uring_enable_rings, which the shared library of Debian 12 has and does not export. */
    static inline int enable_rings(int ring_fd) {
        long result = syscall(SYS_io_uring_register, ring_fd, 12 /* IORING_REGISTER_ENABLE_RINGS */, (void *)0, 0);
        return result < 0 ? -errno : (int)result;
    }
    """
    int enable_rings(int ring_fd)
    const uint32_t IORING_SETUP_COOP_TASKRUN
    const uint32_t IORING_SETUP_TASKRUN_FLAG
    const uint32_t IORING_SETUP_SINGLE_ISSUER
    const uint32_t IORING_SETUP_DEFER_TASKRUN

# A cancellation's own completion carries this: nothing waits for it.
cdef enum:
    CANCEL_DATA = 0


cdef int uring_enable(uring_t *u) noexcept nogil:
    return enable_rings(u.ring.ring_fd)


cdef int uring_enter(uring_t *u) noexcept nogil:
    cdef int n = io_uring_submit_and_get_events(&u.ring)
    if n < 0:
        return n  # -EAGAIN, -EBUSY: the entries stay prepared, and go with the next enter
    u.prepared -= <uint32_t>n if <uint32_t>n <= u.prepared else u.prepared
    return 0


cdef io_uring_sqe *uring_entry(uring_t *u, uint64_t user_data) noexcept nogil:
    cdef io_uring_sqe *sqe = io_uring_get_sqe(&u.ring)
    if sqe == NULL:
        uring_enter(u)
        sqe = io_uring_get_sqe(&u.ring)
        if sqe == NULL:
            return NULL
    io_uring_sqe_set_data64(sqe, user_data)
    u.prepared += 1
    if user_data != CANCEL_DATA:
        u.in_flight += 1
    return sqe


cdef uint32_t uring_reap(uring_t *u, completion_t *out, uint32_t max) noexcept nogil:
    cdef io_uring_cqe *cqes[64]
    cdef uint32_t n, i, taken = 0
    n = io_uring_peek_batch_cqe(&u.ring, cqes, max if max < 64 else 64)
    for i in range(n):
        if cqes[i].user_data == CANCEL_DATA:
            continue
        out[taken].user_data = cqes[i].user_data
        out[taken].res = cqes[i].res
        taken += 1
    io_uring_cq_advance(&u.ring, n)
    u.in_flight -= taken
    return taken


cdef int uring_ready(uring_t *u) noexcept nogil:
    return io_uring_cq_ready(&u.ring) != 0 or load_relaxed_u32(u.ring.sq.kflags) & IORING_SQ_TASKRUN != 0


cdef int uring_bell_on(uring_t *u) noexcept nogil:
    if u.in_flight == 0:
        return 0
    if not u.bell_on:
        u.bell_on = 1
        io_uring_cq_eventfd_toggle(&u.ring, True)
    # full fence: the wish (a store) before the look (a load); pairs with the kernel's, which queues a completion first
    # and looks at the wish then
    fence_full()
    return uring_ready(u)


cdef void uring_bell_off(uring_t *u) noexcept nogil:
    if u.bell_on:
        u.bell_on = 0
        io_uring_cq_eventfd_toggle(&u.ring, False)


cdef int uring_cancel(uring_t *u, uint64_t user_data) noexcept nogil:
    cdef io_uring_sqe *sqe = uring_entry(u, CANCEL_DATA)
    if sqe == NULL:
        return -errno_eagain
    io_uring_prep_cancel64(sqe, user_data, 0)
    io_uring_sqe_set_data64(sqe, CANCEL_DATA)
    return 0

cdef int errno_eagain = errno.EAGAIN


cdef class Ring:
    """An io_uring of `entries` submission entries and `completions` completion entries, disabled until enabled.

    Raises BackendError, with what is used instead, when the kernel does not give one.
    """

    def __cinit__(self):
        self.c.bell_fd = -1

    def __init__(self, unsigned entries=256, unsigned completions=4096):
        cdef io_uring_params params
        cdef int result = -errno.ENOSYS
        cdef uint32_t base = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED
        wishes = (
            IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,  # Linux 6.1
            IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,  # 5.19
            0,
        )
        for wish in wishes:
            memset(&params, 0, sizeof(params))
            params.flags = base | <uint32_t>wish
            params.cq_entries = completions
            result = io_uring_queue_init_params(entries, &self.c.ring, &params)
            if result != -errno.EINVAL:
                break
        if result < 0:
            raise BackendError("no io_uring (reads and writes go through preadv2 and pwritev2 instead)",
                               OSError(-result, os.strerror(-result)))
        self.c.alive = 1
        self.c.bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        result = io_uring_register_eventfd(&self.c.ring, self.c.bell_fd)
        if result < 0:
            raise BackendError("io_uring takes no eventfd", OSError(-result, os.strerror(-result)))
        io_uring_cq_eventfd_toggle(&self.c.ring, False)
        if not params.features & IORING_FEAT_NODROP:
            raise BackendError("this kernel's io_uring can lose completions (Linux before 5.5)")

    @property
    def bell_fd(self):
        """An eventfd that is written when something completes while the bell is on."""
        return self.c.bell_fd

    @property
    def in_flight(self):
        """Entries submitted and not yet reaped."""
        return self.c.in_flight

    def close(self):
        """Give it back; a second time does nothing. The worker has stopped."""
        if self.c.alive:
            self.c.alive = 0
            io_uring_queue_exit(&self.c.ring)
        if self.c.bell_fd >= 0:
            os.close(self.c.bell_fd)
            self.c.bell_fd = -1

    def __dealloc__(self):
        if self.c.alive:
            io_uring_queue_exit(&self.c.ring)
        if self.c.bell_fd >= 0:
            close(self.c.bell_fd)
