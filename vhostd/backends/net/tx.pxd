"""Chains to tap. Worker only, no GIL."""

from libc.stdint cimport uint32_t, uint64_t

from vhostd.backends.net.pair cimport pair_t

# Up to TURN frames; how many. The transmit slot is open.
cdef uint32_t tx_turn(pair_t *p, uint64_t mode) noexcept nogil
