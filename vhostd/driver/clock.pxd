"""The driver side's clock, and waiting for a descriptor until a moment in it."""

from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <poll.h>
    #include <stdint.h>
    #include <sys/prctl.h>
    #include <time.h>
    /* poll with a time-out in ns: with poll's milliseconds no request could be due in between. */
    static inline int poll_ns(struct pollfd *fds, unsigned long count, uint64_t ns) {
        struct timespec limit = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
        return ppoll(fds, count, &limit, 0);
    }
    /* Timers of this thread fire within `ns`, where the kernel takes 50 us by default; returns what was before. */
    static inline unsigned long timer_slack(unsigned long ns) {
        int before = prctl(PR_GET_TIMERSLACK);
        prctl(PR_SET_TIMERSLACK, ns);
        return before > 0 ? (unsigned long)before : 50000ul;
    }
    """
    int poll_ns(pollfd *fds, unsigned long count, uint64_t ns)
    unsigned long timer_slack(unsigned long ns)


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec
