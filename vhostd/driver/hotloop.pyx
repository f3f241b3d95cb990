"""The load generator's inner loop: block requests on one ring, without the GIL.

Closed: a new request goes out when one comes back, so that the depth is constant. Open (a rate): requests are due at
fixed times, whatever the back-end does, and their latency runs from there. One pass takes what has come back (at most
`batch`), hands out as many again, publishes once and kicks once. Time is read once a pass: the latency of a request
includes the passes it waited for. Chains are laid out before the clock starts; a request writes its header, and a
descriptor only where a read follows a write.
"""

import collections

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport read, write

from vhostd.atomics cimport cpu_relax
from vhostd.driver.clock cimport POLLIN, clock_ns, poll_ns, pollfd, timer_slack
from vhostd.driver.buckets cimport histogram_add, histogram_clear, histogram_of, histogram_t
from vhostd.driver.gauge cimport Gauge, gauge_begin, gauge_t, gauge_tick
from vhostd.driver.stamp cimport (
    GENERATION_BUSY,
    SECTOR_BYTES,
    Ledger,
    ledger_t,
    stamp_check,
    stamp_fill,
)
from vhostd.driver.virtqueue cimport (
    RING_E_BROKEN,
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
from vhostd.spec.layout cimport (
    BLK_S_OK,
    BLK_T_DISCARD,
    BLK_T_FLUSH,
    BLK_T_IN,
    BLK_T_OUT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    blk_header_t,
    blk_segment_t,
    packed_desc_t,
    vring_desc_t,
)

from vhostd.errors import DeviceTimeout, LocalProtocolError

# latency: a (counts, total_ns, min_ns, max_ns) for reads, one for writes and discards, one for flushes. failed: None,
# or (status, type, sector) of the first request that did. wrong: None, or (sector, generation, 512 bytes) of the first
# sector that is not as it was written. unsent: requests that were due and never had room.
Counters = collections.namedtuple(
    "Counters",
    "ios bytes errors short elapsed_ns kicks publishes sleeps calls latency flushes unsent failed wrong",
)

cdef enum:
    CELL_LEN = 64  # header, status and a segment on a cache line of their own, as in a guest's request
    STATUS_AT = 16
    SEGMENT_AT = 32
    STATUS_POISON = 0xFF
    SEGMENTS_MAX = 254
    SPINS = 128  # between two looks at the clock
    SPINS_OPEN = 16  # the same, where the next request may be due
    KINDS = 3

cdef uint64_t DRAIN_NS = 10000000000
cdef uint64_t LOOK_NS = 100000000  # sleeps are no longer, so that an end is noticed

cdef enum:
    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3

cdef struct slot_t:
    blk_header_t *header
    uint8_t *status
    blk_segment_t *segment
    uint8_t *data
    vring_desc_t **desc  # of the data: their direction changes with the type
    uint64_t data_gpa
    uint64_t segment_gpa
    uint64_t start_ns
    uint64_t block
    uint32_t generation
    uint32_t head
    uint32_t kind
    uint32_t shape  # the kind its descriptors are written for
    bint busy

cdef struct load_t:
    ring_t *ring
    gauge_t *gauge
    ledger_t *ledger
    slot_t *slots  # depth of them, and one for flushes
    uint32_t *slot_of  # head: slot
    uint32_t *idle  # a stack of idle slots
    uint32_t idle_count
    uint32_t depth
    uint32_t batch
    uint32_t segments
    uint32_t segment_len
    uint32_t block_len
    uint64_t first  # block of the range
    uint64_t blocks  # of the range
    uint64_t next_block  # in the range
    uint64_t random
    uint32_t write_percent
    uint32_t discard_percent
    uint32_t flush_every
    uint32_t unflushed  # writes since the last flush
    bint packed_tables  # indirect tables of a packed ring: in order, without NEXT (2.8.7)
    bint sequential
    bint sweep  # each written block once, then the end
    bint poll
    uint64_t rate  # requests a second on all queues together, 0: closed
    uint64_t share  # queues among which requests take turns
    uint64_t turn  # of this queue
    uint64_t sent
    uint64_t begin_ns
    int kick_fd
    int call_fd
    uint64_t ios
    uint64_t flushes
    uint64_t errors
    uint64_t short_lens
    uint64_t sleeps
    uint64_t calls
    uint32_t failed_status
    uint32_t failed_type
    uint64_t failed_sector
    bint wrong
    uint64_t wrong_sector
    uint32_t wrong_generation
    uint8_t wrong_data[SECTOR_BYTES]
    histogram_t latency[KINDS]


cdef inline uint64_t next_random(load_t *load) noexcept nogil:
    # xorshift64*: three shifts and a product; offsets need no more.
    load.random ^= load.random >> 12
    load.random ^= load.random << 25
    load.random ^= load.random >> 27
    return load.random * <uint64_t>0x2545F4914F6CDD1D


cdef inline uint64_t due_ns(load_t *load) noexcept nogil:
    """When the next request of this queue is due: the queues take turns on one time-table."""
    return load.begin_ns + (load.sent * load.share + load.turn) * 1000000000 // load.rate


cdef void put(load_t *load, vring_desc_t *desc, uint64_t addr, uint32_t length, uint16_t flags) noexcept nogil:
    """Write a descriptor of a table, or of a ring's own book: which comes next is there already."""
    desc.addr = addr
    desc.len = length
    if load.packed_tables:
        (<packed_desc_t *>desc).flags = flags & DESC_F_WRITE
    else:
        desc.flags = flags


cdef void shape(load_t *load, slot_t *slot, uint32_t kind) noexcept nogil:
    """Write the descriptors of a slot's data for another kind of request."""
    cdef uint32_t i
    cdef uint16_t flags = DESC_F_NEXT | DESC_F_WRITE if kind == READ else DESC_F_NEXT
    for i in range(load.segments):
        put(load, slot.desc[i], slot.data_gpa + <uint64_t>i * load.segment_len, load.segment_len, flags)
    slot.desc[load.segments - 1].len = load.block_len - (load.segments - 1) * load.segment_len
    if kind == DISCARD:
        slot.desc[0].addr = slot.segment_gpa
        slot.desc[0].len = sizeof(blk_segment_t)
    slot.shape = kind


cdef inline uint64_t pick(load_t *load, uint64_t dice) noexcept nogil:
    """A block of the range, counted from its start; range's length when a sweep has seen all."""
    cdef uint64_t block
    if load.sequential:
        block = load.next_block
        if load.sweep:
            while block < load.blocks and load.ledger.generations[block] == 0:
                block += 1
            load.next_block = block + 1
            return block
        load.next_block = block + 1 if block + 1 < load.blocks else 0
    else:
        block = ((dice >> 32) * load.blocks) >> 32
    if load.ledger != NULL:
        # No two requests in flight on one block: their order would be anyone's guess.
        while load.ledger.generations[block] & GENERATION_BUSY:
            block = block + 1 if block + 1 < load.blocks else 0
    return block


cdef bint prepare(load_t *load, slot_t *slot, uint64_t start) noexcept nogil:
    """Make a request of an idle slot and offer it; False when there is none left to make."""
    cdef uint64_t dice = next_random(load)
    cdef uint64_t block = pick(load, dice)
    cdef uint32_t kind = WRITE if (<uint64_t><uint32_t>dice * 100) >> 32 < load.write_percent else READ
    cdef uint64_t sector
    cdef uint32_t *entry
    if load.sweep and block >= load.blocks:
        return False
    if load.discard_percent and (next_random(load) >> 32) * 100 >> 32 < load.discard_percent:
        kind = DISCARD
    sector = (load.first + block) * (load.block_len >> 9)
    if load.ledger != NULL:
        entry = &load.ledger.generations[block]
        if kind == READ and entry[0] == 0 and not load.ledger.any_run:
            kind = WRITE  # nobody knows yet what it should hold
        slot.generation = entry[0] + 1 if kind == WRITE else entry[0]
        entry[0] |= GENERATION_BUSY
        if kind == WRITE:
            stamp_fill(slot.data, load.block_len, sector, slot.generation, load.ledger.run)
    if slot.shape != kind:
        shape(load, slot, kind)
        load.ring.writable_len[slot.head] = <uint64_t>load.block_len + 1 if kind == READ else 1
    if kind == READ:
        slot.header.type = BLK_T_IN
        slot.header.sector = sector
    elif kind == WRITE:
        slot.header.type = BLK_T_OUT
        slot.header.sector = sector
        load.unflushed += 1
    else:
        slot.header.type = BLK_T_DISCARD
        slot.header.sector = 0
        slot.segment.sector = sector
        slot.segment.num_sectors = load.block_len >> 9
        slot.segment.flags = 0
    slot.status[0] = STATUS_POISON
    slot.block = block
    slot.kind = kind
    slot.start_ns = start
    slot.busy = True
    load.sent += 1
    ring_offer(load.ring, <uint16_t>slot.head)
    return True


cdef void offer_flush(load_t *load, uint64_t now) noexcept nogil:
    cdef slot_t *slot = &load.slots[load.depth]
    slot.status[0] = STATUS_POISON
    slot.kind = FLUSH
    slot.start_ns = now
    slot.busy = True
    load.unflushed = 0
    ring_offer(load.ring, <uint16_t>slot.head)


cdef bint refill(load_t *load, uint64_t now) noexcept nogil:
    """Offer what is to be sent now; False when nothing will ever be again."""
    cdef uint64_t start = now
    while load.idle_count:
        if load.rate:
            start = due_ns(load)
            if start > now:
                return True
        if not prepare(load, &load.slots[load.idle[load.idle_count - 1]], start):
            return False
        load.idle_count -= 1
        if load.flush_every and load.unflushed >= load.flush_every and not load.slots[load.depth].busy:
            offer_flush(load, now)
    return True


cdef void verify(load_t *load, slot_t *slot) noexcept nogil:
    """Check what was read, and note what was written."""
    cdef uint32_t *entry = &load.ledger.generations[slot.block]
    cdef uint64_t sector = (load.first + slot.block) * (load.block_len >> 9)
    cdef int64_t at
    entry[0] = slot.generation if slot.kind != DISCARD else 0  # 5.2.6.2: what is discarded may read as anything
    if slot.kind == READ and not load.wrong:
        at = stamp_check(
            slot.data, load.block_len, sector, slot.generation, load.ledger.run, load.ledger.any_run)
        if at >= 0:
            load.wrong = True
            load.wrong_sector = sector + <uint64_t>at // SECTOR_BYTES
            load.wrong_generation = slot.generation
            memcpy(load.wrong_data, slot.data + at // SECTOR_BYTES * SECTOR_BYTES, SECTOR_BYTES)


cdef int reap(load_t *load, uint64_t now) noexcept nogil:
    """Take used elements, at most `batch`; their number, or a negative code."""
    cdef ring_t *ring = load.ring
    cdef uint32_t head = 0
    cdef uint32_t length = 0
    cdef uint32_t at
    cdef slot_t *slot
    cdef int count = 0
    cdef int code
    while count < <int>load.batch:
        code = ring_pop(ring, &head, &length)
        if code == RING_EMPTY:
            return count
        if code != RING_USED:
            return code
        at = load.slot_of[head]
        slot = &load.slots[at]
        if not slot.busy or slot.head != head:
            return RING_E_BROKEN
        slot.busy = False
        load.short_lens += length != ring.writable_len[head]
        # A discard counts among the writes.
        histogram_add(&load.latency[slot.kind if slot.kind < KINDS else 1], now - slot.start_ns)
        count += 1
        if slot.status[0] != BLK_S_OK:
            if load.errors == 0:
                load.failed_status = slot.status[0]
                load.failed_type = slot.header.type
                load.failed_sector = (load.first + slot.block) * (load.block_len >> 9)
            load.errors += 1
            if load.ledger != NULL and slot.kind != FLUSH:
                load.ledger.generations[slot.block] = 0
        elif load.ledger != NULL and slot.kind != FLUSH:
            verify(load, slot)
        if slot.kind == FLUSH:
            load.flushes += 1
        else:
            load.idle[load.idle_count] = at
            load.idle_count += 1
            load.ios += 1
    return count


cdef void wait(load_t *load, uint64_t now) noexcept nogil:
    """Until something is used, a request is due, or a tenth of a second has gone."""
    cdef ring_t *ring = load.ring
    cdef uint64_t counter = 0
    cdef uint64_t limit = LOOK_NS
    cdef uint64_t due
    cdef int spin = SPINS_OPEN if load.rate else SPINS
    cdef pollfd waiting
    if load.poll:
        while spin and not ring_has_used(ring):
            cpu_relax()
            spin -= 1
        return
    if load.rate and load.idle_count:
        due = due_ns(load)
        if due <= now:
            return
        if due - now < limit:
            limit = due - now
    if ring_arm(ring):
        return
    waiting.fd = load.call_fd
    waiting.events = POLLIN
    waiting.revents = 0
    load.sleeps += 1
    if poll_ns(&waiting, 1, limit) > 0 and read(load.call_fd, &counter, 8) == 8:
        load.calls += counter
    if not ring.event_idx:
        ring_disarm(ring)  # with EVENT_IDX the event that was armed has passed


cdef int run_loop(load_t *load, uint64_t duration_ns, uint64_t *elapsed_ns) noexcept nogil:
    """0 when the time is over and all is back, 1 when it does not come back, or a negative ring code."""
    cdef ring_t *ring = load.ring
    cdef uint64_t now = clock_ns()
    cdef uint64_t begin = now
    cdef uint64_t one = 1
    cdef bint stopping = False
    cdef int count
    load.begin_ns = begin
    gauge_begin(load.gauge, begin)
    elapsed_ns[0] = 0
    if load.poll or not ring.event_idx:
        ring_disarm(ring)
    while True:
        if not stopping and load.idle_count:
            stopping = not refill(load, now)
            if ring_publish(ring):
                write(load.kick_fd, &one, 8)
            if stopping:
                elapsed_ns[0] = now - begin
        if not ring_has_used(ring):
            wait(load, now)
        now = clock_ns()
        count = reap(load, now)
        if count < 0:
            return count
        if gauge_tick(load.gauge, now, load.ios) or load.wrong:
            duration_ns = 0
        if stopping:
            if ring.in_flight == 0:
                if elapsed_ns[0] == 0:
                    elapsed_ns[0] = now - begin
                return 0
            if now - begin > elapsed_ns[0] + DRAIN_NS:
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
    discard_percent=0,
    flush_every=0,
    segments=1,
    sequential=False,
    poll=False,
    batch=0,
    duration_ns,
    seed=1,
    range_first=0,
    range_blocks=None,
    first_block=0,
    rate=0,
    share=1,
    turn=0,
    Ledger ledger=None,
    sweep=False,
    Gauge gauge=None,
):
    """Keep `depth` requests of `block_len` bytes in flight for `duration_ns`, then let them drain; return Counters.

    The queue must be idle. `disk_len` in bytes bounds the offsets, `range_first` and `range_blocks` (of block_len)
    narrow them; a sequential load starts at `first_block` of that range and goes round. `poll` spins on used.idx and
    asks for no calls, else the thread sleeps on the call eventfd. `batch` bounds a pass, 0 is the whole ring.
    `segments` descriptors carry the data. A flush follows every `flush_every` writes.
    rate: requests a second, over the `share` queues that have `turn` 0 to share - 1; at most `depth` are in flight.
    ledger: writes carry stamps and reads are checked against it; what nobody has written yet is written instead of
    read. sweep: read each block that the ledger knows, once. The first wrong sector ends the load.
    The counters hold all requests, those of the drain included; `short` are those whose used length is not the data
    and the status (2.7.8.2).
    Raises LocalProtocolError when ring or arena has no room, DeviceTimeout when requests do not come back within ten
    seconds of the end, DeviceError for a wrong used element.
    """
    queue._check()
    arena = queue.arena
    cdef load_t *load = NULL
    cdef uint32_t n_desc = 1 if queue.indirect else segments + 2
    cdef uint32_t n_flush = (1 if queue.indirect else 2) if flush_every else 0
    if depth < 1 or depth * n_desc + n_flush > queue.free or queue.in_flight:
        raise LocalProtocolError(f"load: {depth} requests of {n_desc} descriptors do not fit {queue.free}")
    if block_len < 512 or block_len % 512 or disk_len < block_len or not 0 <= write_percent <= 100:
        raise LocalProtocolError(f"load: {block_len} bytes on a disk of {disk_len}, {write_percent} % writes")
    if not 1 <= segments <= min(SEGMENTS_MAX, block_len // 512) or (discard_percent and segments > 1):
        raise LocalProtocolError(f"load: {block_len} bytes in {segments} segments, {discard_percent} % discards")
    count = disk_len // block_len - range_first if range_blocks is None else range_blocks
    if count < 1 or range_first < 0 or (range_first + count) * block_len > disk_len:
        raise LocalProtocolError(f"load: {count} blocks from {range_first} are not on a disk of {disk_len} bytes")
    if ledger is not None and (
        (ledger.ledger.first, ledger.ledger.count) != (range_first, count) or 2 * depth > count
    ):
        raise LocalProtocolError(f"load: {depth} requests in flight want a ledger of twice as many blocks")
    if gauge is None:
        gauge = Gauge(1)
    table_len = -(-16 * (segments + 2) // 64) * 64
    stride = -(-block_len // 64) * 64
    cells = arena.alloc(CELL_LEN * (depth + 1), CELL_LEN)
    tables = arena.alloc(table_len * (depth + 1), 64)
    data = arena.alloc(stride * depth, 4096)
    cdef unsigned char[::1] cell_view = arena.view(cells, CELL_LEN * (depth + 1))
    cdef unsigned char[::1] table_view = arena.view(tables, table_len * (depth + 1))
    cdef unsigned char[::1] data_view = arena.view(data, stride * depth)
    cdef vring_desc_t **descs = NULL
    cdef uint64_t duration = duration_ns
    cdef uint64_t elapsed = 0
    cdef unsigned long slack = 0
    cdef uint32_t i
    cdef uint32_t step
    cdef uint32_t total
    cdef uint32_t at
    cdef vring_desc_t *desc
    cdef slot_t *slot
    cdef long head
    cdef int code
    kicks, publishes = queue.ring.kicks, queue.ring.publishes
    taken = []
    lost = False
    try:
        load = <load_t *>calloc(1, sizeof(load_t))
        if load == NULL:
            raise MemoryError
        load.ring = &queue.ring
        load.gauge = &gauge.gauge
        load.ledger = &ledger.ledger if ledger is not None else NULL
        load.depth = depth
        load.batch = batch or queue.ring.size
        load.segments = segments
        load.segment_len = block_len // segments // 512 * 512
        load.block_len = block_len
        load.first = range_first
        load.blocks = count
        load.next_block = 0 if sweep else first_block % count
        load.random = (seed * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF or 1
        load.write_percent = write_percent
        load.discard_percent = discard_percent
        load.flush_every = flush_every
        load.packed_tables = queue.packed and queue.indirect
        load.sequential = sequential or sweep
        load.sweep = sweep
        load.poll = poll
        load.rate = rate
        load.share = share
        load.turn = turn
        load.kick_fd = queue.kick_fd.number
        load.call_fd = queue.call_fd.number
        load.slots = <slot_t *>calloc(depth + 1, sizeof(slot_t))
        load.slot_of = <uint32_t *>calloc(queue.ring.size, sizeof(uint32_t))
        load.idle = <uint32_t *>calloc(depth, sizeof(uint32_t))
        descs = <vring_desc_t **>calloc((depth + 1) * (segments + 2), sizeof(vring_desc_t *))
        if load.slots == NULL or load.slot_of == NULL or load.idle == NULL or descs == NULL:
            raise MemoryError
        for i in range(KINDS):
            histogram_clear(&load.latency[i])
        for i in range(load.depth + (1 if n_flush else 0)):
            slot = &load.slots[i]
            total = load.segments + 2 if i < load.depth else 2  # a flush has no data
            if i < load.depth:
                head = ring_take(load.ring, n_desc, load.block_len + 1)
            else:
                head = ring_take(load.ring, n_flush, 1)
            taken.append(head)
            slot.head = <uint32_t>head
            slot.header = <blk_header_t *>&cell_view[i * CELL_LEN]
            slot.status = <uint8_t *>&cell_view[i * CELL_LEN + STATUS_AT]
            slot.segment = <blk_segment_t *>&cell_view[i * CELL_LEN + SEGMENT_AT]
            slot.segment_gpa = cells + i * CELL_LEN + SEGMENT_AT
            slot.desc = &descs[i * (load.segments + 2) + 1]
            load.slot_of[head] = i
            if queue.indirect:
                queue._write_desc(<uint32_t>head, tables + i * table_len, 16 * total, DESC_F_INDIRECT, 0)
            at = <uint32_t>head
            for step in range(total):
                if queue.indirect:
                    desc = <vring_desc_t *>&table_view[i * table_len + 16 * step]
                    if not load.packed_tables:
                        desc.next = <uint16_t>(step + 1) if step + 1 < total else 0
                else:
                    desc = &load.ring.desc[at]
                    at = load.ring.link[at]
                    desc.next = <uint16_t>at if step + 1 < total else 0
                descs[i * (load.segments + 2) + step] = desc
            at = i * (load.segments + 2)
            put(load, descs[at], cells + i * CELL_LEN, sizeof(blk_header_t), DESC_F_NEXT)
            put(load, descs[at + total - 1], cells + i * CELL_LEN + STATUS_AT, 1, DESC_F_WRITE)
            if i < load.depth:
                slot.data = <uint8_t *>&data_view[i * stride]
                slot.data_gpa = data + i * stride
                load.idle[i] = load.depth - 1 - i
                shape(load, slot, READ)
            else:
                slot.header.type = BLK_T_FLUSH
        load.idle_count = load.depth
        lost = True
        with nogil:
            if load.rate and not load.poll:
                slack = timer_slack(1)
            code = run_loop(load, duration, &elapsed)
            if slack:
                timer_slack(slack)
        if code < 0:
            if not queue.ring.broken:
                queue.ring.broken = -3  # a head came back twice: RING_E_ID
            queue._raise_broken()
        if code > 0:
            raise DeviceTimeout(f"{queue.ring.in_flight} requests did not come back")
        lost = False
        unsent = max(0, elapsed * rate // share // 1000000000 - load.sent) if rate else 0
        failed = (load.failed_status, load.failed_type, load.failed_sector) if load.errors else None
        wrong = None
        if load.wrong:
            wrong = load.wrong_sector, load.wrong_generation, bytes(load.wrong_data[:SECTOR_BYTES])
        return Counters(
            load.ios, load.ios * load.block_len, load.errors, load.short_lens, elapsed, queue.ring.kicks - kicks,
            queue.ring.publishes - publishes, load.sleeps, load.calls,
            tuple([histogram_of(&load.latency[j]) for j in range(KINDS)]), load.flushes, unsent, failed, wrong)
    finally:
        if load != NULL:
            free(load.slots)
            free(load.slot_of)
            free(load.idle)
        free(load)
        free(descs)
        if not lost:  # what did not come back is still the device's
            for head in reversed(taken):
                ring_give(&queue.ring, <uint32_t>head)
            del cell_view, table_view, data_view
            for gpa in (cells, tables, data):
                arena.free(gpa)
