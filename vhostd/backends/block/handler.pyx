"""One ring of a disk: kick, chains to requests, completions to status bytes."""

from libc.errno cimport EAGAIN, EFAULT, EINTR, EINVAL, EIO, EOPNOTSUPP
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from vhostd.atomics cimport load_acquire_u32, load_relaxed_u32, store_relaxed_u32
from vhostd.backends.block.disk cimport Disk
from vhostd.backends.block.engine cimport BOUNCE_LEN, ENGINE_LATER, engine_t
from vhostd.backends.block.engine_mapped cimport mapped_finished, mapped_submit
from vhostd.backends.block.engine_sync cimport sync_submit
from vhostd.backends.block.engine_uring cimport uring_submit
from vhostd.backends.block.request cimport (
    OP_ANSWER, OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_ZERO, SEGMENT_SECTORS_MAX, SEGMENTS_MAX, blk_req_t, disk_t,
    request_advance, request_parse,
)
from vhostd.backends.ringset cimport RingSet, ringset_flush, ringset_t, slot_count_wake, slot_open, slot_t
from vhostd.queues.chain cimport CHAIN_IOV_MAX, chain_t, chain_walk
from vhostd.queues.codes cimport VQ_CHAIN
from vhostd.queues.counters cimport C_OWN, counters_t, count
from vhostd.queues.queue cimport queue_break, queue_flush_early
from vhostd.queues.split cimport (
    queue_t, split_kicks_off, split_kicks_on, split_pending, split_pop, split_push, split_unpop,
)
from vhostd.spec.layout cimport BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP
from vhostd.uring.ring cimport uring_cancel
from vhostd.workers.handler cimport READY_AGAIN, handler_t, op_t
from vhostd.workers.loop cimport Loop

cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t align, size_t size)

cdef extern from * nogil:
    """
    #include <stddef.h>
    /* Requests are spaced so that their first lines do not all fall into one set of the cache. */
    #define BLK_REQ_STRIDE(size) ((((size) + 63) & ~(size_t)63) + ((((size) + 63) >> 6 & 1) ? 0 : 64))
    """
    size_t BLK_REQ_STRIDE(size_t size)

cdef enum:
    TURN = 64  # chains in one turn
    REQUESTS_MAX = 256  # of one ring at a time; further chains wait in the ring
    STEPS_MAX = 16  # of one request in a turn, where the worker itself writes: 1 MiB of zeroes
    FLUSH_BYTES = 64 << 10  # transferred: the driver is told of them
    TRIES_MAX = 16  # of one request that the host interrupts or cannot take now

cdef enum:
    C_READS = C_OWN
    C_READ_BYTES
    C_WRITES
    C_WRITE_BYTES
    C_FLUSHES
    C_DISCARDS
    C_ZEROES
    C_IDS
    C_IOERR
    C_UNSUPP
    C_INLINE
    C_MAPPED
    C_HOST_ERRORS

COUNTER_NAMES = (
    "reads", "read_bytes", "writes", "write_bytes", "flushes", "discards", "write_zeroes", "ids", "errors",
    "unsupported", "answered_inline", "copied", "host_errors",
)
MAX_SEGMENTS = SEGMENTS_MAX
MAX_SEGMENT_SECTORS = SEGMENT_SECTORS_MAX


cdef struct blk_handler_t:
    ringset_t r  # first
    engine_t engine
    disk_t *disk
    uint8_t *requests
    size_t stride
    uint16_t free[REQUESTS_MAX]
    uint16_t parked[REQUESTS_MAX]  # requests that go on in the next turn
    uint32_t parked_count
    uint32_t free_count
    uint32_t cancelling
    uint64_t held  # bytes that were transferred and that the driver has not been told of


cdef blk_req_t *request_at(blk_handler_t *b, uint32_t i) noexcept nogil:
    return <blk_req_t *>(b.requests + i * b.stride)


