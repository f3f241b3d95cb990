"""Stamps: what a verified load writes, so that whoever reads it can tell whose and how old it is.

Each 512 bytes carry le64 sector, le32 generation, le32 checksum of the rest, le64 run, then 488 bytes that follow from
those: a block that went elsewhere, an old block and a torn block all differ from what is expected, and say what they
are. One thread owns a Ledger; its functions take the struct, and no GIL.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    SECTOR_BYTES = 512
    GENERATION_BUSY = 0x80000000  # beside the generation: a request on the block is in flight

cdef struct ledger_t:
    uint32_t *generations  # of each block of the range: 0 is unknown, with GENERATION_BUSY while in flight
    uint64_t first  # block
    uint64_t count  # blocks
    uint64_t run
    bint any_run  # what is read need only agree with itself: another run has written it

# Fill `length` bytes, whole sectors from `sector` on.
cdef void stamp_fill(uint8_t *data, uint64_t length, uint64_t sector, uint32_t generation, uint64_t run) noexcept nogil
# The offset of the first byte that is not as expected, or -1.
cdef int64_t stamp_check(
    const uint8_t *data, uint64_t length, uint64_t sector, uint32_t generation, uint64_t run, bint any_run
) noexcept nogil

cdef class Ledger:
    cdef ledger_t ledger
