"""The load generator's inner loops for a card: frames on rings and on the host's end of the tap, without the GIL.

One thread is both guest and host, so that two cores measure a back-end on a core of its own.
"""

import collections

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.uio cimport iovec
from posix.unistd cimport read, write

from vhostd.atomics cimport cpu_relax
from vhostd.driver.clock cimport POLLIN, clock_ns, poll_ns, pollfd
from vhostd.driver.buckets cimport histogram_add, histogram_clear, histogram_of, histogram_t
from vhostd.driver.gauge cimport Gauge, gauge_begin, gauge_t, gauge_tick
from vhostd.driver.virtqueue cimport (
    RING_EMPTY,
    RING_USED,
    Virtqueue,
    ring_arm,
    ring_disarm,
    ring_give,
    ring_has_used,
    ring_offer,
    ring_pop,
    ring_publish,
    ring_t,
    ring_take,
)
from vhostd.spec.layout cimport DESC_F_WRITE

from vhostd.errors import DeviceTimeout, LocalProtocolError

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct mmsghdr "mmsghdr":
        msghdr msg_hdr
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)
    enum:
        MSG_DONTWAIT

# latency: (counts, total_ns, min_ns, max_ns), of tx from hand-over to return, of echo there and back, of rx none.
Counters = collections.namedtuple("Counters", "frames bytes elapsed_ns kicks publishes sleeps calls latency")

cdef enum:
    BURST = 32
    SPINS = 128
    DRAIN_NS = 2 * 1000 * 1000 * 1000
    BUFFER_LEN = 70000

cdef struct load_t:
    ring_t *ring
    uint32_t depth
    uint32_t header_len
    bint poll
    int kick_fd
    int call_fd
    int wire_fd
    uint32_t window
    const uint8_t *frame
    uint32_t frame_len
    uint8_t *first_bytes  # of each buffer, by head: where the header is
    uint64_t *buffer_at
    uint64_t frames
    uint64_t bytes
    uint64_t sleeps
    uint64_t calls
    uint64_t *start_ns  # by head
    gauge_t *gauge
    histogram_t latency


cdef void wait(load_t *load, int fd) noexcept nogil:
    """Until something is used, or something comes on `fd`, or for a tenth of a second."""
    cdef ring_t *ring = load.ring
    cdef pollfd waiting[2]
    cdef uint64_t counter = 0
    cdef int spin = 0
    if load.poll:
        while not ring_has_used(ring) and spin < SPINS:
            cpu_relax()
            spin += 1
        return
    if ring_arm(ring):
        return
    waiting[0].fd = load.call_fd
    waiting[0].events = POLLIN
    waiting[0].revents = 0
    waiting[1].fd = fd
    waiting[1].events = POLLIN
    waiting[1].revents = 0
    load.sleeps += 1
    if poll_ns(waiting, 2, 100000000) > 0 and waiting[0].revents and read(load.call_fd, &counter, 8) == 8:
        load.calls += counter
    if not ring.event_idx:
        ring_disarm(ring)


cdef int tx_loop(
    load_t *load, uint32_t *idle, uint32_t idle_count, uint64_t duration_ns, uint64_t *elapsed
) noexcept nogil:
    """Keep `depth` frames on the ring. 0, 1 when they do not come back, or a code of the ring."""
    cdef ring_t *ring = load.ring
    cdef uint64_t begin = clock_ns()
    cdef uint64_t now = begin
    cdef uint64_t one = 1
    cdef uint32_t head = 0
    cdef uint32_t length = 0
    cdef bint stopping = False
    cdef int code
    gauge_begin(load.gauge, begin)
    while True:
        if idle_count and not stopping:
            while idle_count:
                idle_count -= 1
                load.start_ns[idle[idle_count]] = now
                ring_offer(ring, <uint16_t>idle[idle_count])
            if ring_publish(ring):
                write(load.kick_fd, &one, 8)
        if not ring_has_used(ring):
            wait(load, -1)
        now = clock_ns()
        while True:
            code = ring_pop(ring, &head, &length)
            if code != RING_USED:
                break
            histogram_add(&load.latency, now - load.start_ns[head])
            idle[idle_count] = head
            idle_count += 1
            load.frames += 1
        if code != RING_EMPTY:
            return code
        if gauge_tick(load.gauge, now, load.frames):
            duration_ns = 0
        if stopping:
            if ring.in_flight == 0:
                load.bytes = load.frames * load.frame_len
                return 0
            if now - begin > duration_ns + DRAIN_NS:
                return 1
        elif now - begin >= duration_ns:
            stopping = True
            elapsed[0] = now - begin