cdef void finish(blk_handler_t *b, blk_req_t *r, uint8_t status, uint32_t written) noexcept nogil:
    """Write the status byte and return the chain. `written`: what was put into device-writable buffers before it."""
    cdef queue_t *q = b.r.slots[0].q
    r.status_at[0] = status
    # 2.7.8.2: a used length counts from the first device-writable byte on, and only what was written without a gap.
    if written == r.room:
        written += 1
    if status == BLK_S_IOERR:
        count(q.counters, C_IOERR, 1)
    elif status == BLK_S_UNSUPP:
        count(q.counters, C_UNSUPP, 1)
    split_push(q, r.head, written)
    if status == BLK_S_OK and (r.kind == OP_READ or r.kind == OP_WRITE):
        b.held += r.len
    if queue_flush_early(q, b.held >= FLUSH_BYTES):
        b.held = 0
    b.free[b.free_count] = <uint16_t>((<uint8_t *>r - b.requests) / b.stride)
    b.free_count += 1


cdef void abandon(blk_handler_t *b, blk_req_t *r) noexcept nogil:
    """Forget a request that was given up because its front-end has gone: the guest's next one may do it again."""
    b.r.slots[0].q.in_flight -= 1
    b.free[b.free_count] = <uint16_t>((<uint8_t *>r - b.requests) / b.stride)
    b.free_count += 1


cdef int begin_segment(blk_req_t *r) noexcept nogil:
    """Take up the segment at hand, leaving empty ones behind. 0 when there is none left."""
    while r.segment < r.segment_count:
        r.offset = r.segments[r.segment].sector << 9
        r.len = <uint64_t>r.segments[r.segment].num_sectors << 9
        r.done = 0
        r.tries = 0
        if r.len:
            return 1
        r.segment += 1
    return 0


cdef void succeed(blk_handler_t *b, blk_req_t *r) noexcept nogil:
    cdef counters_t *c = b.r.slots[0].q.counters
    if b.engine.finished != NULL:
        b.engine.finished(&b.engine, r)
    if r.kind == OP_READ:
        count(c, C_READS, 1)
        count(c, C_READ_BYTES, r.len)
        finish(b, r, BLK_S_OK, <uint32_t>r.len)
        return
    if r.kind == OP_WRITE:
        count(c, C_WRITES, 1)
        count(c, C_WRITE_BYTES, r.len)
    elif r.kind == OP_FLUSH:
        count(c, C_FLUSHES, 1)
    elif r.kind == OP_DISCARD:
        count(c, C_DISCARDS, 1)
    else:
        count(c, C_ZEROES, 1)
    finish(b, r, BLK_S_OK, 0)


cdef int lost_writes(const disk_t *disk, const blk_req_t *r, int64_t result) noexcept nogil:
    """Whether this failure was the kernel's only word on writes that had succeeded before.

    It reports a failed write-back once and forgets the dirty pages: no later flush may say OK. A flush that was given
    up has reported nothing, and a durable write that found no room has lost none but itself.
    """
    if r.kind == OP_FLUSH:
        return result != -ECANCELED and result != -EINTR and result != -EAGAIN
    return r.kind != OP_READ and result == -EIO and load_relaxed_u32(&disk.write_through)


cdef int step(blk_handler_t *b, blk_req_t *r, int64_t result) noexcept nogil:
    """Take what a system call returned. 1 when there is more to carry out, 0 when the request is finished."""
    cdef counters_t *c = b.r.slots[0].q.counters
    if result < 0:
        if (result == -EINTR or result == -EAGAIN) and r.tries < TRIES_MAX and not b.cancelling:
            r.tries += 1
            return 1
        if r.kind == OP_ZERO and (result == -EOPNOTSUPP or result == -EINVAL) and r.tries == 0:
            r.tries = 1  # by writing, then
            return 1
        if r.kind == OP_DISCARD and result == -EOPNOTSUPP:
            result = <int64_t>(r.len - r.done)  # a discard is a hint: what cannot be done is left as it was
        else:
            if result == -ECANCELED and b.r.forsaken:
                abandon(b, r)
                return 0
            count(c, C_HOST_ERRORS, 1)
            if lost_writes(b.disk, r, result):
                store_relaxed_u32(&b.disk.flush_failed, 1)
            finish(b, r, BLK_S_IOERR, <uint32_t>r.done if r.kind == OP_READ else 0)
            return 0
    if r.kind == OP_FLUSH:
        if load_relaxed_u32(&b.disk.flush_failed):
            finish(b, r, BLK_S_IOERR, 0)
        else:
            succeed(b, r)
        return 0
    if r.kind == OP_READ or r.kind == OP_WRITE:
        if result == 0:  # the image ends before its capacity: it was cut short under us
            count(c, C_HOST_ERRORS, 1)
            finish(b, r, BLK_S_IOERR, <uint32_t>r.done if r.kind == OP_READ else 0)
            return 0
        r.done += <uint64_t>result
        if r.done >= r.len:
            succeed(b, r)
            return 0
        request_advance(r, <uint64_t>result)
        r.tries = 1
        return 1
    # A segment: fallocate returns 0 for all of it through io_uring, and the bytes done in the worker.
    r.done += <uint64_t>result if result > 0 else r.len - r.done
    if r.done < r.len:
        return 1
    r.segment += 1
    if begin_segment(r):
        return 1
    if r.kind == OP_ZERO and load_relaxed_u32(&b.disk.write_through):
        count(c, C_ZEROES, 1)
        r.kind = OP_FLUSH  # fallocate has no way to be durable by itself
        return 1
    succeed(b, r)
    return 0


