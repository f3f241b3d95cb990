"""The load generator's inner loop: a fixed depth of block requests on one ring, without the GIL.

One pass reaps all that is there, hands out as many again, publishes once and kicks once, as a guest's interrupt handler
does. Time is read once a pass: the latency of a request includes the passes it waited for.
"""

import collections

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport read, write

from vhostd.atomics cimport cpu_relax, load_acquire_u16
from vhostd.driver.virtqueue cimport (
    RING_E_BROKEN,
    RING_EMPTY,
    RING_USED,
    Virtqueue,
    ring_arm,
    ring_disarm,
    ring_give,
    ring_offer,
    ring_pop,
    ring_publish,
    ring_t,
    ring_take,
)
from vhostd.spec.layout cimport (
    BLK_S_OK,
    BLK_T_IN,
    BLK_T_OUT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    blk_header_t,
    vring_desc_t,
)

from vhostd.errors import DeviceTimeout, LocalProtocolError

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from * nogil:
    int __builtin_clzll(unsigned long long value)

Counters = collections.namedtuple(
    "Counters", "ios bytes errors short elapsed_ns kicks publishes sleeps calls latency")

cdef enum:
    BUCKETS = 512  # 64 octaves of 8 steps: each within 12.5 % of its neighbour
    CELL_LEN = 64  # header, status and nothing else on a cache line of their own
    STATUS_AT = 16
    STATUS_POISON = 0xFF
    TABLE_LEN = 64
    DRAIN_NS = 10 * 1000 * 1000 * 1000
    SPINS = 128  # between two looks at the clock

cdef struct slot_t:
    blk_header_t *header
    uint8_t *status
    vring_desc_t *data  # the descriptor of the data: its direction changes with the type
    uint64_t start_ns
    uint32_t head
    bint busy

cdef struct load_t:
    ring_t *ring
    slot_t *slots
    uint32_t *slot_of  # head: slot
    uint32_t *idle  # a stack of idle slots
    uint32_t idle_count
    uint32_t depth
    uint32_t block_len
    uint64_t blocks  # of block_len bytes, on the disk
    uint64_t next_block
    uint64_t random
    uint32_t write_percent
    bint sequential
    bint poll
    int kick_fd
    int call_fd
    uint64_t ios
    uint64_t errors
    uint64_t short_lens
    uint64_t sleeps
    uint64_t calls
    uint64_t *latency


cdef uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef uint32_t bucket_of(uint64_t ns) noexcept nogil:
    if ns < 8:
        return <uint32_t>ns
    cdef int octave = 63 - __builtin_clzll(ns)
    return <uint32_t>((octave - 2) * 8 + ((ns >> (octave - 3)) & 7))


cdef uint64_t next_random(load_t *load) noexcept nogil:
    # xorshift64*: three shifts and a product; offsets need no more.
    load.random ^= load.random >> 12
    load.random ^= load.random << 25
    load.random ^= load.random >> 27
    return load.random * <uint64_t>0x2545F4914F6CDD1D


cdef void prepare(load_t *load, slot_t *slot, uint64_t now) noexcept nogil:
    cdef uint64_t dice = next_random(load)
    cdef uint64_t block
    cdef bint writes
    if load.sequential:
        block = load.next_block
        load.next_block += 1
        if load.next_block == load.blocks:
            load.next_block = 0
    else:
        block = ((dice >> 32) * load.blocks) >> 32
    writes = (<uint64_t><uint32_t>dice * 100) >> 32 < load.write_percent
    slot.header.type = BLK_T_OUT if writes else BLK_T_IN
    slot.header.reserved = 0
    slot.header.sector = block * (load.block_len >> 9)
    slot.data.flags = DESC_F_NEXT if writes else DESC_F_NEXT | DESC_F_WRITE
    load.ring.writable_len[slot.head] = 1 if writes else <uint64_t>load.block_len + 1
    slot.status[0] = STATUS_POISON
    slot.start_ns = now
    slot.busy = True
    ring_offer(load.ring, <uint16_t>slot.head)