cdef int rx_loop(load_t *load, mmsghdr *burst, uint64_t duration_ns, uint64_t *elapsed) noexcept nogil:
    """Send bursts to the tap, at most `window` frames ahead of what has arrived on the ring."""
    cdef ring_t *ring = load.ring
    cdef uint64_t begin = clock_ns()
    cdef uint64_t now = begin
    cdef uint64_t seen = begin  # when a frame arrived last
    cdef uint64_t one = 1
    cdef uint64_t sent = 0
    cdef uint64_t lost = 0
    cdef uint32_t head = 0
    cdef uint32_t length = 0
    cdef uint32_t more = 0
    cdef uint32_t offered
    cdef int code, done
    gauge_begin(load.gauge, begin)
    while True:
        if now - begin < duration_ns and sent - lost - load.frames < load.window:
            done = sendmmsg(load.wire_fd, burst, BURST, MSG_DONTWAIT)
            if done > 0:
                sent += <uint64_t>done
            elif errno != ENOBUFS and errno != EAGAIN and errno != EINTR:
                return -100
        elif not ring_has_used(ring):
            wait(load, -1)
        offered = 0
        while True:
            code = ring_pop(ring, &head, &length)
            if code != RING_USED:
                break
            load.bytes += length
            if more == 0:
                load.bytes -= load.header_len
                load.frames += 1
                more = 1
                if load.header_len == 12:
                    more = (<uint16_t *>load.buffer_at[head])[5]
            more -= 1
            ring_offer(ring, <uint16_t>head)
            offered += 1
        if code != RING_EMPTY:
            return code
        if offered and ring_publish(ring):
            write(load.kick_fd, &one, 8)
        now = clock_ns()
        if offered:
            seen = now
        elif now - seen > 20000000:
            lost = sent - load.frames  # the tap's queue, or the card, has dropped them
            seen = now
        if gauge_tick(load.gauge, now, load.frames):
            duration_ns = 0
        if now - begin >= duration_ns and (sent - lost <= load.frames or now - begin > duration_ns + DRAIN_NS):
            elapsed[0] = now - begin
            return 0


cdef int echo_loop(load_t *rx, load_t *tx, uint32_t tx_head, uint64_t duration_ns, uint64_t *elapsed) noexcept nogil:
    """One frame to the guest and back, again and again: the guest's part is a wait and a kick."""
    cdef uint64_t start = clock_ns()
    cdef uint64_t now = start
    cdef uint64_t begin
    cdef uint64_t one = 1
    cdef uint32_t head = 0
    cdef uint32_t length = 0
    cdef uint8_t back[2048]
    cdef int code
    gauge_begin(rx.gauge, start)
    while now - start < duration_ns:
        begin = clock_ns()
        if send(rx.wire_fd, rx.frame, rx.frame_len, 0) < 0:
            return -100
        while True:
            code = ring_pop(rx.ring, &head, &length)
            if code != RING_EMPTY:
                break
            if clock_ns() - begin > DRAIN_NS:
                return 1
            wait(rx, -1)
        if code != RING_USED:
            return code
        ring_offer(rx.ring, <uint16_t>head)
        if ring_publish(rx.ring):
            write(rx.kick_fd, &one, 8)
        ring_offer(tx.ring, <uint16_t>tx_head)
        if ring_publish(tx.ring):
            write(tx.kick_fd, &one, 8)
        if rx.poll:
            while recv(rx.wire_fd, back, sizeof(back), MSG_DONTWAIT) < 0:
                if clock_ns() - begin > DRAIN_NS:
                    return 1
                cpu_relax()
        elif recv(rx.wire_fd, back, sizeof(back), 0) < 0:
            return 1
        now = clock_ns()
        histogram_add(&rx.latency, now - begin)
        rx.frames += 1
        while True:
            code = ring_pop(tx.ring, &head, &length)
            if code == RING_USED:
                break
            if code != RING_EMPTY:
                return code
            if clock_ns() - begin > DRAIN_NS:
                return 1
            cpu_relax()
        if gauge_tick(rx.gauge, now, rx.frames):
            break
    elapsed[0] = now - start
    return 0