cdef void carry_out(blk_handler_t *b, blk_req_t *r, uint32_t pending) noexcept nogil:
    cdef int64_t result = 0
    cdef uint32_t steps = 0
    cdef uint64_t copies = b.engine.copies
    while True:
        if r.kind == OP_WRITE and load_acquire_u32(b.r.slots[0].q.mem.faulted):
            # acquire: pairs with the guard's release. What lies there now may be zeroes that nobody wrote.
            step(b, r, -EFAULT)
            return
        if steps == STEPS_MAX:
            b.parked[b.parked_count] = <uint16_t>((<uint8_t *>r - b.requests) / b.stride)
            b.parked_count += 1
            b.r.h.ready |= READY_AGAIN
            return
        steps += 1
        b.engine.faulted = b.r.slots[0].q.mem.faulted
        if b.engine.submit(&b.engine, r, pending, &result) == ENGINE_LATER:
            return
        count(b.r.slots[0].q.counters, C_INLINE if b.engine.copies == copies else C_MAPPED, 1)
        if not step(b, r, result):
            return


cdef void begin(blk_handler_t *b, blk_req_t *r, uint32_t pending) noexcept nogil:
    if r.kind == OP_ANSWER:
        if r.status == BLK_S_OK:
            count(b.r.slots[0].q.counters, C_IDS, 1)
        finish(b, r, r.status, r.written)
    elif (r.kind == OP_DISCARD or r.kind == OP_ZERO) and not begin_segment(r):
        succeed(b, r)  # nothing but empty segments
    else:
        carry_out(b, r, pending)


cdef void go_on(blk_handler_t *b) noexcept nogil:
    """Another turn for each parked request, or its end when requests are given up."""
    cdef uint32_t i
    cdef uint32_t waiting = b.parked_count
    cdef uint16_t parked[REQUESTS_MAX]
    memcpy(parked, b.parked, waiting * sizeof(uint16_t))
    b.parked_count = 0
    for i in range(waiting):
        if b.cancelling:
            step(b, request_at(b, parked[i]), -ECANCELED)
        else:
            carry_out(b, request_at(b, parked[i]), 0xFFFF)


cdef uint32_t blk_run(handler_t *h, uint32_t ready) noexcept nogil:
    cdef blk_handler_t *b = <blk_handler_t *>h
    cdef slot_t *s = &b.r.slots[0]
    cdef queue_t *q = s.q
    cdef blk_req_t *r
    cdef chain_t chain
    cdef uint16_t head = 0
    cdef uint32_t taken = 0
    cdef uint32_t pending
    cdef int code
    b.engine.size_seen = 0
    if b.parked_count:
        go_on(b)
    if not slot_open(s):
        return 0
    slot_count_wake(s, ready)
    split_kicks_off(q)
    pending = split_pending(q)
    chain.iov_max = CHAIN_IOV_MAX
    while taken < TURN and b.free_count:
        code = split_pop(q, &head)
        if code != VQ_CHAIN:
            if code < 0:
                queue_break(q, code)
            break
        taken += 1
        r = request_at(b, b.free[b.free_count - 1])
        r.op.handler = h
        r.head = head
        r.at_kernel = 0
        chain.iov = r.store
        code = chain_walk(q, head, &chain)
        if code == VQ_CHAIN:
            code = request_parse(r, &chain, b.disk)
        if code < 0:
            split_unpop(q, head)  # it stays the driver's: nothing is published for a chain that cannot be answered
            queue_break(q, code)
            break
        b.free_count -= 1
        begin(b, r, pending)
    if taken == TURN and split_pending(q):
        h.ready |= READY_AGAIN
    return taken


