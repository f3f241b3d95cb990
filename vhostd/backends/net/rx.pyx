"""Tap to chains (5.1.6.3, 5.1.6.4): one read a frame.

While frames are small (small mode) each is read into memory of ours and copied, which costs less than a vector does in
the kernel. After one that needed several buffers, chains for a whole GSO frame are taken before each read, and payload
goes straight into guest memory (wide mode), with memory of ours behind for what does not fit.

A frame that was read and finds too few buffers is set aside, in our memory, and the ring waits for the driver; before
long the frame is dropped, so that smaller ones get their turn. With none at all nothing is read. Whatever happens,
chains that were not used go back untaken at the end of the turn: between two turns nothing is in flight, and a ring can
stop at once.
"""

from libc.errno cimport EAGAIN, EFAULT, EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from posix.uio cimport iovec

from vhostd.atomics cimport load_relaxed_u16
from vhostd.backends.net.header cimport (
    ETH_HEADER_LEN, FRAME_LEN_MAX, FRAME_LEN_MIN, MODE_MRG, MODE_RX_CSUM, VNET_HDR_LEN,
    gso_allowed, header_len, scatter,
)
from vhostd.backends.net.pair cimport (
    BUFFER_LEN, DIRECT_MAX, FRAME_AT, HELD_MAX, N_RX_BAD_BUFFERS, N_RX_BYTES, N_RX_DELAYED, N_RX_DROPPED, N_RX_ERRORS,
    N_RX_FRAMES, N_RX_MERGED, N_RX_NO_BUFFER, PATIENCE_NS, PATIENCE_STEP_NS, POOL, RX, TURN, WIDE_FOR,
    held_t, pair_t,
)
from vhostd.clock cimport now_ns
from vhostd.queues.chain cimport CHAIN_IOV_MAX, chain_t, chain_walk
from vhostd.queues.codes cimport VQ_E_FAULT, VQ_EMPTY
from vhostd.queues.counters cimport count
from vhostd.queues.queue cimport queue_break, queue_flush_early
from vhostd.queues.split cimport (
    queue_t, split_kicks_off, split_pop, split_push, split_unpop,
)
from vhostd.spec.layout cimport NET_GSO_NONE, NET_HDR_F_DATA_VALID, NET_HDR_F_NEEDS_CSUM, net_header_t
from vhostd.workers.handler cimport READY_AGAIN

cdef extern from * nogil:
    """
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    /* libc's is a cancellation point, which costs as much as a good part of the system call. */
    static inline ssize_t raw_readv(int fd, const struct iovec *vec, unsigned long count) {
        return syscall(SYS_readv, fd, vec, count);
    }
    static inline ssize_t raw_read(int fd, void *to, size_t length) {
        return syscall(SYS_read, fd, to, length);
    }
    """
    ssize_t raw_readv(int fd, const iovec *vec, unsigned long count)
    ssize_t raw_read(int fd, void *to, size_t length)

cdef enum outcome_t:
    WENT_ON = 0  # a frame or a bad buffer is dealt with; there may be more
    DRAINED = 1  # the tap is empty
    STARVED = 2  # the driver must give buffers first
    ENDED = 3  # the ring is broken


cdef inline uint32_t held(const pair_t *p) noexcept nogil:
    return p.held_end - p.held_at


cdef int take(pair_t *p, queue_t *q, uint64_t want, uint64_t mode) noexcept nogil:
    """Take chains until those held have room for `want` bytes and a header, or no more can be had. 0, or a code < 0.

    A chain that is bad is held as the last: it comes back in its turn.
    """
    cdef uint32_t hdr_len = header_len(mode)
    cdef chain_t chain
    cdef held_t *h
    cdef uint16_t head = 0
    cdef int code
    while p.held_len < want + hdr_len:
        if held(p):
            if not mode & MODE_MRG or p.held[p.held_end - 1].bad:
                return 0
        else:
            p.held_at = 0
            p.held_end = 0
            p.pool_used = 0
        if p.held_end == HELD_MAX or p.pool_used + CHAIN_IOV_MAX > POOL:
            if p.held_at == 0:
                return 0
            close_up(p)
            continue
        code = split_pop(q, &head)
        if code == VQ_EMPTY:
            return 0
        if code < 0:
            return queue_break(q, code)
        chain.iov = &p.pool[p.pool_used]
        chain.iov_max = CHAIN_IOV_MAX
        code = chain_walk(q, head, &chain)
        if code < 0:
            split_unpop(q, head)
            return queue_break(q, code)
        h = &p.held[p.held_end]
        h.head = head
        h.iov = p.pool_used + chain.readable
        h.iov_count = chain.writable
        h.len = <uint32_t>chain.writable_len
        h.bad = chain.bad or chain.writable_len < hdr_len  # 5.1.6.3.1: "at least the size of struct virtio_net_hdr"
        p.held_end += 1
        p.pool_used += chain.readable + chain.writable
        if not h.bad:
            p.held_len += h.len
    return 0