cdef void begin_load(load_t *load, Virtqueue queue, Gauge gauge):
    memset(load, 0, sizeof(load[0]))
    histogram_clear(&load.latency)
    load.ring = &queue.ring
    load.gauge = &gauge.gauge
    load.kick_fd = queue.kick_fd.number
    load.call_fd = queue.call_fd.number


cdef counters(load_t *load, uint64_t elapsed, uint64_t kicks, uint64_t publishes):
    return Counters(
        load.frames, load.bytes, elapsed, load.ring.kicks - kicks, load.ring.publishes - publishes, load.sleeps,
        load.calls, histogram_of(&load.latency))


cdef check(int code, Virtqueue queue):
    if code == -100:
        raise OSError(errno, "the host's end of the tap")
    if code < 0:
        queue._raise_broken()
    if code > 0:
        raise DeviceTimeout(f"{queue.ring.in_flight} frames did not come back")


def tx_load(Virtqueue queue, *, frame, header, depth, poll=False, duration_ns, Gauge gauge=None):
    """Send `frame` behind `header`, both bytes, as fast as it is taken, `depth` at a time; return Counters.

    The queue must be idle. Raises LocalProtocolError without room, DeviceTimeout, DeviceError.
    """
    queue._check()
    if gauge is None:
        gauge = Gauge(1)
    arena = queue.arena
    data = header + frame
    if depth < 1 or depth > queue.free or queue.in_flight:
        raise LocalProtocolError(f"load: {depth} frames do not fit {queue.free}")
    gpa = arena.alloc(len(data) * depth, 64)
    cdef load_t load
    cdef uint64_t elapsed = 0
    cdef uint64_t duration = duration_ns
    cdef uint32_t *idle = <uint32_t *>calloc(depth, sizeof(uint32_t))
    cdef uint32_t total = depth
    cdef int code
    begin_load(&load, queue, gauge)
    load.poll = poll
    load.depth = depth
    load.frame_len = len(frame)
    load.start_ns = <uint64_t *>calloc(queue.ring.size, sizeof(uint64_t))
    kicks, publishes = queue.ring.kicks, queue.ring.publishes
    lost = True
    try:
        if idle == NULL or load.start_ns == NULL:
            raise MemoryError
        for i in range(depth):
            arena.write(gpa + i * len(data), data)
            idle[i] = <uint32_t>ring_take(&queue.ring, 1, 0)
            queue._write_desc(idle[i], gpa + i * len(data), len(data), 0, 0)
        ring_disarm(&queue.ring)
        with nogil:
            code = tx_loop(&load, idle, total, duration, &elapsed)
        check(code, queue)
        lost = False
        return counters(&load, elapsed, kicks, publishes)
    finally:
        if not lost:
            for i in range(depth):
                ring_give(&queue.ring, idle[i])
            arena.free(gpa)
        free(idle)
        free(load.start_ns)


cdef class Buffers:
    """Receive buffers on a ring, until it is reset."""

    cdef uint64_t *at
    cdef object view

    def __cinit__(self, Virtqueue queue, count, length):
        cdef unsigned char[::1] view
        cdef uint32_t head
        self.at = <uint64_t *>calloc(queue.ring.size, sizeof(uint64_t))
        if self.at == NULL:
            raise MemoryError
        gpa = queue.arena.alloc(count * length, 64)
        self.view = queue.arena.view(gpa, count * length)
        view = self.view
        for i in range(count):
            head = <uint32_t>ring_take(&queue.ring, 1, length)
            queue._write_desc(head, gpa + i * length, length, DESC_F_WRITE, 0)
            self.at[head] = <uint64_t>&view[i * length]
            ring_offer(&queue.ring, <uint16_t>head)

    def __dealloc__(self):
        free(self.at)


