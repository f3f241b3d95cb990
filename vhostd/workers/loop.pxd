"""A worker: one thread that waits, calls, reaps. Handlers call the functions below from their turns and from mail."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from vhostd.uring.ring cimport Ring, uring_t
from vhostd.workers.handler cimport handler_t, source_t
from vhostd.workers.mailbox cimport Mailbox, mail_t, mailbox_t

cdef enum:
    HANDLERS_MAX = 512
    LATER_MAX = 512

# Counted by the worker with relaxed stores.
cdef struct worker_counters_t:
    uint64_t wakeups  # returns of epoll_wait
    uint64_t late_looks  # looks that were owed since notifications were asked for
    uint64_t passes
    uint64_t polls  # times it polled before sleeping
    uint64_t poll_hits
    uint64_t enters  # io_uring_enter

cdef struct worker_t:
    int epoll_fd
    mailbox_t *mailbox
    uring_t *uring  # NULL: none
    handler_t *handlers[HANDLERS_MAX]
    uint32_t handler_count
    mail_t later[LATER_MAX]  # mails whose function said MAIL_LATER
    uint32_t later_count
    uint32_t quit
    uint32_t look_late  # a look is owed
    int64_t late_at  # when, by the monotonic clock
    int64_t asked_at  # when a handler asked for notifications last
    uint32_t crowded  # others want this core: no polling until the next count
    uint32_t silent_fds  # watched ones whose handler's peek cannot see what they would tell; its handlers count them
    int64_t poll_max_ns
    int64_t poll_now_ns
    worker_counters_t counters

# Worker's thread only, no GIL. 0 or -errno.
cdef int worker_add(worker_t *w, handler_t *h) noexcept nogil
cdef void worker_remove(worker_t *w, handler_t *h) noexcept nogil
cdef int worker_watch(worker_t *w, source_t *source, uint32_t events) noexcept nogil
cdef void worker_unwatch(worker_t *w, source_t *source) noexcept nogil
# Tell the control thread something unasked.
cdef void worker_report(worker_t *w, uint64_t user, int kind, int result) noexcept nogil

cdef class Loop:
    cdef worker_t c
    cdef readonly Mailbox mailbox
    cdef readonly Ring ring
