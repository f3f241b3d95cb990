"""Guest memory: regions, and the one place where a guest address becomes a pointer."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct region_t:
    uint64_t gpa
    uint64_t len
    uint64_t uva
    uint8_t *hva

# Sorted by gpa, never changed after it was built. Any thread may read it while a GuestMemory holds it.
cdef struct memmap_t:
    region_t *regions
    uint32_t count
    uint32_t *faulted  # raised by guard.pyx when a page of a region has vanished

# Our address of guest memory at `gpa`, and in `run` how many of `len` bytes lie there in one piece (>= 1 when len > 0).
# NULL when the first byte is unmapped. `hint` is the caller's own, for the region found last. No GIL.
cdef uint8_t *memory_at(const memmap_t *map, uint32_t *hint, uint64_t gpa, uint64_t len, uint64_t *run) noexcept nogil
# Copy `len` bytes from guest memory, over borders of adjacent regions. 0, or -1 when a byte is unmapped. No GIL.
cdef int memory_copy_in(const memmap_t *map, uint32_t *hint, void *to, uint64_t gpa, uint64_t len) noexcept nogil

cdef class Fault:
    cdef uint32_t flag

cdef class Region:
    cdef region_t c
    cdef void *base
    cdef size_t base_len
    cdef int slot
    cdef int exports
    cdef bint closing
    cdef Fault fault
    cdef void unmap(self) noexcept

cdef class GuestMemory:
    cdef memmap_t c
    cdef readonly tuple regions
    cdef readonly Fault fault
