"""Survive the truncation of guest memory: SIGBUS inside a guarded range becomes zero pages and a flag."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from posix.uio cimport iovec

# Any thread with the GIL. `flag` is raised by the handler and must live until guard_remove. Returns a slot or -1.
cdef int guard_add(void *start, size_t length, size_t granule, uint32_t *flag) noexcept nogil
cdef void guard_remove(int slot) noexcept nogil

# Any thread, no GIL: copy all of the buffers to `to`, or from `source` into all of them. 0, or -1 when a page on either
# side was not to be had; what was copied before that stays copied. After guard_ready or guard_add.
cdef int guard_ready() noexcept nogil
cdef int guard_gather(void *to, const iovec *iov, uint32_t count) noexcept nogil
cdef int guard_scatter(const iovec *iov, uint32_t count, const void *source) noexcept nogil
