"""Survive the truncation of guest memory: SIGBUS inside a guarded range becomes zero pages and a flag."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

# Any thread with the GIL. `flag` is raised by the handler and must live until guard_remove. Returns a slot or -1.
cdef int guard_add(void *start, size_t length, size_t granule, uint32_t *flag) noexcept nogil
cdef void guard_remove(int slot) noexcept nogil
