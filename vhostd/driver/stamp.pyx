"""Stamps and the ledger of generations: which content each block must have now."""

import collections

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from vhostd.errors import LocalProtocolError

Stamp = collections.namedtuple("Stamp", "sector generation run intact")

cdef enum:
    WORDS = 64  # of a sector

cdef extern from * nogil:
    int __builtin_ctzll(unsigned long long value)


cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    value ^= value >> 31
    value *= <uint64_t>0x9E3779B97F4A7C15
    return value ^ (value >> 29)


cdef void sector_fill(uint64_t *word, uint64_t sector, uint32_t generation, uint64_t run) noexcept nogil:
    cdef uint64_t seed = mix(sector ^ mix(run + generation))
    cdef uint64_t step = seed | 1
    cdef uint64_t total = mix(sector + generation) ^ run
    cdef int i
    word[0] = sector
    word[2] = run
    for i in range(3, WORDS):
        seed += step
        word[i] = seed
        total = (total << 1 | total >> 63) ^ seed
    word[1] = generation | mix(total) << 32


cdef void stamp_fill(uint8_t *data, uint64_t length, uint64_t sector, uint32_t generation, uint64_t run) noexcept nogil:
    cdef uint64_t at = 0
    while at < length:
        sector_fill(<uint64_t *>(data + at), sector, generation, run)
        sector += 1
        at += SECTOR_BYTES


cdef int64_t stamp_check(
    const uint8_t *data, uint64_t length, uint64_t sector, uint32_t generation, uint64_t run, bint any_run
) noexcept nogil:
    cdef uint64_t expected[WORDS]
    cdef const uint64_t *seen
    cdef uint64_t at = 0
    cdef uint64_t i
    while at < length:
        seen = <const uint64_t *>(data + at)
        if any_run:
            generation = <uint32_t>seen[1]
            run = seen[2]
        sector_fill(expected, sector, generation, run)
        if memcmp(seen, expected, SECTOR_BYTES) != 0:
            for i in range(WORDS):
                if seen[i] != expected[i]:
                    return <int64_t>(at + 8 * i) + __builtin_ctzll(seen[i] ^ expected[i]) // 8
        sector += 1
        at += SECTOR_BYTES
    return -1


@cython.final
cdef class Ledger:
    """The generation of each block in [first, first + count), a range that one queue owns.

    run: 64 bits that tell this run's stamps from all others'. any_run: blocks need only agree with themselves.
    """

    def __cinit__(self, first, count, run, *, any_run=False):
        memset(&self.ledger, 0, sizeof(self.ledger))
        if count < 1:
            raise LocalProtocolError("ledger: no blocks")
        self.ledger.generations = <uint32_t *>calloc(count, sizeof(uint32_t))
        if self.ledger.generations == NULL:
            raise MemoryError
        self.ledger.first = first
        self.ledger.count = count
        self.ledger.run = run
        self.ledger.any_run = any_run

    def __dealloc__(self):
        free(self.ledger.generations)

    @property
    def written(self):
        """How many blocks have a known content."""
        cdef uint64_t i
        cdef uint64_t total = 0
        with nogil:
            for i in range(self.ledger.count):
                total += (self.ledger.generations[i] & ~<uint32_t>GENERATION_BUSY) != 0
        return total

    @property
    def run(self):
        """The run that is written into each stamp."""
        return self.ledger.run

    def generation(self, block):
        """Return the generation of a block, 0 when its content is not known. Raises IndexError outside the range."""
        if not self.ledger.first <= block < self.ledger.first + self.ledger.count:
            raise IndexError(block)
        return self.ledger.generations[block - self.ledger.first] & ~<uint32_t>GENERATION_BUSY


def stamped(length, sector, generation, run):
    """Return `length` bytes as a verified load writes them from `sector` on."""
    cdef bytearray made = bytearray(length)
    cdef uint8_t[::1] view = made
    if length % SECTOR_BYTES or not length:
        raise LocalProtocolError(f"stamp: {length} bytes are no whole sectors")
    stamp_fill(&view[0], length, sector, generation, run)
    return bytes(made)


def first_wrong(data, sector, generation, run, *, any_run=False):
    """Return the offset of the first byte that is not as `stamped` would have it, or None."""
    cdef const uint8_t[::1] view = data
    if len(data) % SECTOR_BYTES or not len(data):
        raise LocalProtocolError(f"stamp: {len(data)} bytes are no whole sectors")
    cdef int64_t at = stamp_check(&view[0], len(data), sector, generation, run, any_run)
    return None if at < 0 else at


def read_stamp(data):
    """Return the Stamp that 512 bytes carry; it is `intact` when all of them agree with it."""
    cdef const uint8_t[::1] view = data
    if len(data) != SECTOR_BYTES:
        raise LocalProtocolError(f"stamp: {len(data)} bytes are no sector")
    cdef const uint64_t *word = <const uint64_t *>&view[0]
    cdef uint32_t generation = <uint32_t>word[1]
    intact = stamp_check(&view[0], SECTOR_BYTES, word[0], generation, word[2], False) < 0
    return Stamp(word[0], generation, word[2], intact)
