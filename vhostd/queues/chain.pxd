"""The one checked walk from a head to buffers in our address space. Any worker, no GIL."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vhostd.queues.split cimport queue_t

cdef enum:
    CHAIN_INDIRECT_MAX = 1024  # entries of an indirect table we accept, however small the ring
    # iovecs for the longest chain, with room for buffers that a border between regions cuts in two
    CHAIN_IOV_MAX = 1040

# Buffers in the order of the chain: device-readable first, then device-writable (2.7.4.2).
# A buffer that is not mapped has iov_base NULL and sets `bad`; whoever uses the chain answers for it.
cdef struct chain_t:
    iovec *iov
    uint32_t iov_max
    uint32_t readable  # iovecs
    uint32_t writable  # iovecs, behind the readable ones
    uint64_t readable_len
    uint64_t writable_len
    uint32_t bad

# VQ_CHAIN, or a code; the caller breaks the ring with it.
cdef int chain_walk(queue_t *q, uint16_t head, chain_t *chain) noexcept nogil
