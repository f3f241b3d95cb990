"""One io_uring: prepared entries in, completions out. Its worker only; no GIL."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from vhostd.uring.liburing cimport c_io_uring, io_uring_sqe

cdef struct uring_t:
    c_io_uring ring
    uint32_t prepared  # entries filled and not yet submitted
    uint32_t in_flight  # submitted and not yet reaped, cancellations apart
    uint32_t alive
    uint32_t bell_on  # completions write to bell_fd
    int bell_fd  # an eventfd; polling the ring's own descriptor misses deferred completions

cdef struct completion_t:
    uint64_t user_data
    int32_t res

# The worker's thread becomes the ring's only submitter. 0 or -errno.
cdef int uring_enable(uring_t *u) noexcept nogil
# A free entry, tagged; submits what is prepared when the queue is full. NULL when the kernel takes nothing now.
cdef io_uring_sqe *uring_entry(uring_t *u, uint64_t user_data) noexcept nogil
# One system call: submit all that is prepared and run what has completed. 0 or -errno.
cdef int uring_enter(uring_t *u) noexcept nogil
# Take up to `max` completions. How many.
cdef uint32_t uring_reap(uring_t *u, completion_t *out, uint32_t max) noexcept nogil
# Whether there is something to run or reap; reads shared memory only.
cdef int uring_ready(uring_t *u) noexcept nogil
# Before sleeping: have completions ring the bell. 1 when there is something to run or reap already.
cdef int uring_bell_on(uring_t *u) noexcept nogil
# After sleeping: completions are looked for anyway, a bell for each would only cost.
cdef void uring_bell_off(uring_t *u) noexcept nogil
# Ask the kernel to cancel the entry with this user_data.
cdef int uring_cancel(uring_t *u, uint64_t user_data) noexcept nogil

cdef class Ring:
    cdef uring_t c
