"""A worker: one thread that waits, calls, reaps. The GIL stays outside from `run` to its end."""

import os

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from vhostd.atomics cimport cpu_relax, load_relaxed_u64, store_relaxed_u64
from vhostd.clock cimport now_ns
from vhostd.uring.ring cimport (
    Ring, completion_t, uring_bell_off, uring_bell_on, uring_enable, uring_enter, uring_ready, uring_reap,
)
from vhostd.workers.handler cimport READY_LATE, READY_POLL, handler_t, op_t, source_t
from vhostd.workers.mailbox cimport (
    MAIL_LATER, Mailbox, mail_t, mailbox_answer, mailbox_take, mailbox_waiting, make_mail,
)

from vhostd.errors import BackendError

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLET

cdef extern from "<sys/resource.h>" nogil:
    cdef struct rusage_t "rusage":
        long ru_nivcsw
    int getrusage(int who, rusage_t *usage)
    int RUSAGE_THREAD

cdef enum:
    EVENTS = 64
    LATE_MS = 2  # from asking for notifications to a look whether a driver without a fence missed it
    LATE_NS = LATE_MS * 1000000
    POLL_START_NS = 4000  # what a poll that had shrunk to nothing grows from
    REAP = 64
    LISTEN_EVERY = 8  # passes without a sleep between two looks at what else may have come
    CROWD_SLEEPS = 512  # how often it is asked whether others want this core
    CROWD_SWITCHES = 64  # preempted this often in as many sleeps: they do


cdef inline void tally(uint64_t *counter) noexcept nogil:
    store_relaxed_u64(counter, load_relaxed_u64(counter) + 1)


cdef int worker_add(worker_t *w, handler_t *h) noexcept nogil:
    if w.handler_count >= HANDLERS_MAX:
        return -28  # ENOSPC
    w.handlers[w.handler_count] = h
    w.handler_count += 1
    h.worker = w
    h.ready = 0
    h.dirty = 0
    h.armed = 0
    return 0


cdef void worker_remove(worker_t *w, handler_t *h) noexcept nogil:
    cdef uint32_t i
    for i in range(w.handler_count):
        if w.handlers[i] == h:
            w.handler_count -= 1
            w.handlers[i] = w.handlers[w.handler_count]
            break
    h.worker = NULL


cdef int worker_watch(worker_t *w, source_t *source, uint32_t events) noexcept nogil:
    # Edge-triggered: each write to an eventfd wakes us once, though nobody reads it. That saves a read per wake-up, and
    # a descriptor that stays readable for ever (end of file, a hostile peer) cannot make us spin.
    cdef epoll_event event
    event.events = events | EPOLLET
    event.data.ptr = source
    if epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, source.fd, &event) < 0:
        return -errno
    return 0


cdef void worker_unwatch(worker_t *w, source_t *source) noexcept nogil:
    cdef epoll_event event
    if source.fd >= 0:
        epoll_ctl(w.epoll_fd, EPOLL_CTL_DEL, source.fd, &event)
        source.fd = -1


cdef void worker_report(worker_t *w, uint64_t user, int kind, int result) noexcept nogil:
    mailbox_answer(w.mailbox, 0, user, kind, result)


cdef void deliver(worker_t *w) noexcept nogil:
    """Do what came by mail, and try again what could not finish."""
    cdef mail_t mail
    cdef uint32_t i = 0
    cdef int result
    while i < w.later_count:
        result = w.later[i].function(w.later[i].target, w.later[i].argument)
        if result == MAIL_LATER:
            i += 1
            continue
        mailbox_answer(w.mailbox, w.later[i].id, 0, 0, result)
        w.later_count -= 1
        w.later[i] = w.later[w.later_count]
    while w.later_count < LATER_MAX and mailbox_take(w.mailbox, &mail):
        result = mail.function(mail.target, mail.argument)
        if result == MAIL_LATER:
            w.later[w.later_count] = mail
            w.later_count += 1
        else:
            mailbox_answer(w.mailbox, mail.id, 0, 0, result)


cdef uint32_t reap(worker_t *w) noexcept nogil:
    """Submit what the handlers prepared, in one system call, and hand out what has completed."""
    cdef completion_t done[REAP]
    cdef op_t *op
    cdef uint32_t n, i, total = 0
    if w.uring.prepared or (w.uring.in_flight and uring_ready(w.uring)):
        uring_enter(w.uring)
        tally(&w.counters.enters)
    while True:
        n = uring_reap(w.uring, done, REAP)
        for i in range(n):
            op = <op_t *>done[i].user_data
            op.handler.complete(op.handler, op, done[i].res)
            op.handler.dirty = 1
        total += n
        if n < REAP:
            return total


