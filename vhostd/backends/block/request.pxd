"""A chain as one checked request. Worker only, no GIL."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vhostd.queues.chain cimport CHAIN_IOV_MAX, chain_t
from vhostd.spec.layout cimport blk_segment_t
from vhostd.workers.handler cimport op_t

cdef enum:
    SEGMENTS_MAX = 32  # of one discard or write-zeroes request; told in the config space
    SEGMENT_SECTORS_MAX = 0x400000  # 2 GiB in one segment: bounds what one request can keep the host busy with

# What is behind the rings of one disk. The control thread writes capacity, write_through and acked; workers read them
# with relaxed loads, and set flush_failed.
cdef struct disk_t:
    int fd
    uint32_t read_only
    uint32_t direct
    uint32_t memory_align
    uint32_t zero_in_place  # fallocate can zero a range
    uint64_t capacity_sectors
    uint64_t acked  # features of the driver
    uint32_t write_through
    uint32_t flush_failed
    uint8_t serial[20]

cdef enum blk_op_t:
    OP_ANSWER  # nothing to do: status is known
    OP_READ
    OP_WRITE
    OP_FLUSH
    OP_DISCARD
    OP_ZERO

cdef struct blk_req_t:
    op_t op  # first: an io_uring completion points here
    uint16_t head
    uint16_t at_kernel  # an io_uring entry points here
    uint16_t tries
    uint8_t kind  # blk_op_t
    uint8_t status  # for OP_ANSWER
    uint8_t *status_at
    uint64_t offset  # bytes: of data, or of the segment at hand
    uint64_t len  # bytes, all of it
    uint64_t done  # bytes
    uint64_t room  # device-writable bytes before the status byte
    uint32_t written  # bytes of device-writable buffers written before the status byte, for OP_ANSWER
    uint32_t iov_count
    iovec *iov  # what is still to be transferred
    uint32_t segment
    uint32_t segment_count
    blk_segment_t segments[SEGMENTS_MAX]
    iovec store[CHAIN_IOV_MAX]

# 0 with `r` filled, or a negative code when the chain has no byte to put a status in.
cdef int request_parse(blk_req_t *r, chain_t *chain, const disk_t *disk) noexcept nogil
# Leave `n` transferred bytes behind.
cdef void request_advance(blk_req_t *r, uint64_t n) noexcept nogil
