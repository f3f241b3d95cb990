"""Loads, stores and fences on memory that another side writes, named by their order.

No other file spells one. Each use says in a comment what it pairs with.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    static inline uint16_t load_relaxed_u16(const volatile uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint32_t load_relaxed_u32(const volatile uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint64_t load_relaxed_u64(const volatile uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint16_t load_acquire_u16(const volatile uint16_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint32_t load_acquire_u32(const volatile uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint64_t load_acquire_u64(const volatile uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store_relaxed_u16(volatile uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store_relaxed_u32(volatile uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store_relaxed_u64(volatile uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store_release_u16(volatile uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store_release_u32(volatile uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store_release_u64(volatile uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void or_relaxed_u64(volatile uint64_t *p, uint64_t v) { __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
    static inline void and_relaxed_u64(volatile uint64_t *p, uint64_t v) { __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }
    static inline void fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline void cpu_relax(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }
    """
    uint16_t load_relaxed_u16(const uint16_t *p)
    uint32_t load_relaxed_u32(const uint32_t *p)
    uint64_t load_relaxed_u64(const uint64_t *p)
    uint16_t load_acquire_u16(const uint16_t *p)
    uint32_t load_acquire_u32(const uint32_t *p)
    uint64_t load_acquire_u64(const uint64_t *p)
    void store_relaxed_u16(uint16_t *p, uint16_t v)
    void store_relaxed_u32(uint32_t *p, uint32_t v)
    void store_relaxed_u64(uint64_t *p, uint64_t v)
    void store_release_u16(uint16_t *p, uint16_t v)
    void store_release_u32(uint32_t *p, uint32_t v)
    void store_release_u64(uint64_t *p, uint64_t v)
    # Set or clear bits in one step, whoever else does the same to others of the word.
    void or_relaxed_u64(uint64_t *p, uint64_t v)
    void and_relaxed_u64(uint64_t *p, uint64_t v)
    # A full fence orders an earlier store before a later load: the only order x86 does not give by itself.
    void fence_full()
    # Earlier loads and stores before later stores.
    void fence_release()
    void cpu_relax()
