"""A pair of rings at one descriptor of a tap: when each gets a turn, and what is waited for."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from vhostd.atomics cimport load_relaxed_u16, load_relaxed_u64, store_relaxed_u64
from vhostd.backends.net.header cimport (
    MODE_HDR12, MODE_MRG, MODE_RX_CSUM, MODE_RX_ECN, MODE_RX_TSO4, MODE_RX_TSO6, MODE_TX_CSUM, MODE_TX_ECN,
    MODE_TX_TSO4, MODE_TX_TSO6,
)
from vhostd.backends.net.rx cimport rx_due, rx_forget, rx_turn
from vhostd.backends.net.tx cimport tx_turn
from vhostd.backends.ringset cimport RingSet, ringset_flush, ringset_t, slot_count_wake, slot_open
from vhostd.queues.split cimport queue_t, split_kicks_on, split_kicks_on_past, split_pending
from vhostd.workers.handler cimport handler_t, op_t
from vhostd.workers.loop cimport Loop, worker_t, worker_unwatch, worker_watch

from vhostd.spec import net, virtio

cdef extern from "<sys/epoll.h>" nogil:
    uint32_t EPOLLIN

cdef extern from * nogil:
    """
    #include <string.h>
    #include <sys/ioctl.h>
    #include <net/if.h>
    #include <linux/if_tun.h>
    /* Needs no privilege: the descriptor was attached by its owner. EINVAL: it is so already. */
    static inline void tap_set_queue(int fd, int attached) {
        struct ifreq request;
        memset(&request, 0, sizeof(request));
        request.ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
        ioctl(fd, TUNSETQUEUE, &request);
    }
    """
    void tap_set_queue(int fd, int attached)


cdef void watch(pair_t *p) noexcept nogil:
    """Hear of frames from now on, and of those that are there."""
    if p.tap.fd < 0:
        p.tap.handler = &p.r.h
        p.tap.bit = READY_TAP
        p.tap.fd = p.tap_fd
        if worker_watch(<worker_t *>p.r.h.worker, &p.tap, EPOLLIN) < 0:
            p.tap.fd = -1
        else:
            (<worker_t *>p.r.h.worker).silent_fds += 1


cdef void unwatch(pair_t *p) noexcept nogil:
    if p.tap.fd >= 0:
        worker_unwatch(<worker_t *>p.r.h.worker, &p.tap)
        (<worker_t *>p.r.h.worker).silent_fds -= 1


cdef uint32_t pair_run(handler_t *h, uint32_t ready) noexcept nogil:
    cdef pair_t *p = <pair_t *>h
    cdef uint64_t mode = load_relaxed_u64(&p.mode)
    cdef uint32_t done = 0
    if ready & READY_TAP:
        p.tap_hot = 1
    if ready & p.r.slots[RX].kick.bit:
        slot_count_wake(&p.r.slots[RX], ready)
    slot_count_wake(&p.r.slots[TX], ready)
    if slot_open(&p.r.slots[TX]):
        done += tx_turn(p, mode)
    if slot_open(&p.r.slots[RX]):
        done += rx_turn(p, mode)
        if p.tap.fd < 0 and not p.starved:
            watch(p)
    return done


cdef uint32_t pair_peek(handler_t *h) noexcept nogil:
    cdef pair_t *p = <pair_t *>h
    cdef uint32_t bits = 0
    if slot_open(&p.r.slots[TX]) and split_pending(p.r.slots[TX].q):
        bits |= p.r.slots[TX].kick.bit
    if p.starved and slot_open(&p.r.slots[RX]):
        if load_relaxed_u16(&p.r.slots[RX].q.avail.idx) != p.seen or rx_due(p):
            bits |= p.r.slots[RX].kick.bit
    return bits


cdef uint32_t pair_arm(handler_t *h) noexcept nogil:
    cdef pair_t *p = <pair_t *>h
    cdef uint32_t bits = 0
    if slot_open(&p.r.slots[TX]) and split_kicks_on(p.r.slots[TX].q):
        bits |= p.r.slots[TX].kick.bit
    # A ring with enough buffers wants no kicks: it waits for the tap. One without wants nothing of the tap.
    if p.starved and slot_open(&p.r.slots[RX]):
        if split_kicks_on_past(p.r.slots[RX].q, p.seen):
            bits |= p.r.slots[RX].kick.bit
        else:
            unwatch(p)
    return bits


cdef void pair_complete(handler_t *h, op_t *op, int32_t res) noexcept nogil:
    pass  # nothing of ours goes through io_uring


cdef void pair_changed(ringset_t *r, uint32_t slot) noexcept nogil:
    cdef pair_t *p = <pair_t *>r
    cdef queue_t *q = r.slots[slot].q
    if slot != RX:
        return
    p.starved = 0
    if q != NULL and q.enabled:
        if p.multi_queue and not p.attached:
            tap_set_queue(p.tap_fd, 1)
            p.attached = 1
        p.tap_hot = 1
        watch(p)
        return
    # Not this guest's any more, or not now: frames stay with the kernel, which has other queues or drops them.
    rx_forget(p)
    unwatch(p)
    if p.multi_queue and p.attached:
        tap_set_queue(p.tap_fd, 0)
        p.attached = 0


cdef class NetHandler(RingSet):
    """A pair of rings, slot 0 receiving, slot 1 transmitting, over `tap_fd`, which is borrowed.

    multi_queue: the descriptor is one of several, detached until the receiving ring is enabled.
    """

    cdef pair_t *p

    def __cinit__(self):
        self.p = <pair_t *>calloc(1, sizeof(pair_t))
        if self.p == NULL:
            raise MemoryError

    def __init__(self, Loop loop not None, int pair, int tap_fd, bint multi_queue, uint64_t user):
        cdef pair_t *p = self.p
        p.r.h.run = pair_run
        p.r.h.flush = ringset_flush
        p.r.h.peek = pair_peek
        p.r.h.arm = pair_arm
        p.r.h.complete = pair_complete
        p.r.changed = pair_changed
        p.r.cancel = NULL
        p.tap.fd = -1
        p.tap_fd = tap_fd
        p.multi_queue = multi_queue
        self.set_up(&p.r, loop, [2 * pair, 2 * pair + 1], user)
        self.set_mode(0, net.FRAME_LEN_MAX)

    def __dealloc__(self):
        free(self.p)

    def set_mode(self, features, frame_len_max):
        """What was negotiated, offloads with what they depend on; no frame but GSO is longer than `frame_len_max`."""
        f = net.Feature
        mode = 0
        for mask, bits in (
            (virtio.Feature.VERSION_1 | f.MRG_RXBUF, MODE_HDR12), (f.MRG_RXBUF, MODE_MRG),
            (f.CSUM, MODE_TX_CSUM), (f.HOST_TSO4, MODE_TX_TSO4), (f.HOST_TSO6, MODE_TX_TSO6), (f.HOST_ECN, MODE_TX_ECN),
            (f.GUEST_CSUM, MODE_RX_CSUM), (f.GUEST_TSO4, MODE_RX_TSO4), (f.GUEST_TSO6, MODE_RX_TSO6),
            (f.GUEST_ECN, MODE_RX_ECN),
        ):
            if features & mask:
                mode |= bits
        store_relaxed_u64(&self.p.mode, <uint64_t>mode | <uint64_t>frame_len_max << 32)
