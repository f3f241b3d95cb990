"""The rings of one handler: started, drained, replaced and told things by mail.

Each operation is a function that the worker calls between two batches. Those that take something away (stop, replace)
pause the ring first, and answer MAIL_LATER until what is in flight has come back: when the answer arrives, nothing of
ours looks at the old rings or buffers any more.
"""

from libc.stdint cimport uint32_t, uint64_t

from vhostd.queues.codes cimport VQ_E_GONE
from vhostd.queues.counters cimport C_KICK_RECOVERED, C_KICKS, C_POLL_HITS, count
from vhostd.queues.queue cimport Queue, queue_adopt, queue_break, queue_call, queue_flush
from vhostd.queues.split cimport queue_t, split_pending
from vhostd.workers.handler cimport READY_AGAIN, READY_LATE, READY_POLL, handler_t
from vhostd.workers.loop cimport (
    Loop, worker_add, worker_remove, worker_report, worker_t, worker_unwatch, worker_watch,
)
from vhostd.workers.mailbox cimport MAIL_LATER, make_mail

from vhostd.errors import LocalProtocolError

cdef extern from "<sys/epoll.h>" nogil:
    uint32_t EPOLLIN


cdef struct order_t:
    uint32_t slot
    int fd
    uint32_t value
    queue_t *q
    worker_t *worker


cdef class Order:
    """An argument that lives until its mail is answered."""

    cdef order_t c


cdef Order order_for(RingSet ringset, int slot):
    if ringset.r == NULL or not 0 <= slot < <int>ringset.r.slot_count:
        raise LocalProtocolError(f"no slot {slot}")
    cdef Order order = Order.__new__(Order)
    order.c.slot = slot
    order.c.worker = &ringset.loop.c
    order.c.fd = -1
    return order


cdef int slot_open(const slot_t *s) noexcept nogil:
    """Whether chains may be taken: started, enabled, not draining, not broken."""
    return s.q != NULL and s.q.enabled and not s.paused and not s.q.broken


cdef void slot_count_wake(slot_t *s, uint32_t ready) noexcept nogil:
    if s.q == NULL:
        return
    if ready & s.kick.bit and not ready & (READY_LATE | READY_POLL | READY_AGAIN):
        count(s.q.counters, C_KICKS, 1)
    elif ready & READY_POLL and split_pending(s.q):
        count(s.q.counters, C_POLL_HITS, 1)
    elif ready & READY_LATE and split_pending(s.q):
        count(s.q.counters, C_KICK_RECOVERED, 1)


cdef void ringset_flush(handler_t *h) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>h
    cdef slot_t *s
    cdef uint32_t i
    for i in range(r.slot_count):
        s = &r.slots[i]
        if s.q == NULL:
            continue
        queue_flush(s.q)
        if s.q.broken and not s.told and h.worker != NULL:
            s.told = 1
            worker_report(<worker_t *>h.worker, h.user, <int>s.index, s.q.broken)


cdef void look(ringset_t *r, slot_t *s) noexcept nogil:
    """Have the slot looked at in the next pass: no kick is promised after a start, an enable, a swap."""
    r.h.ready |= s.kick.bit | READY_AGAIN
    r.h.armed = 0


cdef int idle(const ringset_t *r) noexcept nogil:
    cdef uint32_t i
    for i in range(r.slot_count):
        if r.slots[i].q != NULL:
            return 0
    return 1


cdef int do_start(void *target, void *argument) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>target
    cdef order_t *o = <order_t *>argument
    cdef slot_t *s = &r.slots[o.slot]
    cdef int result
    if s.q != NULL:
        return -16  # EBUSY
    if r.h.worker == NULL:
        result = worker_add(o.worker, &r.h)
        if result < 0:
            return result
    s.kick.handler = &r.h
    s.kick.bit = <uint32_t>1 << o.slot
    s.kick.fd = o.fd
    result = worker_watch(o.worker, &s.kick, EPOLLIN)
    if result < 0:
        s.kick.fd = -1
        if idle(r):
            worker_remove(o.worker, &r.h)
        return result
    s.q = o.q
    s.paused = 0
    s.told = 0
    if r.changed != NULL:
        r.changed(r, o.slot)
    look(r, s)
    return 0


cdef int do_stop(void *target, void *argument) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>target
    cdef order_t *o = <order_t *>argument
    cdef slot_t *s = &r.slots[o.slot]
    cdef worker_t *w = <worker_t *>r.h.worker
    if s.q == NULL:
        return 0
    if not s.paused:
        s.paused = 1
        worker_unwatch(w, &s.kick)
        r.h.dirty = 1
    if s.q.in_flight:
        return MAIL_LATER
    ringset_flush(&r.h)
    s.q = NULL
    if r.changed != NULL:
        r.changed(r, o.slot)
    if idle(r):
        worker_remove(w, &r.h)
    return 0


cdef int do_replace(void *target, void *argument) noexcept nogil:
    """value: whether what is in flight must come back first, because the memory behind it goes away."""
    cdef ringset_t *r = <ringset_t *>target
    cdef order_t *o = <order_t *>argument
    cdef slot_t *s = &r.slots[o.slot]
    if s.q == NULL:
        return 0
    if o.value:
        s.paused = 1
        if s.q.in_flight:
            return MAIL_LATER
        ringset_flush(&r.h)
        s.paused = 0
    if o.q == NULL:  # its memory is gone: the ring stops, and the front-end is told
        if not s.q.broken:
            queue_break(s.q, VQ_E_GONE)
            s.told = 1
            worker_report(<worker_t *>r.h.worker, r.h.user, <int>s.index, s.q.broken)
        return do_stop(target, argument)
    queue_adopt(o.q, s.q)
    s.q = o.q
    if r.changed != NULL:
        r.changed(r, o.slot)
    look(r, s)
    return 0