cdef uint32_t one_pass(worker_t *w) noexcept nogil:
    """A bounded turn for each ready handler, then completions, then the flushes. How much was done."""
    cdef handler_t *h
    cdef uint32_t i, ready, worked = 0
    tally(&w.counters.passes)
    for i in range(w.handler_count):
        h = w.handlers[i]
        if h.ready:
            ready = h.ready
            h.ready = 0
            h.armed = 0
            h.dirty = 1
            worked += h.run(h, ready)
    if w.uring != NULL:
        worked += reap(w)
    for i in range(w.handler_count):
        h = w.handlers[i]
        if h.dirty:
            h.dirty = 0
            h.flush(h)
    return worked


cdef int any_ready(worker_t *w) noexcept nogil:
    cdef uint32_t i
    for i in range(w.handler_count):
        if w.handlers[i].ready:
            return 1
    return 0


cdef int look_around(worker_t *w, uint32_t mark) noexcept nogil:
    """Whether any handler has work that can be seen without a system call; marks it ready."""
    cdef handler_t *h
    cdef uint32_t i, bits
    cdef int found = 0
    for i in range(w.handler_count):
        h = w.handlers[i]
        bits = h.peek(h)
        if bits:
            h.ready |= bits | mark
            found = 1
    return found


cdef int take_events(worker_t *w, int timeout_ms) noexcept nogil:
    """Mark the handlers ready whose descriptors have something new; how many, or -1."""
    cdef epoll_event events[EVENTS]
    cdef source_t *source
    cdef int i
    cdef int n = epoll_wait(w.epoll_fd, events, EVENTS, timeout_ms)
    for i in range(n):
        source = <source_t *>events[i].data.ptr
        if source != NULL:  # NULL: mail, or a completion; both are looked for anyway
            source.handler.ready |= source.bit
    return n


cdef int poll_before_sleep(worker_t *w, int64_t until) noexcept nogil:
    """Look for something to do until then. 1: there is."""
    cdef int _i
    cdef int found
    tally(&w.counters.polls)
    while True:
        found = 0
        for _i in range(8):
            if look_around(w, READY_POLL) or mailbox_waiting(w.mailbox) or (
                w.uring != NULL and w.uring.in_flight and uring_ready(w.uring)
            ):
                found = 1
                break
            cpu_relax()
        if found or (w.silent_fds and take_events(w, 0) > 0):
            tally(&w.counters.poll_hits)
            return 1
        if now_ns() >= until:
            return 0


cdef int ask_for_notifications(worker_t *w) noexcept nogil:
    """Before sleeping: have each handler ask, and look once more. 1 when something came meanwhile."""
    cdef handler_t *h
    cdef uint32_t i, bits
    cdef int again = 0
    cdef int asked = 0
    for i in range(w.handler_count):
        h = w.handlers[i]
        if not h.armed:
            h.armed = 1
            asked = 1
            bits = h.arm(h)
            if bits:
                h.ready |= bits
                again = 1
    if asked:
        w.asked_at = now_ns()
        if not w.look_late:
            w.look_late = 1
            w.late_at = w.asked_at + LATE_NS
    if w.uring != NULL and uring_bell_on(w.uring):
        again = 1
    return again


cdef void serve(worker_t *w) noexcept nogil:
    """Work until there is nothing more to see and everybody has asked for notifications."""
    cdef uint32_t worked
    cdef uint32_t passes = 0
    cdef int64_t until = 0
    while not w.quit:
        passes += 1
        if passes % LISTEN_EVERY == 0:
            # A ring that never runs dry would keep us here. The others' kicks and taps have their turn, and what they
            # bring without one: a handler that does not rest has not asked for kicks, for none of its rings.
            take_events(w, 0)
            look_around(w, READY_POLL)
        worked = one_pass(w)
        if mailbox_waiting(w.mailbox) or w.later_count:
            deliver(w)
        if any_ready(w) or mailbox_waiting(w.mailbox) or (w.uring != NULL and w.uring.prepared and worked):
            continue
        if w.poll_now_ns > 0:
            # From the last work on: a kick that was asked for before and comes late is no work, and must not end this.
            if worked:
                until = now_ns() + w.poll_now_ns
            if until and poll_before_sleep(w, until):
                continue
            until = 0
        if ask_for_notifications(w) or mailbox_waiting(w.mailbox):
            continue
        return


cdef void look_when_due(worker_t *w) noexcept nogil:
    """The look that is owed some time after we asked for notifications, whether or not something else woke us first.

    Who asked less than that time ago is owed another: his driver may have read the flag before he cleared it, and its
    index may not be out yet. Looks are not put off by that: a busy queue must not keep another's missed kick waiting.
    """
    cdef int64_t now
    if not w.look_late:
        return
    now = now_ns()
    if now < w.late_at:
        return
    w.late_at = w.asked_at + LATE_NS
    w.look_late = now < w.late_at
    tally(&w.counters.late_looks)
    look_around(w, READY_LATE)