cdef void blk_complete(handler_t *h, op_t *op, int32_t result) noexcept nogil:
    cdef blk_handler_t *b = <blk_handler_t *>h
    cdef blk_req_t *r = <blk_req_t *>op
    r.at_kernel = 0
    if step(b, r, result):
        carry_out(b, r, 0xFFFF)
    # A ring that was left waiting because all requests were taken is looked at again, and asks for kicks again.
    if b.free_count == 1:
        h.armed = 0
        if split_pending(b.r.slots[0].q):
            h.ready |= READY_AGAIN


cdef void blk_flush(handler_t *h) noexcept nogil:
    (<blk_handler_t *>h).held = 0
    ringset_flush(h)


cdef uint32_t blk_peek(handler_t *h) noexcept nogil:
    cdef blk_handler_t *b = <blk_handler_t *>h
    cdef slot_t *s = &b.r.slots[0]
    if not slot_open(s) or b.free_count == 0:
        return 0
    return s.kick.bit if split_pending(s.q) else 0


cdef uint32_t blk_arm(handler_t *h) noexcept nogil:
    cdef blk_handler_t *b = <blk_handler_t *>h
    cdef slot_t *s = &b.r.slots[0]
    if not slot_open(s) or b.free_count == 0:
        return 0  # a completion will look at the ring
    return READY_AGAIN if split_kicks_on(s.q) else 0


cdef void blk_cancel(ringset_t *r) noexcept nogil:
    cdef blk_handler_t *b = <blk_handler_t *>r
    cdef uint32_t i, j
    cdef int is_free
    b.cancelling = 1
    if b.parked_count:
        r.h.ready |= READY_AGAIN
    if b.engine.uring == NULL or b.free_count == REQUESTS_MAX:
        return
    for i in range(REQUESTS_MAX):
        is_free = 0
        for j in range(b.free_count):
            if b.free[j] == i:
                is_free = 1
                break
        if not is_free and request_at(b, i).at_kernel:
            uring_cancel(b.engine.uring, <uint64_t><uintptr_t>request_at(b, i))


cdef void blk_changed(ringset_t *r, uint32_t slot) noexcept nogil:
    (<blk_handler_t *>r).cancelling = 0
    r.forsaken = 0


cdef class BlockHandler(RingSet):
    """Serves one ring of a disk: by copying if the disk is mapped, then through the worker's io_uring if it has one."""

    cdef blk_handler_t *b
    cdef Disk disk

    def __cinit__(self):
        self.b = <blk_handler_t *>calloc(1, sizeof(blk_handler_t))
        if self.b == NULL:
            raise MemoryError

    def __init__(self, int ring, Disk disk not None, Loop loop not None, uint64_t user):
        cdef uint32_t i
        cdef blk_handler_t *b = self.b
        self.disk = disk
        b.disk = &disk.c
        b.engine.disk = &disk.c
        b.engine.uring = loop.c.uring
        b.engine.submit = uring_submit if loop.c.uring != NULL else sync_submit
        if disk.map.base != NULL:
            b.engine.map = &disk.map
            b.engine.below = b.engine.submit
            b.engine.submit = mapped_submit
            b.engine.finished = mapped_finished
            b.engine.major_faults = -1
        if disk.c.direct and posix_memalign(&b.engine.bounce, 4096, BOUNCE_LEN) != 0:
            raise MemoryError
        b.stride = BLK_REQ_STRIDE(sizeof(blk_req_t))
        b.requests = <uint8_t *>calloc(REQUESTS_MAX, b.stride)  # untouched pages cost nothing
        if b.requests == NULL:
            raise MemoryError
        for i in range(REQUESTS_MAX):
            b.free[i] = <uint16_t>(REQUESTS_MAX - 1 - i)
        b.free_count = REQUESTS_MAX
        b.r.h.run = blk_run
        b.r.h.flush = blk_flush
        b.r.h.peek = blk_peek
        b.r.h.arm = blk_arm
        b.r.h.complete = blk_complete
        b.r.cancel = blk_cancel
        b.r.changed = blk_changed
        self.set_up(&b.r, loop, [ring], user)

    def __dealloc__(self):
        if self.b != NULL:
            free(self.b.engine.bounce)
            free(self.b.requests)
            free(self.b)