cdef int do_enable(void *target, void *argument) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>target
    cdef order_t *o = <order_t *>argument
    cdef slot_t *s = &r.slots[o.slot]
    if s.q == NULL:
        return 0
    s.q.enabled = o.value
    if r.changed != NULL:
        r.changed(r, o.slot)
    look(r, s)
    return 0


cdef int do_call_fd(void *target, void *argument) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>target
    cdef order_t *o = <order_t *>argument
    cdef slot_t *s = &r.slots[o.slot]
    if s.q == NULL:
        return 0
    s.q.call_fd = o.fd
    queue_call(s.q)  # the driver may have been called through the old one while nobody listened there
    return 0


cdef int do_err_fd(void *target, void *argument) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>target
    cdef order_t *o = <order_t *>argument
    if r.slots[o.slot].q != NULL:
        r.slots[o.slot].q.err_fd = o.fd
    return 0


cdef int do_kick_fd(void *target, void *argument) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>target
    cdef order_t *o = <order_t *>argument
    cdef slot_t *s = &r.slots[o.slot]
    cdef int result, old
    if s.q == NULL:
        return 0
    old = s.kick.fd
    worker_unwatch(<worker_t *>r.h.worker, &s.kick)
    s.kick.fd = o.fd
    result = worker_watch(<worker_t *>r.h.worker, &s.kick, EPOLLIN)
    if result < 0:  # as it was: the old one is still ours
        s.kick.fd = old
        worker_watch(<worker_t *>r.h.worker, &s.kick, EPOLLIN)
    look(r, s)
    return result


cdef int do_cancel(void *target, void *argument) noexcept nogil:
    cdef ringset_t *r = <ringset_t *>target
    r.forsaken = (<order_t *>argument).value
    if r.cancel != NULL:
        r.cancel(r)
    return 0


cdef class RingSet:
    """The control thread's hold on the rings of one handler. Methods return the Mail that does it; the pool sends it.

    Answers: 0, or -errno. A start's kick fd and a Queue's call and error fds are borrowed until the slot is stopped.
    """

    def __cinit__(self):
        self.r = NULL
        self.queues = []

    cdef void set_up(self, ringset_t *r, Loop loop, list indices, uint64_t user):
        cdef uint32_t i
        self.r = r
        self.loop = loop
        self.queues = [None] * len(indices)
        r.slot_count = <uint32_t>len(indices)
        r.h.user = user
        for i in range(r.slot_count):
            r.slots[i].q = NULL
            r.slots[i].index = indices[i]
            r.slots[i].kick.fd = -1

    def start(self, int slot, Queue queue not None, int kick_fd):
        """Run `queue` in `slot`, looking at it at once and then at each kick."""
        cdef Order order = order_for(self, slot)
        order.c.q = &queue.c
        order.c.fd = kick_fd
        self.queues[slot] = queue
        return make_mail(do_start, self.r, &order.c, (self, order, queue))

    def stop(self, int slot):
        """Take nothing more, and answer when all that was taken has been returned to the driver."""
        cdef Order order = order_for(self, slot)
        return make_mail(do_stop, self.r, &order.c, (self, order, self.queues[slot]))

    def replace(self, int slot, Queue queue, bint drain):
        """Go on with `queue`, over new memory; None: its memory is gone. drain: wait for what is in flight."""
        cdef Order order = order_for(self, slot)
        old = self.queues[slot]
        order.c.q = &queue.c if queue is not None else NULL
        order.c.value = drain
        if queue is not None:
            self.queues[slot] = queue
        return make_mail(do_replace, self.r, &order.c, (self, order, queue, old))

    def enable(self, int slot, bint enabled):
        """SET_VRING_ENABLE: whether chains may be taken; what is in flight completes."""
        cdef Order order = order_for(self, slot)
        order.c.value = enabled
        return make_mail(do_enable, self.r, &order.c, (self, order))

    def set_call_fd(self, int slot, int fd):
        """Call through `fd` from now on (-1: not at all), once at once. The old one is free when this is answered."""
        cdef Order order = order_for(self, slot)
        order.c.fd = fd
        return make_mail(do_call_fd, self.r, &order.c, (self, order))

    def set_err_fd(self, int slot, int fd):
        """Raise errors through `fd` from now on (-1: not at all)."""
        cdef Order order = order_for(self, slot)
        order.c.fd = fd
        return make_mail(do_err_fd, self.r, &order.c, (self, order))

    def set_kick_fd(self, int slot, int fd):
        """Wait for kicks on `fd` from now on; the ring is looked at once."""
        cdef Order order = order_for(self, slot)
        order.c.fd = fd
        return make_mail(do_kick_fd, self.r, &order.c, (self, order))

    def cancel(self, bint forsaken):
        """Give up what can be given up of the requests in flight, so that a stop ends soon.

        forsaken: nobody waits for them; else each is answered as failed.
        """
        cdef Order order = order_for(self, 0)
        order.c.value = forsaken
        return make_mail(do_cancel, self.r, &order.c, (self, order))