cdef void adapt(worker_t *w, int64_t slept_ns) noexcept nogil:
    """Grow the poll when one as long as it may be would have caught what ended this sleep, shrink it when not.

    As the kernel's halt_poll does. A miss says nothing by itself: the next poll may have to be longer, not shorter.
    """
    if w.crowded:
        w.poll_now_ns = 0
    elif slept_ns < w.poll_max_ns:
        w.poll_now_ns = min(max(w.poll_now_ns * 2, <int64_t>POLL_START_NS), w.poll_max_ns)
    else:
        w.poll_now_ns //= 2
        if w.poll_now_ns < POLL_START_NS:
            w.poll_now_ns = 0


cdef void worker_run(worker_t *w) noexcept nogil:
    cdef rusage_t usage
    cdef long switches = 0
    cdef uint32_t sleeps = 0
    cdef int64_t before
    cdef int n, timeout
    if w.uring != NULL:
        uring_enable(w.uring)  # this thread is the one that submits from here on
    w.poll_now_ns = w.poll_max_ns
    deliver(w)
    while not w.quit:
        # An entry that the kernel could not take just now (memory, a full queue) is offered again soon.
        timeout = 1 if w.uring != NULL and w.uring.prepared else LATE_MS if w.look_late else -1
        before = now_ns() if w.poll_max_ns else 0
        n = take_events(w, timeout)
        if n < 0:
            if errno != EINTR:
                w.quit = 1
            continue
        tally(&w.counters.wakeups)
        if w.uring != NULL:
            uring_bell_off(w.uring)
        look_when_due(w)
        if n > 0 and w.poll_max_ns:
            adapt(w, now_ns() - before)
            sleeps += 1
            if sleeps == CROWD_SLEEPS:
                sleeps = 0
                if getrusage(RUSAGE_THREAD, &usage) == 0:
                    w.crowded = usage.ru_nivcsw - switches > CROWD_SWITCHES
                    switches = usage.ru_nivcsw
        serve(w)


cdef int quit_now(void *target, void *argument) noexcept nogil:
    (<worker_t *>target).quit = 1
    return 0


cdef class Loop:
    """One worker. Its thread calls `run`; everyone else sends mail.

    ring: an io_uring of its own, or None. poll_ns: how long it may look for work before it sleeps; 0: not at all.
    """

    def __cinit__(self):
        self.c.epoll_fd = -1

    def __init__(self, Ring ring, poll_ns):
        cdef epoll_event event
        self.mailbox = Mailbox()
        self.ring = ring
        self.c.mailbox = self.mailbox.c
        self.c.uring = &ring.c if ring is not None else NULL
        self.c.poll_max_ns = poll_ns
        import select
        poller = select.epoll()
        self.c.epoll_fd = os.dup(poller.fileno())
        os.set_inheritable(self.c.epoll_fd, False)
        poller.close()
        event.events = EPOLLIN | EPOLLET
        event.data.ptr = NULL
        if epoll_ctl(self.c.epoll_fd, EPOLL_CTL_ADD, self.mailbox.c.wake_fd, &event) < 0:
            raise BackendError("epoll", OSError(errno, os.strerror(errno)))
        if ring is not None and epoll_ctl(self.c.epoll_fd, EPOLL_CTL_ADD, ring.c.bell_fd, &event) < 0:
            raise BackendError("epoll", OSError(errno, os.strerror(errno)))

    def run(self):
        """Serve until told to quit. Takes no Python object and no GIL before it returns."""
        with nogil:
            worker_run(&self.c)

    def quit_mail(self):
        """Return the mail that ends `run`."""
        return make_mail(quit_now, &self.c, NULL, self)

    def counters(self):
        """Return name to count; each value is whole."""
        return {
            "wakeups": load_relaxed_u64(&self.c.counters.wakeups),
            "late_looks": load_relaxed_u64(&self.c.counters.late_looks),
            "passes": load_relaxed_u64(&self.c.counters.passes),
            "polls": load_relaxed_u64(&self.c.counters.polls),
            "poll_hits": load_relaxed_u64(&self.c.counters.poll_hits),
            "enters": load_relaxed_u64(&self.c.counters.enters),
        }

    def close(self):
        """Give everything back; `run` has returned."""
        if self.c.epoll_fd >= 0:
            os.close(self.c.epoll_fd)
            self.c.epoll_fd = -1
        self.mailbox.close()
        if self.ring is not None:
            self.ring.close()