cdef void close_up(pair_t *p) noexcept nogil:
    """Move what is held to the front, to make room behind."""
    cdef uint32_t first = p.held[p.held_at].iov
    cdef uint32_t i
    memmove(p.pool, &p.pool[first], (p.pool_used - first) * sizeof(iovec))
    memmove(p.held, &p.held[p.held_at], held(p) * sizeof(held_t))
    p.pool_used -= first
    p.held_end -= p.held_at
    p.held_at = 0
    for i in range(p.held_end):
        p.held[i].iov -= first


cdef void release(pair_t *p, queue_t *q) noexcept nogil:
    """Give back untaken what is held."""
    while p.held_end > p.held_at:
        p.held_end -= 1
        split_unpop(q, p.held[p.held_end].head)
    p.held_len = 0


cdef void return_empty(pair_t *p, queue_t *q, uint32_t chains) noexcept nogil:
    """Return the first `chains` that are held with nothing in them."""
    cdef held_t *h
    while chains:
        h = &p.held[p.held_at]
        if h.bad:
            count(q.counters, N_RX_BAD_BUFFERS, 1)
        else:
            p.held_len -= h.len
        split_push(q, h.head, 0)
        p.held_at += 1
        chains -= 1


cdef int filter_header(net_header_t *h, uint64_t mode) noexcept nogil:
    """Leave in the tap's header what the driver may see. 0: a frame from before a change of offloads, not for it."""
    if not mode & MODE_RX_CSUM:
        if h.flags & NET_HDR_F_NEEDS_CSUM:
            return 0
        h.flags = 0
    h.flags &= NET_HDR_F_NEEDS_CSUM | NET_HDR_F_DATA_VALID
    # the receive bits lie four above those for transmission
    return h.gso_type == NET_GSO_NONE or gso_allowed(mode >> 4, h.gso_type)


cdef void deliver(pair_t *p, queue_t *q, uint32_t frame_len, uint32_t direct, uint64_t mode) noexcept nogil:
    """Use the first chains held, which have room, for a frame whose bytes from `direct` on are in rx_buffer."""
    cdef uint32_t hdr_len = header_len(mode)
    cdef uint64_t left = <uint64_t>frame_len + hdr_len
    cdef uint64_t at = 0  # of the chain, in header and frame as one
    cdef uint64_t source, end
    cdef uint32_t i = p.held_at
    cdef held_t *h
    cdef uint32_t part
    while True:
        h = &p.held[i]
        part = <uint32_t>min(left, <uint64_t>h.len)
        end = at + part
        source = max(at, <uint64_t>hdr_len + direct)
        if source < end:
            scatter(
                &p.pool[h.iov], h.iov_count, <size_t>(source - at),
                &p.rx_buffer[FRAME_AT + source - hdr_len], <size_t>(end - source),
            )
        left -= part
        at = end
        i += 1
        if left == 0:
            break
    # The header last, when it is known how many buffers there are. All of it fits into the first.
    p.rx_header.num_buffers = <uint16_t>(i - p.held_at)
    h = &p.held[p.held_at]
    scatter(&p.pool[h.iov], h.iov_count, 0, &p.rx_header, hdr_len)
    if i - p.held_at > 1:
        count(q.counters, N_RX_MERGED, 1)
    left = <uint64_t>frame_len + hdr_len
    while p.held_at < i:
        h = &p.held[p.held_at]
        part = <uint32_t>min(left, <uint64_t>h.len)
        split_push(q, h.head, part)
        p.held_len -= h.len
        p.held_at += 1
        left -= part
    count(q.counters, N_RX_FRAMES, 1)
    count(q.counters, N_RX_BYTES, frame_len)