cdef int reap(load_t *load, uint64_t now) noexcept nogil:
    """Take every used element; their number, or a negative code."""
    cdef ring_t *ring = load.ring
    cdef uint32_t head = 0
    cdef uint32_t length = 0
    cdef slot_t *slot
    cdef int count = 0
    cdef int code
    while True:
        code = ring_pop(ring, &head, &length)
        if code == RING_EMPTY:
            return count
        if code != RING_USED:
            return code
        slot = &load.slots[load.slot_of[head]]
        if not slot.busy or slot.head != head:
            return RING_E_BROKEN
        slot.busy = False
        load.errors += slot.status[0] != BLK_S_OK
        load.short_lens += length != ring.writable_len[head]
        load.latency[bucket_of(now - slot.start_ns)] += 1
        load.idle[load.idle_count] = load.slot_of[head]
        load.idle_count += 1
        load.ios += 1
        count += 1


cdef int run_loop(load_t *load, uint64_t duration_ns, uint64_t *elapsed_ns) noexcept nogil:
    """0 when the time is over and all is back, 1 when it does not come back, or a negative ring code."""
    cdef ring_t *ring = load.ring
    cdef uint64_t begin = clock_ns()
    cdef uint64_t now = begin
    cdef uint64_t one = 1
    cdef uint64_t counter = 0
    cdef bint stopping = False
    cdef int count
    cdef int spin
    cdef pollfd waiting
    waiting.fd = load.call_fd
    waiting.events = POLLIN
    elapsed_ns[0] = 0
    if load.poll or not ring.event_idx:
        ring_disarm(ring)
    while True:
        if not stopping and load.idle_count:
            while load.idle_count:
                load.idle_count -= 1
                prepare(load, &load.slots[load.idle[load.idle_count]], now)
            if ring_publish(ring):
                write(load.kick_fd, &one, 8)
        if load.poll:
            spin = 0
            while load_acquire_u16(&ring.used.idx) == ring.last_used and spin < SPINS:
                cpu_relax()
                spin += 1
        elif load_acquire_u16(&ring.used.idx) == ring.last_used and not ring_arm(ring):
            waiting.revents = 0
            load.sleeps += 1
            if poll(&waiting, 1, 100) > 0 and read(load.call_fd, &counter, 8) == 8:
                load.calls += counter
            if not ring.event_idx:
                ring_disarm(ring)  # with EVENT_IDX the event that was armed has passed
        now = clock_ns()
        count = reap(load, now)
        if count < 0:
            return count
        if stopping:
            if ring.in_flight == 0:
                return 0
            if now - begin > duration_ns + DRAIN_NS:
                return 1
        elif now - begin >= duration_ns:
            stopping = True
            elapsed_ns[0] = now - begin


