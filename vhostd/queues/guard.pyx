"""Survive the truncation of guest memory: SIGBUS inside a guarded range becomes zero pages and a flag.

A front-end can cut the file behind a region short at any time; the next touch of a vanished page is a SIGBUS in
whatever thread touches it. The handler looks the address up in a table of mapped regions, lays anonymous zero pages
over the rest of that region and raises the region's flag, which a worker looks at before it publishes anything. Any
other SIGBUS goes to whom it belonged before.

Copies that have another way to go need no zero pages: guard_gather and guard_scatter end where they met the page that
is not there, and say so. Nothing is laid over it, and no flag is raised.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from posix.uio cimport iovec

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <setjmp.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/uio.h>
    #include <unistd.h>

    /* 509 memory slots, twice over while a new table replaces an old one, and room for a second device. */
    #define GUARD_SLOTS 2048

    typedef struct {
        uintptr_t start;  /* written last when a slot is taken, first when it is given back */
        uintptr_t end;
        uintptr_t granule_mask;  /* of huge pages: a part of one cannot be mapped over */
        uint32_t *flag;
    } guard_slot_t;

    static guard_slot_t guard_slots[GUARD_SLOTS];
    static struct sigaction guard_previous;
    static int guard_installed;
    /* Where a copy of this thread goes on when it meets a page that is not there. In static TLS: a handler that was the
       first of its thread to touch it may not allocate. */
    static __thread __attribute__((tls_model("initial-exec"))) sigjmp_buf *volatile guard_landing;

    /* Async-signal-safe: reads the table with atomic loads, calls mmap and sigaction only. */
    static void guard_handler(int sig, siginfo_t *info, void *context)
    {
        int saved_errno = errno;
        uintptr_t at = (uintptr_t)info->si_addr;
        sigjmp_buf *landing = guard_landing;
        if (landing != NULL) {
            guard_landing = NULL;
            siglongjmp(*landing, 1); /* SIGBUS is not blocked in here (SA_NODEFER), so there is no mask to restore */
        }
        for (int i = 0; i < GUARD_SLOTS; i++) {
            guard_slot_t *slot = &guard_slots[i];
            /* acquire: pairs with the release in guard_add_impl, so end and flag belong to this start */
            uintptr_t start = __atomic_load_n(&slot->start, __ATOMIC_ACQUIRE);
            if (start == 0 || at < start || at >= slot->end)
                continue;
            uintptr_t page = at & slot->granule_mask;
            /* The flag first: a thread that copies from or to the pages laid here finds it raised when it looks
               afterwards. release: pairs with the acquire of whoever looks; mmap is a full barrier of its own. */
            __atomic_store_n(slot->flag, 1, __ATOMIC_RELEASE);
            void *got = mmap((void *)page, slot->end - page, PROT_READ | PROT_WRITE,
                             MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (got == MAP_FAILED)
                break;
            errno = saved_errno;
            return;
        }
        /* Not ours: give it back, and let the faulting instruction run into it again. */
        sigaction(SIGBUS, &guard_previous, NULL);
        errno = saved_errno;
        (void)sig;
        (void)context;
    }

    static int guard_install(void)
    {
        struct sigaction action;
        if (guard_installed)
            return 0;
        memset(&action, 0, sizeof(action));
        action.sa_sigaction = guard_handler;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigemptyset(&action.sa_mask);
        if (sigaction(SIGBUS, &action, &guard_previous) < 0)
            return -1;
        guard_installed = 1;
        return 0;
    }

    static int guard_add_impl(void *start, size_t length, size_t granule, uint32_t *flag)
    {
        if (guard_install() < 0)
            return -1;
        for (int i = 0; i < GUARD_SLOTS; i++) {
            guard_slot_t *slot = &guard_slots[i];
            if (slot->start != 0)
                continue;
            slot->end = (uintptr_t)start + length;
            slot->flag = flag;
            slot->granule_mask = ~((uintptr_t)granule - 1);
            /* release: pairs with the acquire in guard_handler */
            __atomic_store_n(&slot->start, (uintptr_t)start, __ATOMIC_RELEASE);
            return i;
        }
        return -1;
    }

    /* 0, or -1 when a page was not there. What was copied before that stays copied. */
    static int guard_gather_impl(void *to, const struct iovec *iov, uint32_t count)
    {
        sigjmp_buf landing;
        uint8_t *volatile next = (uint8_t *)to;
        if (sigsetjmp(landing, 0))
            return -1;
        guard_landing = &landing;
        for (volatile uint32_t i = 0; i < count; i++) {
            memcpy(next, iov[i].iov_base, iov[i].iov_len);
            next += iov[i].iov_len;
        }
        __asm__ __volatile__("" ::: "memory"); /* no copy is moved behind the end of the landing */
        guard_landing = NULL;
        return 0;
    }

    static int guard_scatter_impl(const struct iovec *iov, uint32_t count, const void *from)
    {
        sigjmp_buf landing;
        const uint8_t *volatile next = (const uint8_t *)from;
        if (sigsetjmp(landing, 0))
            return -1;
        guard_landing = &landing;
        for (volatile uint32_t i = 0; i < count; i++) {
            memcpy(iov[i].iov_base, next, iov[i].iov_len);
            next += iov[i].iov_len;
        }
        __asm__ __volatile__("" ::: "memory");
        guard_landing = NULL;
        return 0;
    }

    static void guard_remove_impl(int i)
    {
        if (i >= 0 && i < GUARD_SLOTS)
            __atomic_store_n(&guard_slots[i].start, 0, __ATOMIC_RELEASE);
    }
    """
    int guard_add_impl(void *start, size_t length, size_t granule, uint32_t *flag)
    void guard_remove_impl(int slot)
    int guard_install()
    int guard_gather_impl(void *to, const iovec *iov, uint32_t count)
    int guard_scatter_impl(const iovec *iov, uint32_t count, const void *source)


cdef int guard_add(void *start, size_t length, size_t granule, uint32_t *flag) noexcept nogil:
    return guard_add_impl(start, length, granule, flag)


cdef void guard_remove(int slot) noexcept nogil:
    guard_remove_impl(slot)


cdef int guard_ready() noexcept nogil:
    return guard_install()


cdef int guard_gather(void *to, const iovec *iov, uint32_t count) noexcept nogil:
    return guard_gather_impl(to, iov, count)


cdef int guard_scatter(const iovec *iov, uint32_t count, const void *source) noexcept nogil:
    return guard_scatter_impl(iov, count, source)