def rx_load(
    Virtqueue queue, *, wire_fd, frame, header_len, depth, buffer_len, window, poll=False, duration_ns, Gauge gauge=None
):
    """Send `frame` (with its vnet header, if the socket takes one) to the tap and count what arrives; return Counters.

    depth: buffers of `buffer_len` bytes, which stay on the ring. window: frames on the way at a time.
    """
    queue._check()
    if depth > queue.free or queue.in_flight:
        raise LocalProtocolError(f"load: {depth} buffers do not fit {queue.free}")
    if gauge is None:
        gauge = Gauge(1)
    cdef Buffers buffers = Buffers(queue, depth, buffer_len)
    cdef load_t load
    cdef uint64_t elapsed = 0
    cdef uint64_t duration = duration_ns
    cdef uint64_t one = 1
    cdef mmsghdr *burst = <mmsghdr *>calloc(BURST, sizeof(mmsghdr))
    cdef iovec vec
    cdef const unsigned char[::1] data = frame
    cdef int code
    vec.iov_base = <void *>&data[0]
    vec.iov_len = len(frame)
    begin_load(&load, queue, gauge)
    load.poll = poll
    load.depth = depth
    load.window = window
    load.header_len = header_len
    load.buffer_at = buffers.at
    load.wire_fd = wire_fd
    kicks, publishes = queue.ring.kicks, queue.ring.publishes
    try:
        if burst == NULL:
            raise MemoryError
        for i in range(BURST):
            burst[i].msg_hdr.msg_iov = &vec
            burst[i].msg_hdr.msg_iovlen = 1
        if ring_publish(&queue.ring):
            write(load.kick_fd, &one, 8)
        ring_disarm(&queue.ring)
        with nogil:
            code = rx_loop(&load, burst, duration, &elapsed)
        check(code, queue)
        return counters(&load, elapsed, kicks, publishes)
    finally:
        free(burst)


def echo_load(
    Virtqueue rx, Virtqueue tx, *, wire_fd, frame, reply, header, poll=False, duration_ns, Gauge gauge=None
):
    """Send `frame` to the guest, which answers `reply` behind `header`, for `duration_ns`; return Counters.

    The host waits for any frame on `wire_fd`, a blocking socket of the tap. kicks and publishes are the receive ring's.
    """
    if gauge is None:
        gauge = Gauge(1)
    cdef Buffers buffers = Buffers(rx, 16, 2048)
    cdef load_t inward, outward
    cdef uint64_t one = 1
    cdef uint64_t duration = duration_ns
    cdef uint64_t elapsed = 0
    cdef const unsigned char[::1] data = frame
    cdef uint32_t head
    cdef int code
    begin_load(&inward, rx, gauge)
    begin_load(&outward, tx, gauge)
    inward.poll = poll
    inward.wire_fd = wire_fd
    inward.frame = &data[0]
    inward.frame_len = len(frame)
    inward.buffer_at = buffers.at
    kicks, publishes = rx.ring.kicks, rx.ring.publishes
    gpa = tx.arena.alloc(len(header) + len(reply))
    tx.arena.write(gpa, header + reply)
    head = <uint32_t>ring_take(&tx.ring, 1, 0)
    tx._write_desc(head, gpa, len(header) + len(reply), 0, 0)
    if ring_publish(&rx.ring):
        write(inward.kick_fd, &one, 8)
    ring_disarm(&rx.ring)
    ring_disarm(&tx.ring)
    with nogil:
        code = echo_loop(&inward, &outward, head, duration, &elapsed)
    check(code, rx)
    ring_give(&tx.ring, head)
    tx.arena.free(gpa)
    inward.bytes = inward.frames * inward.frame_len
    return counters(&inward, elapsed, kicks, publishes)