cdef outcome_t drop(pair_t *p, queue_t *q) noexcept nogil:
    p.set_aside = 0
    count(q.counters, N_RX_DROPPED, 1)
    return WENT_ON


cdef outcome_t wait_for_more(pair_t *p, queue_t *q) noexcept nogil:
    """A frame is set aside and what is held does not have room for it: wait, or drop it."""
    cdef int64_t now
    if held(p) and p.held[p.held_end - 1].bad:
        # Nothing behind a bad chain can be used with what lies before it: all go back.
        return_empty(p, q, held(p))
        return drop(p, q)
    if held(p) >= min(<uint32_t>HELD_MAX, <uint32_t>q.size) or p.pool_used + CHAIN_IOV_MAX > POOL:
        return drop(p, q)  # there will never be more
    now = now_ns()
    if now - p.set_aside_ns > PATIENCE_NS:
        return drop(p, q)
    p.look_ns = now + PATIENCE_STEP_NS
    return STARVED


cdef outcome_t read_one(pair_t *p, queue_t *q, uint64_t mode) noexcept nogil:
    """Read a frame from the tap, into what is held."""
    cdef uint32_t hdr_len = header_len(mode)
    cdef uint32_t i, k, n = 1, skip = hdr_len, direct = 0
    cdef size_t length
    cdef held_t *h
    cdef iovec *iov
    cdef ssize_t got
    cdef uint8_t *raw = &p.rx_buffer[FRAME_AT - VNET_HDR_LEN]
    if take(p, q, FRAME_LEN_MAX if p.wide else 1, mode) < 0:
        return ENDED
    if not held(p):
        return STARVED
    if p.held[p.held_at].bad:
        return_empty(p, q, 1)
        return WENT_ON
    if not p.wide:
        got = raw_read(p.tap_fd, raw, VNET_HDR_LEN + BUFFER_LEN)
        while got < 0 and errno == EINTR:
            got = raw_read(p.tap_fd, raw, VNET_HDR_LEN + BUFFER_LEN)
        memcpy(&p.rx_header, raw, VNET_HDR_LEN)
        return place(p, q, got, 0, 0, mode)
    i = p.held_at
    while i < p.held_end and not p.held[i].bad and n < DIRECT_MAX and direct <= FRAME_LEN_MAX:
        h = &p.held[i]
        k = 0
        while k < h.iov_count and n < DIRECT_MAX and direct <= FRAME_LEN_MAX:
            iov = &p.pool[h.iov + k]
            k += 1
            if skip >= iov.iov_len:
                skip -= <uint32_t>iov.iov_len
                continue
            length = min(iov.iov_len - skip, <size_t>BUFFER_LEN)
            p.vec[n].iov_base = <uint8_t *>iov.iov_base + skip
            p.vec[n].iov_len = length
            skip = 0
            direct += <uint32_t>length
            n += 1
            if length == BUFFER_LEN:
                break
        i += 1
    p.vec[0].iov_base = &p.rx_header
    p.vec[0].iov_len = VNET_HDR_LEN
    if direct < BUFFER_LEN:
        p.vec[n].iov_base = &p.rx_buffer[FRAME_AT + direct]
        p.vec[n].iov_len = BUFFER_LEN - direct
        n += 1
    got = raw_readv(p.tap_fd, p.vec, n)
    while got < 0 and errno == EINTR:
        got = raw_readv(p.tap_fd, p.vec, n)
    return place(p, q, got, direct, n, mode)


