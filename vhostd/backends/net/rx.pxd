"""Tap to chains. Worker only, no GIL."""

from libc.stdint cimport uint32_t, uint64_t

from vhostd.backends.net.pair cimport pair_t

# Up to TURN frames; how much was done. The receive slot is open.
cdef uint32_t rx_turn(pair_t *p, uint64_t mode) noexcept nogil
# Forget the frame that waits for buffers, if one does.
cdef void rx_forget(pair_t *p) noexcept nogil
# Whether a frame that was set aside is to be looked at again.
cdef int rx_due(const pair_t *p) noexcept nogil
