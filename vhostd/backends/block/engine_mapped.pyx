"""Through a mapping of the image: a copy instead of a system call, for what is allocated and in the page cache.

A copy of 4 KiB costs less than half of a preadv2 that finds them in the page cache, and a store into a page touches
none of the bookkeeping that ext4 walks for each write of a large folio. What a mapping cannot do it must not be asked:

COLD      A page that is not in the page cache would have the worker wait for the disk. So a chunk of 64 KiB is used
          only when it is warm: an ordinary request has just been carried out in it, and mincore says that all of it is
          there. Major faults of the thread are the alarm that it went again; then every chunk is cold.
HOLES     A store into a hole allocates at a moment that has no error to return. So a chunk is warm only when
          SEEK_HOLE finds none in it; discards and zeroing make theirs cold, before and after.
FAULTS    A page that cannot be had, of the image (cut short, a disk error, no space after all) or of guest memory, ends
          the copy, and the request is done again below, by system calls, which tell what is really the matter.
DURABLE   A store makes a page dirty as a write does, and a flush covers both. Durable writes go below.
CUT SHORT A file that ends within a page has zeroes in the rest of it, which swallow stores without a fault. So its size
          is compared when a read ends in a zero, once a turn; from time to time; before a write that could give it its
          length back and so hide what was swallowed; and by each flush after the first store, which then fails.
SHARED    Bits are hints: whichever way workers race for one, a copy has the outcome of an ordinary request that races
          the same way, or faults and is done again. A bit that was set by a look before a hole was made and outlives
          it costs nothing else: where files are mapped, a store into a hole finds its room or faults then and there.
"""

from libc.errno cimport EIO, ENOMEM, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.types cimport off_t
from posix.uio cimport iovec

from vhostd.atomics cimport (
    and_relaxed_u64, load_relaxed_u32, load_relaxed_u64, or_relaxed_u64, store_relaxed_u32, store_relaxed_u64,
)
from vhostd.backends.block.engine cimport ENGINE_DONE, blk_map_t, engine_t
from vhostd.backends.block.request cimport OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_ZERO, blk_req_t
from vhostd.queues.guard cimport guard_gather, guard_ready, guard_scatter