cdef outcome_t place(pair_t *p, queue_t *q, ssize_t got, uint32_t direct, uint32_t n, uint64_t mode) noexcept nogil:
    """Deliver what was read: `direct` bytes into vec[1..n), the rest into rx_buffer behind as many. Or not."""
    cdef uint32_t hdr_len = header_len(mode)
    cdef uint32_t frame_len
    if got < 0:
        if errno == EFAULT:
            # Each address was in a mapped region: the file behind it was cut short.
            queue_break(q, VQ_E_FAULT)
            return ENDED
        if errno != EAGAIN:
            count(q.counters, N_RX_ERRORS, 1)  # gone, or down: it is looked at again when it says something
        return DRAINED
    if got == 0:
        count(q.counters, N_RX_ERRORS, 1)
        return DRAINED
    frame_len = <uint32_t>got - VNET_HDR_LEN if got > VNET_HDR_LEN else 0
    if frame_len < ETH_HEADER_LEN or frame_len > FRAME_LEN_MAX or not filter_header(&p.rx_header, mode):
        return drop(p, q)
    if p.wide:
        p.wide -= 1
    if frame_len < FRAME_LEN_MIN <= p.held[p.held_at].len - hdr_len:
        # Ethernet knows no shorter frame; a host's stack leaves it to the card to fill one up, and this card is none.
        bring_home(p, min(direct, frame_len), n)
        memset(&p.rx_buffer[FRAME_AT + frame_len], 0, FRAME_LEN_MIN - frame_len)
        frame_len = FRAME_LEN_MIN
        direct = 0
    if p.held[p.held_at].len < frame_len + hdr_len:
        if not mode & MODE_MRG:
            return drop(p, q)  # the chain stays, for a smaller one
        p.wide = WIDE_FOR
        if take(p, q, frame_len, mode) < 0:
            return ENDED
        if p.held_len < frame_len + hdr_len:
            # Home with what lies in guest memory; the rest of it is there already.
            bring_home(p, min(direct, frame_len), n)
            p.set_aside = frame_len
            p.set_aside_ns = now_ns()
            count(q.counters, N_RX_DELAYED, 1)
            return wait_for_more(p, q)
    deliver(p, q, frame_len, direct, mode)
    return WENT_ON


cdef void bring_home(pair_t *p, uint32_t length, uint32_t n) noexcept nogil:
    """Copy the first `length` bytes of a frame out of the buffers it was read into (vec[1..n)) to rx_buffer."""
    cdef uint32_t i, part, done = 0
    for i in range(1, n):
        part = <uint32_t>min(<size_t>(length - done), p.vec[i].iov_len)
        if part == 0:
            return
        memcpy(&p.rx_buffer[FRAME_AT + done], p.vec[i].iov_base, part)
        done += part


cdef outcome_t retry(pair_t *p, queue_t *q, uint64_t mode) noexcept nogil:
    """The frame that was set aside, once more."""
    cdef uint32_t hdr_len = header_len(mode)
    if take(p, q, p.set_aside, mode) < 0:
        return ENDED
    if not held(p) or p.held_len < p.set_aside + hdr_len:
        return wait_for_more(p, q)
    deliver(p, q, p.set_aside, 0, mode)
    p.set_aside = 0
    return WENT_ON


cdef void rx_forget(pair_t *p) noexcept nogil:
    p.set_aside = 0


cdef int rx_due(const pair_t *p) noexcept nogil:
    return p.set_aside and now_ns() >= p.look_ns


cdef uint32_t rx_turn(pair_t *p, uint64_t mode) noexcept nogil:
    cdef queue_t *q = p.r.slots[RX].q
    cdef uint32_t done = 0
    cdef outcome_t outcome = WENT_ON
    if not p.tap_hot and not p.set_aside:
        return 0
    if p.starved:
        if load_relaxed_u16(&q.avail.idx) == p.seen and not rx_due(p):
            return 0
        p.starved = 0
    split_kicks_off(q)
    while outcome == WENT_ON and done < TURN:
        outcome = retry(p, q, mode) if p.set_aside else read_one(p, q, mode) if p.tap_hot else DRAINED
        queue_flush_early(q, 0)  # between two frames: num_buffers and its used elements are published together
        done += 1
    if outcome == DRAINED:
        p.tap_hot = 0
        done -= 1
    elif outcome == STARVED:
        p.starved = 1
        p.seen = q.next_avail
        if not p.set_aside:
            count(q.counters, N_RX_NO_BUFFER, 1)
            done -= 1
    elif outcome == WENT_ON:
        p.r.h.ready |= READY_AGAIN
    release(p, q)
    return done
