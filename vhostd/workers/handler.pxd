"""What a worker calls. A back-end embeds handler_t as the first field of its own struct.

All of it runs on the worker's thread, without the GIL; nothing may block but bounded system calls.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    READY_LATE = 0x40000000  # the worker looked after a silence: nobody kicked
    READY_POLL = 0x20000000  # found by polling
    READY_AGAIN = 0x10000000  # the handler itself asked to be run again

cdef struct handler_t:
    # One bounded turn. `ready`: the bits of the sources that fired. Returns how much was done (0: nothing).
    # To be run again in the next pass, set handler.ready.
    uint32_t (*run)(handler_t *h, uint32_t ready) noexcept nogil
    # Publish and call, once per pass in which the handler ran or a request of its completed.
    void (*flush)(handler_t *h) noexcept nogil
    # The ready bits of what can be seen without a system call. For polling: reads a shared word or two.
    uint32_t (*peek)(handler_t *h) noexcept nogil
    # Ask for notifications again; the ready bits of what came meanwhile.
    uint32_t (*arm)(handler_t *h) noexcept nogil
    # An io_uring entry whose user_data points to an op_t of this handler has completed.
    void (*complete)(handler_t *h, op_t *op, int32_t res) noexcept nogil
    void *worker  # worker_t, while it has one
    uint64_t user  # who is told by worker_report
    uint32_t ready
    uint32_t dirty  # flush is due
    uint32_t armed  # notifications are asked for

# The first field of whatever an io_uring entry's user_data points to.
cdef struct op_t:
    handler_t *handler

# A descriptor the worker waits on for a handler (edge-triggered). Lives until worker_unwatch.
cdef struct source_t:
    handler_t *handler
    uint32_t bit  # what `ready` gets
    int fd
