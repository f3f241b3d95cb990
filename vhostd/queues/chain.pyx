"""The one checked walk from a head to buffers in our address space (2.7.5, 2.7.5.3).

Each descriptor is copied once into our own memory, checked, then used. Descriptors are counted, not bytes, so that a
loop of empty ones ends too. Framing is not interpreted (2.7.4): a caller gets bytes, wherever they lie.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vhostd.atomics cimport load_relaxed_u16, load_relaxed_u32, load_relaxed_u64
from vhostd.queues.codes cimport (
    VQ_CHAIN, VQ_E_INDIRECT, VQ_E_LENGTH, VQ_E_LOOP, VQ_E_NEXT, VQ_E_ORDER, VQ_E_TABLE,
)
from vhostd.queues.memory cimport memory_at, memory_copy_in
from vhostd.queues.split cimport queue_t
from vhostd.spec.layout cimport DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, vring_desc_t


cdef inline void read_desc(const vring_desc_t *at, vring_desc_t *copy) noexcept nogil:
    # relaxed: ordered by the acquire of avail.idx; each field once, so that no check and use can differ
    copy.addr = load_relaxed_u64(&at.addr)
    copy.len = load_relaxed_u32(&at.len)
    copy.flags = load_relaxed_u16(&at.flags)
    copy.next = load_relaxed_u16(&at.next)


cdef int add_buffer(queue_t *q, chain_t *c, const vring_desc_t *d) noexcept nogil:
    """Append one descriptor's bytes as iovecs, split where a border between regions cuts them."""
    cdef uint64_t gpa = d.addr
    cdef uint64_t left = d.len
    cdef uint64_t run
    cdef uint8_t *at
    cdef iovec *iov
    if d.flags & DESC_F_WRITE:
        c.writable_len += left
    else:
        if c.writable:
            return VQ_E_ORDER
        c.readable_len += left
    if c.writable_len + c.readable_len > 0xFFFFFFFFULL:
        return VQ_E_LENGTH  # 2.7.5: "the driver MUST NOT add a descriptor chain longer than 2^32 bytes"
    # An empty descriptor is skipped untouched, wherever it points.
    while left:
        if c.readable + c.writable >= c.iov_max:
            return VQ_E_LOOP
        run = 0
        at = memory_at(q.mem, &q.hint, gpa, left, &run)
        iov = &c.iov[c.readable + c.writable]
        if at == NULL:
            c.bad = 1
            run = left  # the rest of it is as good as unmapped; the bytes still count
        iov.iov_base = at
        iov.iov_len = <size_t>run
        if d.flags & DESC_F_WRITE:
            c.writable += 1
        else:
            c.readable += 1
        gpa += run
        left -= run
        if left and gpa == 0:  # wrapped past 2^64: nothing is mapped there
            gpa = <uint64_t>-1
    return VQ_CHAIN


cdef int walk_indirect(queue_t *q, chain_t *c, const vring_desc_t *table, uint32_t *steps) noexcept nogil:
    """Walk an indirect table (2.7.5.3). The WRITE flag of the descriptor that refers to it is ignored (2.7.5.3.2)."""
    cdef uint32_t entries = table.len >> 4
    cdef uint32_t i = 0
    cdef uint64_t run = 0
    cdef vring_desc_t d
    cdef const vring_desc_t *near
    cdef int code
    if not q.indirect or table.flags & DESC_F_NEXT:
        return VQ_E_INDIRECT
    if entries == 0 or table.len & 15 or entries > q.chain_max or table.addr + table.len < table.addr:
        return VQ_E_TABLE
    near = <const vring_desc_t *>memory_at(q.mem, &q.hint, table.addr, table.len, &run)
    if near == NULL:
        return VQ_E_TABLE
    while True:
        if steps[0] >= q.chain_max:
            return VQ_E_LOOP
        steps[0] += 1
        if run == table.len:
            read_desc(&near[i], &d)
        elif memory_copy_in(q.mem, &q.hint, &d, table.addr + <uint64_t>i * sizeof(d), sizeof(d)) < 0:
            return VQ_E_TABLE
        if d.flags & DESC_F_INDIRECT:
            return VQ_E_INDIRECT
        code = add_buffer(q, c, &d)
        if code < 0:
            return code
        if not d.flags & DESC_F_NEXT:
            return VQ_CHAIN
        if d.next >= entries:
            return VQ_E_NEXT
        i = d.next


cdef int chain_walk(queue_t *q, uint16_t head, chain_t *c) noexcept nogil:
    """Turn a head into buffers. VQ_CHAIN with `chain` filled, or the rule that the chain breaks."""
    cdef vring_desc_t d
    cdef uint16_t i = head
    cdef uint32_t steps = 0
    cdef uint32_t hops = 0
    cdef int code
    c.readable = 0
    c.writable = 0
    c.readable_len = 0
    c.writable_len = 0
    c.bad = 0
    while True:
        if hops >= q.size:
            return VQ_E_LOOP
        hops += 1
        read_desc(&q.desc[i], &d)
        if d.flags & DESC_F_INDIRECT:
            return walk_indirect(q, c, &d, &steps)  # 2.7.5.3.1: never with NEXT, so always the last
        steps += 1
        code = add_buffer(q, c, &d)
        if code < 0:
            return code
        if not d.flags & DESC_F_NEXT:
            return VQ_CHAIN
        if d.next >= q.size:
            return VQ_E_NEXT
        i = d.next