cdef extern from "<sys/mman.h>" nogil:
    void *c_mmap "mmap"(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int c_munmap "munmap"(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    int mincore(void *addr, size_t length, unsigned char *vec)
    void *MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_SHARED, MADV_DONTDUMP

cdef extern from "<sys/resource.h>" nogil:
    cdef struct rusage_t "rusage":
        long ru_majflt
    int getrusage(int who, rusage_t *usage)

cdef extern from * nogil:
    """
    #define _GNU_SOURCE
    #include <stddef.h>
    #include <stdint.h>
    #include <sys/resource.h>
    #include <sys/stat.h>
    #include <unistd.h>
    #ifndef RUSAGE_THREAD
    #define RUSAGE_THREAD 1
    #endif
    #ifndef SEEK_HOLE
    #define SEEK_HOLE 4
    #endif
    /* Of the file behind fd; -1 when it does not say. */
    static inline int64_t file_len(int fd)
    {
        struct stat status;
        return fstat(fd, &status) < 0 ? -1 : (int64_t)status.st_size;
    }
    """
    int RUSAGE_THREAD
    int SEEK_HOLE
    off_t lseek(int fd, off_t offset, int whence)
    int64_t file_len(int fd)

cdef enum:
    CHUNK_LEN = 1 << CHUNK_SHIFT
    CHUNK_PAGES = CHUNK_LEN >> 12
    LOOK_MAX = 32  # chunks of one request that are looked at
    ALARM_EVERY = 64  # copies between two looks at the thread's major faults
    FORGET_EVERY = 65536  # requests done below between two times that `tried` is forgotten


cdef inline int bit_of(const uint64_t *bits, uint64_t chunk) noexcept nogil:
    return load_relaxed_u64(&bits[chunk >> 6]) >> (chunk & 63) & 1


cdef int is_warm(const blk_map_t *m, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t chunk = offset >> CHUNK_SHIFT
    cdef uint64_t last = (offset + length - 1) >> CHUNK_SHIFT
    if offset >= m.len or length > m.len - offset:
        return 0
    while chunk <= last:
        if not bit_of(m.warm, chunk):
            return 0
        chunk += 1
    return 1


cdef void make_cold(blk_map_t *m, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t chunk, last
    if length == 0 or offset >= m.len:
        return
    last = (min(offset + length, m.len) - 1) >> CHUNK_SHIFT
    chunk = offset >> CHUNK_SHIFT
    while chunk <= last:
        if chunk & 63 == 0 and last - chunk >= 63:
            store_relaxed_u64(&m.warm[chunk >> 6], 0)
            chunk += 64
        else:
            and_relaxed_u64(&m.warm[chunk >> 6], ~(<uint64_t>1 << (chunk & 63)))
            chunk += 1


cdef void forget(uint64_t *bits, uint64_t words) noexcept nogil:
    cdef uint64_t i
    for i in range(words):
        if load_relaxed_u64(&bits[i]):  # words that no bit was ever set in stay without memory of their own
            store_relaxed_u64(&bits[i], 0)


cdef int has_everything(const engine_t *e, uint64_t chunk) noexcept nogil:
    """Whether the whole chunk is in the page cache, and, where stores may come, has no hole. Two system calls."""
    cdef const blk_map_t *m = e.map
    cdef unsigned char there[CHUNK_PAGES]
    cdef uint64_t start = chunk << CHUNK_SHIFT
    cdef uint64_t end = min(start + CHUNK_LEN, m.len)
    cdef uint32_t i
    if mincore(m.base + start, <size_t>(end - start), there) < 0:
        return 0
    for i in range(<uint32_t>((end - start + 4095) >> 12)):
        if not there[i] & 1:
            return 0
    return not m.stores or lseek(e.disk.fd, <off_t>start, SEEK_HOLE) >= <off_t>end


cdef void make_warm(engine_t *e, uint64_t offset, uint64_t length) noexcept nogil:
    """Look at the chunks that an ordinary request has just been in, each of them once in a while."""
    cdef blk_map_t *m = e.map
    cdef uint64_t chunk = offset >> CHUNK_SHIFT
    cdef uint64_t last, bit
    cdef uint32_t looked = 0
    if offset >= m.len or length > m.len - offset:
        return
    last = (offset + length - 1) >> CHUNK_SHIFT
    e.below_count += 1
    if e.below_count % FORGET_EVERY == 0:
        forget(m.tried, m.words)
    while chunk <= last and looked < LOOK_MAX:
        bit = <uint64_t>1 << (chunk & 63)
        if not bit_of(m.warm, chunk) and not bit_of(m.tried, chunk):
            looked += 1
            or_relaxed_u64(&m.warm[chunk >> 6] if has_everything(e, chunk) else &m.tried[chunk >> 6], bit)
        chunk += 1


cdef int is_short(const blk_map_t *m, int fd) noexcept nogil:
    """Whether the file ends before the mapping does, now or when it was last looked at. A system call."""
    if load_relaxed_u32(&m.shrunk):
        return 1
    if file_len(fd) >= <int64_t>m.len:
        return 0
    store_relaxed_u32(&(<blk_map_t *>m).shrunk, 1)
    return 1


cdef int stores_lost(const blk_map_t *m, int fd) noexcept nogil:
    # `stored` is never taken back: a flush that cleared it could hide a store of another worker from the next one.
    return load_relaxed_u32(&m.stored) and is_short(m, fd)


cdef int ends_in_zero(const blk_map_t *m, uint64_t end) noexcept nogil:
    cdef uint8_t last = 0
    cdef iovec one
    one.iov_base = m.base + end - 1
    one.iov_len = 1
    return guard_gather(&last, &one, 1) < 0 or last == 0


cdef void sound_alarm(engine_t *e) noexcept nogil:
    """Once in many copies: has this thread waited for pages that were thought to be there? Is the file as long as ever?

    After a page was not to be had, too.
    """
    cdef rusage_t usage
    is_short(e.map, e.disk.fd)
    if getrusage(RUSAGE_THREAD, &usage) == 0:
        if e.major_faults >= 0 and usage.ru_majflt != e.major_faults:
            forget(e.map.warm, e.map.words)
        e.major_faults = usage.ru_majflt


cdef int transfer(engine_t *e, blk_req_t *r, int64_t *result) noexcept nogil:
    """Carry out a read or a write by copying. 0: it must be done below."""
    cdef blk_map_t *m = e.map
    cdef int code
    if r.done or not is_warm(m, r.offset, r.len):
        return 0
    if r.kind == OP_READ:
        code = guard_scatter(r.iov, r.iov_count, m.base + r.offset)
        if code == 0 and not e.size_seen and ends_in_zero(m, r.offset + r.len):
            e.size_seen = 1
            if is_short(m, e.disk.fd):
                return 0
    elif not m.stores or load_relaxed_u32(&e.disk.write_through):
        return 0
    else:
        code = guard_gather(m.base + r.offset, r.iov, r.iov_count)
        store_relaxed_u32(&m.stored, 1)
    if code < 0:
        make_cold(m, r.offset, r.len)
        sound_alarm(e)
        return 0
    e.copies += 1
    if e.copies % ALARM_EVERY == 0:
        sound_alarm(e)
    result[0] = <int64_t>r.len
    return 1


cdef int mapped_submit(engine_t *e, blk_req_t *r, uint32_t pending, int64_t *result) noexcept nogil:
    cdef blk_map_t *m = e.map
    if r.kind == OP_FLUSH:
        if stores_lost(m, e.disk.fd):
            result[0] = -EIO  # some of what was stored may be behind the file's new end, where nothing keeps it
            return ENGINE_DONE
    elif not load_relaxed_u32(&m.shrunk):
        if r.kind == OP_READ or r.kind == OP_WRITE:
            if transfer(e, r, result):
                return ENGINE_DONE
        else:
            make_cold(m, r.offset, r.len)
        if r.kind != OP_READ and r.offset + r.len >= m.len:
            stores_lost(m, e.disk.fd)  # remember it: after this write the file may be as long as ever
    return e.below(e, r, pending, result)


cdef void mapped_finished(engine_t *e, const blk_req_t *r) noexcept nogil:
    cdef uint32_t i
    if load_relaxed_u32(&e.map.shrunk):
        return
    if r.kind == OP_READ or r.kind == OP_WRITE:
        make_warm(e, r.offset, r.len)
    elif r.kind == OP_DISCARD or r.kind == OP_ZERO:
        for i in range(r.segment_count):
            make_cold(e.map, r.segments[i].sector << 9, <uint64_t>r.segments[i].num_sectors << 9)


cdef int map_image(blk_map_t *m, int fd, uint64_t len, int writable, int stores) noexcept nogil:
    cdef int error
    cdef void *got
    if guard_ready() < 0:
        return -errno
    m.words = (len >> CHUNK_SHIFT >> 6) + 1
    m.warm = <uint64_t *>calloc(m.words, sizeof(uint64_t))
    m.tried = <uint64_t *>calloc(m.words, sizeof(uint64_t))
    if m.warm == NULL or m.tried == NULL:
        unmap_image(m)
        return -ENOMEM
    got = c_mmap(NULL, <size_t>len, PROT_READ | PROT_WRITE if writable else PROT_READ, MAP_SHARED, fd, 0)
    if got == MAP_FAILED:
        error = errno
        unmap_image(m)
        return -error
    m.base = <uint8_t *>got
    m.len = len
    m.stores = stores
    m.shrunk = 0
    madvise(got, <size_t>len, MADV_DONTDUMP)
    return 0


cdef void unmap_image(blk_map_t *m) noexcept nogil:
    if m.base != NULL:
        c_munmap(m.base, <size_t>m.len)
        m.base = NULL
    free(m.warm)
    free(m.tried)
    m.warm = NULL
    m.tried = NULL
