"""A queue as the control thread builds it and a back-end runs it: ring, call and break, in one place."""

import enum

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from vhostd.atomics cimport load_relaxed_u16, load_acquire_u32
from vhostd.clock cimport now_ns
from vhostd.queues.chain cimport CHAIN_INDIRECT_MAX, CHAIN_IOV_MAX, chain_t, chain_walk
from vhostd.queues.codes cimport VQ_CHAIN, VQ_E_FAULT
from vhostd.queues.counters cimport C_CALLS, C_CALLS_SUPPRESSED, Counters, count
from vhostd.queues.memory cimport GuestMemory
from vhostd.queues.split cimport (
    queue_t, split_break, split_kicks_off, split_kicks_on, split_pending, split_pop, split_publish, split_push,
    split_wants_call,
)
from vhostd.spec.layout cimport vring_avail_t, vring_desc_t, vring_used_t
from posix.uio cimport iovec

from vhostd.errors import GuestMemoryError, LocalProtocolError, RemoteProtocolError
from vhostd.spec import virtio


cdef enum:
    FLUSH_EVERY = 8  # used elements: 64 bytes
    LOOK_NS = 1000000  # between two looks at the mode of a call descriptor


class Code(enum.IntEnum):
    """What a queue operation answers (codes.pxd)."""

    EMPTY = 0
    CHAIN = 1
    E_BROKEN = -1
    E_AVAIL_IDX = -2
    E_HEAD = -3
    E_BUSY = -4
    E_NEXT = -5
    E_LOOP = -6
    E_ORDER = -7
    E_INDIRECT = -8
    E_TABLE = -9
    E_FRAMING = -10
    E_LENGTH = -11
    E_FAULT = -12
    E_GONE = -13


EXPLAIN = {
    Code.E_AVAIL_IDX: "avail.idx is further ahead than the queue is long (virtio 2.7.6)",
    Code.E_HEAD: "an available head lies outside the descriptor table (virtio 2.7.6)",
    Code.E_BUSY: "a head was made available again while in flight (virtio 2.7.13)",
    Code.E_NEXT: "a descriptor's next lies outside its table (virtio 2.7.5)",
    Code.E_LOOP: "a descriptor chain is longer than its table (virtio 2.7.5)",
    Code.E_ORDER: "a device-readable buffer follows a device-writable one (virtio 2.7.4.2)",
    Code.E_INDIRECT: "an indirect descriptor where none may be (virtio 2.7.5.3.1)",
    Code.E_TABLE: "an indirect table of impossible length or outside guest memory (virtio 2.7.5.3)",
    Code.E_FRAMING: "a chain without the bytes that its device type needs to answer it",
    Code.E_LENGTH: "the buffers of a chain sum to 2^32 bytes or more (virtio 2.7.5)",
    Code.E_GONE: "the front-end took away the memory that the ring lies in (vhost-user, \"Memory access\")",
    Code.E_FAULT: "guest memory vanished: the front-end truncated the file behind it",
}


cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <unistd.h>
    /* EAGAIN means the counter is full, so that the peer has a call waiting anyway. 0 when the peer had us wait after
       all, until the control thread interrupted us. */
    static inline int signal_eventfd(int fd) {
        uint64_t one = 1;
        return write(fd, &one, sizeof(one)) >= 0 || errno != EINTR;
    }
    /* The mode is the open file's, and the peer may have taken O_NONBLOCK away. */
    static inline void keep_nonblocking(int fd) {
        int mode = fcntl(fd, F_GETFL);
        if (mode >= 0 && !(mode & O_NONBLOCK))
            fcntl(fd, F_SETFL, mode | O_NONBLOCK);
    }
    """
    int signal_eventfd(int fd)
    void keep_nonblocking(int fd)


cdef void queue_call(queue_t *q) noexcept nogil:
    cdef int64_t now
    if q.call_fd >= 0:
        # A look at each call would be a third of what a call costs; one that comes late is what the interrupt is for.
        now = now_ns()
        if now - q.call_looked > LOOK_NS:
            q.call_looked = now
            keep_nonblocking(q.call_fd)
        if not signal_eventfd(q.call_fd):
            q.call_fd = -1  # no more of those, until it is given anew
        count(q.counters, C_CALLS, 1)


cdef void tell(queue_t *q) noexcept nogil:
    if q.published == q.next_used and q.signalled == q.published:
        return
    split_publish(q)
    if split_wants_call(q):
        queue_call(q)
    else:
        count(q.counters, C_CALLS_SUPPRESSED, 1)


cdef void queue_flush(queue_t *q) noexcept nogil:
    if load_acquire_u32(q.mem.faulted):
        # acquire: pairs with the guard's release. What we read may be zeroes that the driver never wrote.
        if not q.broken:
            queue_break(q, VQ_E_FAULT)
        return
    tell(q)


cdef int queue_flush_early(queue_t *q, int much) noexcept nogil:
    if not much and <uint16_t>(q.next_used - q.published) < FLUSH_EVERY:
        return 0
    if load_acquire_u32(q.mem.faulted):  # acquire: as in queue_flush
        return 0
    tell(q)
    return 1


cdef int queue_break(queue_t *q, int code) noexcept nogil:
    if q.broken != code:  # what split_pop answered has been counted there
        split_break(q, code)
    if q.err_fd >= 0:
        keep_nonblocking(q.err_fd)
        if not signal_eventfd(q.err_fd):
            q.err_fd = -1
    return code


cdef void queue_adopt(queue_t *q, const queue_t *old) noexcept nogil:
    q.next_avail = old.next_avail
    q.next_used = old.next_used
    q.published = old.published
    q.signalled = old.signalled
    q.enabled = old.enabled
    q.notify_off = old.notify_off
    q.in_flight = old.in_flight
    q.call_fd = old.call_fd
    q.err_fd = old.err_fd
    q.broken = old.broken
    memcpy(q.busy, old.busy, ((<uint32_t>q.size + 63) >> 6) * sizeof(uint64_t))


cdef class Queue:
    """A split virtqueue in mapped guest memory; what its worker runs.

    size: descriptors. desc, avail, used: our addresses are found from the front-end's (`*_uva`, bytes), each area
    wholly in one region, event fields included. base: the available index to start at (vhost-user SET_VRING_BASE).
    Raises RemoteProtocolError for a size that is no power of two or beyond 32768 and GuestMemoryError for an area that
    is unmapped or misaligned. Spec: virtio 2.7; vhost-user, "Memory access".
    """

    def __cinit__(self):
        self.c.busy = NULL
        self.c.call_fd = -1
        self.c.err_fd = -1

    def __init__(
        self, int index, size, desc_uva, avail_uva, used_uva, base, features,
        GuestMemory memory not None, Counters counters not None,
    ):
        if not 0 < size <= virtio.QUEUE_SIZE_MAX or size & (size - 1):
            raise RemoteProtocolError(f"ring {index}: {size} is not a power of two up to 32768 (virtio 2.7)")
        if not 0 <= base <= 0xFFFF:
            raise RemoteProtocolError(f"ring {index}: base {base} is not an index of 16 bits (virtio 2.7.6)")
        event_idx = bool(features & virtio.Feature.EVENT_IDX)
        for name, uva, align in (
            ("descriptor table", desc_uva, virtio.DESC_ALIGN),
            ("available ring", avail_uva, virtio.AVAIL_ALIGN),
            ("used ring", used_uva, virtio.USED_ALIGN),
        ):
            if uva % align:
                raise GuestMemoryError(f"ring {index}: the {name} at {uva:#x} is not aligned to {align} (virtio 2.7)")
        try:
            desc = memory.translate_uva(desc_uva, virtio.desc_table_len(size))
            avail = memory.translate_uva(avail_uva, virtio.avail_ring_len(size, event_idx=event_idx))
            used = memory.translate_uva(used_uva, virtio.used_ring_len(size, event_idx=event_idx))
        except GuestMemoryError as error:
            raise GuestMemoryError(f"ring {index}: {error}") from None
        for name, address, align in (("descriptor table", desc, 16), ("available", avail, 2), ("used", used, 4)):
            if address % align:  # a mmap_offset that is not aligned can undo what the front-end aligned
                raise GuestMemoryError(f"ring {index}: the {name} ring is mapped at an address not aligned to {align}")
        self.index = index
        self.memory = memory
        self.counters = counters
        self.c.desc = <vring_desc_t *><uint64_t>desc
        self.c.avail = <vring_avail_t *><uint64_t>avail
        self.c.used = <vring_used_t *><uint64_t>used
        self.c.size = size
        self.c.mask = size - 1
        self.c.chain_max = max(size, CHAIN_INDIRECT_MAX)
        self.c.used_event = <uint16_t *><uint64_t>(avail + 4 + 2 * size) if event_idx else NULL
        self.c.avail_event = <uint16_t *><uint64_t>(used + 4 + 8 * size) if event_idx else NULL
        self.c.legacy = not features & virtio.Feature.VERSION_1
        self.c.indirect = bool(features & virtio.Feature.INDIRECT_DESC)
        self.c.mem = &memory.c
        self.c.counters = counters.c
        self.c.busy = <uint64_t *>calloc((size + 63) // 64, sizeof(uint64_t))
        if self.c.busy == NULL:
            raise MemoryError
        self.c.next_avail = base
        # A drained ring has used everything it took, so that its two indices agree; the driver's copy of used.idx says
        # where it stands after a restart of ours. It is only where we write next: no value of it can hurt us.
        self.c.next_used = load_relaxed_u16(&self.c.used.idx)
        self.c.published = self.c.next_used
        self.c.signalled = self.c.next_used

    def __dealloc__(self):
        free(self.c.busy)

    def set_fds(self, int call_fd, int err_fd):
        """Borrow the call and error eventfds (-1: none). Before the queue is started; then they go by mailbox."""
        self.c.call_fd = call_fd
        self.c.err_fd = err_fd

    def set_enabled(self, bint enabled):
        """Whether chains may be taken. Before the queue is started; then it goes by mailbox."""
        self.c.enabled = enabled

    @property
    def size(self):
        """Descriptors."""
        return self.c.size

    @property
    def base(self):
        """The next available index, for GET_VRING_BASE. Exact when drained."""
        return self.c.next_avail

    @property
    def in_flight(self):
        """Chains taken and not returned."""
        return self.c.in_flight

    @property
    def broken(self):
        """None, or the code that broke the ring."""
        return Code(self.c.broken) if self.c.broken else None

    @property
    def pending(self):
        """Heads announced and not taken; a glance."""
        return split_pending(&self.c)

    # What follows drives the ring from Python, for tests: a worker calls the C functions.

    def pop(self):
        """Return (head, device-readable buffers, device-writable buffers), buffers as (address, length), or a Code."""
        cdef uint16_t head = 0
        cdef iovec iov[CHAIN_IOV_MAX]
        cdef chain_t chain
        cdef int code = split_pop(&self.c, &head)
        if code != VQ_CHAIN:
            return Code(code)
        chain.iov = iov
        chain.iov_max = CHAIN_IOV_MAX
        code = chain_walk(&self.c, head, &chain)
        if code < 0:
            queue_break(&self.c, code)
            return Code(code)
        buffers = [(<uint64_t>iov[i].iov_base, iov[i].iov_len) for i in range(chain.readable + chain.writable)]
        return head, buffers[: chain.readable], buffers[chain.readable :]

    def push(self, uint16_t head, uint32_t written):
        """Return a chain; LocalProtocolError when it is not in flight, as a second push would give it twice."""
        if head >= self.c.size or not self.c.busy[head >> 6] >> (head & 63) & 1:
            raise LocalProtocolError(f"head {head} is not in flight")
        split_push(&self.c, head, written)

    def flush(self):
        """Publish, and call the driver if it wants that."""
        queue_flush(&self.c)

    def kicks_off(self):
        """Ask the driver not to kick."""
        split_kicks_off(&self.c)

    def kicks_on(self):
        """Ask for the next kick; True when something became available meanwhile."""
        return bool(split_kicks_on(&self.c))

    def adopt(self, Queue old not None):
        """Take over the running state of the queue this one replaces."""
        if old.c.size != self.c.size:
            raise LocalProtocolError("a queue adopts the state of one of the same size only")
        queue_adopt(&self.c, &old.c)
