"""A virtqueue's memory and its eventfds, with every field as it stands there."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.driver.ring cimport ring_t

cdef class RingMemory:
    cdef ring_t ring
    cdef readonly object arena
    cdef readonly object kick_fd
    cdef readonly object call_fd
    cdef readonly object err_fd
    cdef readonly unsigned long long desc_gpa
    cdef readonly unsigned long long avail_gpa
    cdef readonly unsigned long long used_gpa
    cdef readonly bint packed
    cdef object _allocation
    cdef unsigned char[::1] _desc_view
    cdef unsigned char[::1] _avail_view
    cdef unsigned char[::1] _used_view
    cdef bint _open
    cdef bint _own_call
    cdef int _check(self) except -1
    cdef int _check_split(self) except -1
    cdef int _check_packed(self) except -1
    cdef int _let_go(self) except -1
    cdef int _zero(self, object base) except -1
    cdef void _write_desc(self, uint32_t index, uint64_t addr, uint32_t length, uint16_t flags, uint16_t next_) noexcept