def block_load(
    Virtqueue queue,
    *,
    depth,
    block_len,
    disk_len,
    write_percent=0,
    sequential=False,
    poll=False,
    duration_ns,
    seed=1,
    first_block=0,
):
    """Keep `depth` requests of `block_len` bytes in flight for `duration_ns`, then let them drain; return Counters.

    The queue must be idle. `disk_len` in bytes bounds the offsets. `poll` spins on used.idx and asks for no calls,
    else the thread sleeps on the call eventfd. The counters hold all requests, those of the drain included; `short`
    are those whose used length is not the data and the status (2.7.8.2).
    Raises LocalProtocolError when ring or arena has no room, DeviceTimeout when requests do not come back within ten
    seconds of the end, DeviceError for a wrong used element.
    """
    queue._check()
    arena = queue.arena
    cdef load_t load
    memset(&load, 0, sizeof(load))
    cdef uint32_t n_desc = 1 if queue.indirect else 3
    if depth < 1 or depth * n_desc > queue.free or queue.in_flight:
        raise LocalProtocolError(f"load: {depth} requests of {n_desc} descriptors do not fit {queue.free}")
    if block_len < 512 or block_len % 512 or disk_len < block_len or not 0 <= write_percent <= 100:
        raise LocalProtocolError(f"load: {block_len} bytes on a disk of {disk_len}, {write_percent} % writes")
    cells = arena.alloc(CELL_LEN * depth, CELL_LEN)
    tables = arena.alloc(TABLE_LEN * depth, TABLE_LEN)
    data = arena.alloc(block_len * depth, 4096)
    cdef unsigned char[::1] cell_view = arena.view(cells, CELL_LEN * depth)
    cdef unsigned char[::1] table_view = arena.view(tables, TABLE_LEN * depth)
    cdef uint64_t duration = duration_ns
    cdef uint64_t elapsed = 0
    cdef uint32_t i
    cdef uint32_t at
    cdef vring_desc_t *desc[3]
    cdef slot_t *slot
    cdef long head
    cdef int code
    load.ring = &queue.ring
    load.depth = depth
    load.block_len = block_len
    load.blocks = disk_len // block_len
    load.next_block = first_block % load.blocks
    load.random = (seed * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF or 1
    load.write_percent = write_percent
    load.sequential = sequential
    load.poll = poll
    load.kick_fd = queue.kick_fd.number
    load.call_fd = queue.call_fd.number
    load.slots = <slot_t *>calloc(depth, sizeof(slot_t))
    load.slot_of = <uint32_t *>calloc(queue.ring.size, sizeof(uint32_t))
    load.idle = <uint32_t *>calloc(depth, sizeof(uint32_t))
    load.latency = <uint64_t *>calloc(BUCKETS, sizeof(uint64_t))
    kicks, publishes = queue.ring.kicks, queue.ring.publishes
    taken = []
    lost = False
    try:
        if load.slots == NULL or load.slot_of == NULL or load.idle == NULL or load.latency == NULL:
            raise MemoryError
        for i in range(load.depth):
            head = ring_take(load.ring, n_desc, load.block_len + 1)
            taken.append(head)
            slot = &load.slots[i]
            slot.head = <uint32_t>head
            slot.header = <blk_header_t *>&cell_view[i * CELL_LEN]
            slot.status = <uint8_t *>&cell_view[i * CELL_LEN + STATUS_AT]
            load.slot_of[head] = i
            load.idle[i] = load.depth - 1 - i
            at = <uint32_t>head
            if n_desc == 1:
                for step in range(3):
                    desc[step] = <vring_desc_t *>&table_view[i * TABLE_LEN + 16 * step]
                    desc[step].next = step + 1
                queue._write_desc(at, tables + i * TABLE_LEN, 48, DESC_F_INDIRECT, 0)
            else:
                for step in range(3):
                    desc[step] = &load.ring.desc[at]
                    at = load.ring.link[at]
                    desc[step].next = <uint16_t>at if step < 2 else 0
            desc[0].addr, desc[0].len, desc[0].flags = cells + i * CELL_LEN, 16, DESC_F_NEXT
            desc[1].addr, desc[1].len, desc[1].flags = data + i * block_len, block_len, DESC_F_NEXT
            desc[2].addr, desc[2].len, desc[2].flags = cells + i * CELL_LEN + STATUS_AT, 1, DESC_F_WRITE
            slot.data = desc[1]
        load.idle_count = load.depth
        lost = True
        with nogil:
            code = run_loop(&load, duration, &elapsed)
        if code < 0:
            if not queue.ring.broken:
                queue.ring.broken = -3  # a head came back twice: RING_E_ID
            queue._raise_broken()
        if code > 0:
            raise DeviceTimeout(f"{queue.ring.in_flight} requests did not come back")
        lost = False
        return Counters(
            load.ios, load.ios * load.block_len, load.errors, load.short_lens, elapsed, queue.ring.kicks - kicks,
            queue.ring.publishes - publishes, load.sleeps, load.calls, [load.latency[j] for j in range(512)])
    finally:
        free(load.slots)
        free(load.slot_of)
        free(load.idle)
        free(load.latency)
        if not lost:  # what did not come back is still the device's
            for head in reversed(taken):
                ring_give(&queue.ring, <uint32_t>head)
            del cell_view, table_view
            for gpa in (cells, tables, data):
                arena.free(gpa)


def bucket_bounds(index):
    """Return the bounds in ns, [low, high), of one of the 512 buckets of `latency`."""
    if index < 8:
        return index, index + 1
    octave, step = index // 8 + 2, index % 8
    return (8 + step) << (octave - 3), (9 + step) << (octave - 3)
