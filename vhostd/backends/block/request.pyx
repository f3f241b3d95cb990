"""A chain as one checked request (5.2.6).

Bytes frame a request, not descriptors (2.7.4): the header is the first 16 device-readable bytes wherever they lie, the
status the last device-writable one. The header is copied once; what the guest does to its copy later changes nothing.
Only 0, 1 and 2 are ever written as status: 1 for a range, a read-only disk or a malformed data part, 2 for a type or
flag that is unknown or was not negotiated.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from vhostd.atomics cimport load_relaxed_u64
from vhostd.queues.chain cimport chain_t
from vhostd.queues.codes cimport VQ_E_FRAMING
from vhostd.spec.layout cimport (
    BLK_HEADER_LEN, BLK_ID_LEN, BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP, BLK_SEGMENT_LEN, BLK_T_BARRIER, BLK_T_DISCARD,
    BLK_T_FLUSH, BLK_T_GET_ID, BLK_T_IN, BLK_T_OUT, BLK_T_WRITE_ZEROES, BLK_WRITE_ZEROES_UNMAP, blk_header_t,
    blk_segment_t,
)

cdef enum:
    SECTOR_SHIFT = 9
    F_DISCARD = 1 << 13  # 5.2.3
    F_WRITE_ZEROES = 1 << 14
    TRANSFER_LEN_MAX = 67108864  # no driver asks for 64 MiB at once, and a worker is not to be held by one that does


cdef void take(iovec **iov, uint32_t *count, void *to, size_t n) noexcept nogil:
    """Copy the first `n` bytes out of the buffers and leave them behind. The caller has counted that they are there."""
    cdef uint8_t *out = <uint8_t *>to
    cdef size_t part
    while n and count[0]:
        part = iov[0].iov_len if iov[0].iov_len < n else n
        memcpy(out, iov[0].iov_base, part)
        out += part
        n -= part
        iov[0].iov_base = <uint8_t *>iov[0].iov_base + part
        iov[0].iov_len -= part
        if iov[0].iov_len == 0:
            iov[0] += 1
            count[0] -= 1


cdef uint32_t put(iovec *iov, uint32_t count, const void *source, size_t n) noexcept nogil:
    """Copy up to `n` bytes into the buffers. How many there was room for."""
    cdef const uint8_t *at = <const uint8_t *>source
    cdef size_t part
    cdef uint32_t i, total = 0
    for i in range(count):
        part = iov[i].iov_len if iov[i].iov_len < n else n
        memcpy(iov[i].iov_base, at, part)
        at += part
        n -= part
        total += <uint32_t>part
        if n == 0:
            break
    return total


cdef void request_advance(blk_req_t *r, uint64_t n) noexcept nogil:
    while n and r.iov_count:
        if r.iov.iov_len > n:
            r.iov.iov_base = <uint8_t *>r.iov.iov_base + n
            r.iov.iov_len -= n
            return
        n -= r.iov.iov_len
        r.iov += 1
        r.iov_count -= 1


cdef void answer(blk_req_t *r, uint8_t status, uint32_t written) noexcept nogil:
    r.kind = OP_ANSWER
    r.status = status
    r.written = written


cdef int in_range(const disk_t *disk, uint64_t sector, uint64_t sectors) noexcept nogil:
    # by subtraction: sector + sectors may pass 2^64, and sector * 512 passes it long before
    cdef uint64_t capacity = load_relaxed_u64(&disk.capacity_sectors)
    return sector <= capacity and sectors <= capacity - sector


cdef void parse_transfer(blk_req_t *r, const disk_t *disk, uint64_t sector, uint64_t len) noexcept nogil:
    if len & 511 or len > TRANSFER_LEN_MAX or not in_range(disk, sector, len >> SECTOR_SHIFT):
        answer(r, BLK_S_IOERR, 0)
    elif len == 0:
        answer(r, BLK_S_OK, 0)
    else:
        r.offset = sector << SECTOR_SHIFT
        r.len = len


cdef void parse_segments(
    blk_req_t *r, const disk_t *disk, uint32_t type, iovec *readable, uint32_t count, uint64_t len
) noexcept nogil:
    """Discard and write zeroes (5.2.6.2): every segment is checked before the first is carried out."""
    cdef uint64_t feature = F_DISCARD if type == BLK_T_DISCARD else F_WRITE_ZEROES
    cdef uint32_t flags = 0 if type == BLK_T_DISCARD else BLK_WRITE_ZEROES_UNMAP
    cdef const blk_segment_t *s
    cdef uint32_t i
    if not load_relaxed_u64(&disk.acked) & feature:
        answer(r, BLK_S_UNSUPP, 0)
        return
    if disk.read_only or len == 0 or len % BLK_SEGMENT_LEN or len > SEGMENTS_MAX * BLK_SEGMENT_LEN:
        answer(r, BLK_S_IOERR, 0)
        return
    take(&readable, &count, r.segments, <size_t>len)
    r.segment_count = <uint32_t>(len / BLK_SEGMENT_LEN)
    for i in range(r.segment_count):
        s = &r.segments[i]
        if s.flags & ~flags:
            answer(r, BLK_S_UNSUPP, 0)  # 5.2.6.2: MUST, and so for unmap on a discard
            return
        if s.num_sectors > SEGMENT_SECTORS_MAX or not in_range(disk, s.sector, s.num_sectors):
            answer(r, BLK_S_IOERR, 0)
            return
    r.kind = OP_DISCARD if type == BLK_T_DISCARD else OP_ZERO
    r.segment = 0


cdef int request_parse(blk_req_t *r, chain_t *chain, const disk_t *disk) noexcept nogil:
    cdef iovec *readable = chain.iov
    cdef iovec *writable = chain.iov + chain.readable
    cdef uint32_t readable_count = chain.readable
    cdef uint32_t writable_count = chain.writable
    cdef uint64_t readable_len, writable_len
    cdef iovec *last
    cdef blk_header_t header
    cdef uint32_t type
    r.tries = 0
    r.done = 0
    r.len = 0
    r.offset = 0
    r.written = 0
    r.iov_count = 0
    if chain.writable_len == 0 or chain.readable_len == 0:
        return VQ_E_FRAMING  # no place for a status, or nothing that asks for one
    last = &writable[writable_count - 1]
    if last.iov_base == NULL:
        return VQ_E_FRAMING
    last.iov_len -= 1
    r.status_at = <uint8_t *>last.iov_base + last.iov_len
    if last.iov_len == 0:
        writable_count -= 1
    writable_len = chain.writable_len - 1
    r.room = writable_len
    if chain.bad or chain.readable_len < BLK_HEADER_LEN:
        answer(r, BLK_S_IOERR, 0)
        return 0
    take(&readable, &readable_count, &header, BLK_HEADER_LEN)
    readable_len = chain.readable_len - BLK_HEADER_LEN
    type = header.type & ~<uint32_t>BLK_T_BARRIER
    if type == BLK_T_IN:
        r.kind = OP_READ
        r.iov = writable
        r.iov_count = writable_count
        if readable_len:
            answer(r, BLK_S_IOERR, 0)
        else:
            parse_transfer(r, disk, header.sector, writable_len)
    elif type == BLK_T_OUT:
        r.kind = OP_WRITE
        r.iov = readable
        r.iov_count = readable_count
        if writable_len or disk.read_only:
            answer(r, BLK_S_IOERR, 0)
        else:
            parse_transfer(r, disk, header.sector, readable_len)
    elif type == BLK_T_FLUSH:
        r.kind = OP_FLUSH
    elif type == BLK_T_GET_ID:
        answer(r, BLK_S_OK, put(writable, writable_count, disk.serial, BLK_ID_LEN))
    elif type == BLK_T_DISCARD or type == BLK_T_WRITE_ZEROES:
        parse_segments(r, disk, type, readable, readable_count, readable_len)
    else:
        answer(r, BLK_S_UNSUPP, 0)
    return 0
