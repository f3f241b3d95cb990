"""Guest memory: regions, and the one place where a guest address becomes a pointer.

Spec: vhost-user, "Memory region description" and "Memory access".
"""

import mmap
import os
import stat

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vhostd.atomics cimport load_acquire_u32
from vhostd.queues.guard cimport guard_add, guard_remove

from vhostd.errors import BackendError, GuestMemoryError, RemoteProtocolError

cdef extern from "<sys/mman.h>" nogil:
    void *c_mmap "mmap"(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int c_munmap "munmap"(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    void *MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE, MADV_DONTDUMP

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct c_statfs "statfs":
        long f_type
        long f_bsize
    int fstatfs(int fd, c_statfs *buf)

cdef enum:
    HUGETLBFS_MAGIC = 0x958458f6
    FUSE_MAGIC = 0x65735546

# A region larger than this is a mistake or an attack: no guest has 64 TiB, and a mapping costs page tables.
REGION_LEN_MAX = 1 << 46
U64 = 1 << 64


cdef uint8_t *memory_at(const memmap_t *map, uint32_t *hint, uint64_t gpa, uint64_t len, uint64_t *run) noexcept nogil:
    cdef const region_t *r
    cdef uint32_t lo, hi, mid
    cdef uint64_t left
    if hint[0] < map.count:
        r = &map.regions[hint[0]]
        # one unsigned subtraction answers both "below" and "beyond", and cannot overflow
        if gpa - r.gpa < r.len:
            left = r.len - (gpa - r.gpa)
            run[0] = len if len < left else left
            return r.hva + (gpa - r.gpa)
    lo = 0
    hi = map.count
    while lo < hi:  # the last region that starts at or below gpa
        mid = (lo + hi) >> 1
        if map.regions[mid].gpa <= gpa:
            lo = mid + 1
        else:
            hi = mid
    if lo == 0:
        return NULL
    r = &map.regions[lo - 1]
    if gpa - r.gpa >= r.len:
        return NULL
    hint[0] = lo - 1
    left = r.len - (gpa - r.gpa)
    run[0] = len if len < left else left
    return r.hva + (gpa - r.gpa)


cdef int memory_copy_in(const memmap_t *map, uint32_t *hint, void *to, uint64_t gpa, uint64_t len) noexcept nogil:
    cdef uint8_t *target = <uint8_t *>to
    cdef uint8_t *source
    cdef uint64_t run = 0
    while len:
        source = memory_at(map, hint, gpa, len, &run)
        if source == NULL:
            return -1
        memcpy(target, source, run)
        target += run
        gpa += run
        len -= run
        if len and gpa == 0:  # past the last byte of the address space
            return -1
    return 0


cdef class Fault:
    """The flag that the SIGBUS guard raises for all regions of one device."""

    @property
    def raised(self):
        """Whether a page of guest memory has vanished since the last clear."""
        return load_acquire_u32(&self.flag) != 0

    def clear(self):
        """Forget it: the memory it spoke of is gone."""
        self.flag = 0


cdef class Region:
    """One mapped region of guest memory; unmapped when closed and no view of it is left."""

    def __cinit__(self):
        self.base = NULL
        self.slot = -1

    def __init__(self, int fd, gpa, length, uva, mmap_offset, Fault fault not None):
        for name, start, size in (("guest", gpa, length), ("user", uva, length), ("file", mmap_offset, length)):
            if start < 0 or size <= 0 or start + size > U64:
                raise RemoteProtocolError(
                    f"memory region: {name} range {start:#x}+{size:#x} is empty or passes 2^64 "
                    '(vhost-user, "Memory region description")'
                )
        if length > REGION_LEN_MAX:
            raise RemoteProtocolError(f"memory region: {length:#x} bytes are more than the {REGION_LEN_MAX:#x} we map")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RemoteProtocolError(
                "memory region: the fd is not a memory file (memfd, shared memory, hugetlbfs or a regular file)"
            )
        cdef c_statfs fs
        cdef long granule = mmap.PAGESIZE
        memset(&fs, 0, sizeof(fs))
        if fstatfs(fd, &fs) == 0 and fs.f_type == HUGETLBFS_MAGIC:
            granule = fs.f_bsize
        elif fs.f_type == FUSE_MAGIC:  # a page of it may never come, and who touches it waits for ever
            raise RemoteProtocolError("memory region: the fd is a file on FUSE, not memory")
        if mmap_offset + length > status.st_size:
            raise RemoteProtocolError(
                f"memory region: offset {mmap_offset:#x} + {length:#x} bytes lie beyond the end of the file "
                f'({status.st_size:#x} bytes) (vhost-user, "Memory region description")'
            )
        # The document puts no alignment on offset or size; mmap does. Map from the granule below, in whole granules.
        lead = mmap_offset % granule
        self.base_len = (lead + length + granule - 1) // granule * granule
        self.base = c_mmap(
            NULL, self.base_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, <long>(mmap_offset - lead)
        )
        if self.base == MAP_FAILED:
            self.base = NULL
            reason = OSError(errno, os.strerror(errno))
            if reason.errno in (13, 1):
                raise RemoteProtocolError(f"memory region: the fd cannot be read and written: {reason.strerror}")
            raise BackendError("cannot map guest memory", reason)
        self.fault = fault
        self.slot = guard_add(self.base, self.base_len, <size_t>granule, &fault.flag)
        if self.slot < 0:
            raise BackendError("cannot map guest memory: more regions than the process has guards for")
        madvise(self.base, self.base_len, MADV_DONTDUMP)  # a core file of ours must not hold a guest's secrets
        self.c.gpa = gpa
        self.c.len = length
        self.c.uva = uva
        self.c.hva = <uint8_t *>self.base + <size_t>lead

    def __dealloc__(self):
        self.unmap()

    cdef void unmap(self) noexcept:
        if self.base != NULL:
            guard_remove(self.slot)
            c_munmap(self.base, self.base_len)
            self.base = NULL
            self.c.hva = NULL

    def close(self):
        """Unmap now, or when the last view is released. A second time does nothing."""
        self.closing = True
        if self.exports == 0:
            self.unmap()

    @property
    def gpa(self):
        """Guest-physical address of the first byte."""
        return self.c.gpa

    @property
    def length(self):
        """Bytes."""
        return self.c.len

    @property
    def uva(self):
        """The front-end's address of the first byte."""
        return self.c.uva

    @property
    def mapped(self):
        """Whether the region is still in our address space."""
        return self.base != NULL

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.base == NULL or self.closing:
            raise BufferError("the region is closed")
        PyBuffer_FillInfo(view, self, self.c.hva, <Py_ssize_t>self.c.len, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
        if self.closing and self.exports == 0:
            self.unmap()


cdef class GuestMemory:
    """A table of regions sorted by guest address; never changed: a new table is a new GuestMemory."""

    def __cinit__(self):
        self.c.regions = NULL
        self.c.count = 0

    def __init__(self, regions, Fault fault not None):
        ordered = sorted(regions, key=lambda region: region.gpa)
        for low, high in zip(ordered, ordered[1:], strict=False):
            if low.gpa + low.length > high.gpa:
                raise RemoteProtocolError(
                    f"memory table: regions at {low.gpa:#x} and {high.gpa:#x} overlap in guest addresses"
                )
        self.regions = tuple(ordered)
        self.fault = fault
        self.c.faulted = &fault.flag
        self.c.regions = <region_t *>calloc(max(len(ordered), 1), sizeof(region_t))
        if self.c.regions == NULL:
            raise MemoryError
        cdef Region region
        for region in ordered:
            if region.base == NULL:
                raise GuestMemoryError(f"region at {region.gpa:#x} is closed")
            self.c.regions[self.c.count] = region.c
            self.c.count += 1

    def __dealloc__(self):
        free(self.c.regions)

    def translate(self, gpa, length):
        """Return our address of `length` bytes of guest memory at `gpa`.

        Both in bytes. The range lies in one region: chain.pyx splits a buffer that crosses a border. The address is
        good while this map is held: a new table is a new map, and requests in flight hold the old one.
        Raises GuestMemoryError for an unmapped byte or a sum past 64 bits.
        Spec: vhost-user, "Memory region description".
        """
        cdef uint64_t run = 0
        cdef uint32_t hint = 0
        cdef uint8_t *at
        if length <= 0 or gpa < 0 or gpa + length > U64:
            raise GuestMemoryError(f"guest range {gpa:#x}+{length:#x} is empty or passes 2^64")
        at = memory_at(&self.c, &hint, gpa, length, &run)
        if at == NULL or run != length:
            raise GuestMemoryError(f"guest range {gpa:#x}+{length:#x} is not inside one region")
        return <uint64_t>at

    def translate_uva(self, uva, length):
        """Return our address of `length` bytes at the front-end's address `uva`, as `translate` does for guest ones."""
        cdef uint32_t i
        if length <= 0 or uva < 0 or uva + length > U64:
            raise GuestMemoryError(f"user range {uva:#x}+{length:#x} is empty or passes 2^64")
        for i in range(self.c.count):
            start = self.c.regions[i].uva
            if start <= uva and uva + length <= start + self.c.regions[i].len:
                return <uint64_t>self.c.regions[i].hva + (uva - start)
        raise GuestMemoryError(
            f'user range {uva:#x}+{length:#x} is not inside one region (vhost-user, "Memory region description")'
        )

    def read(self, gpa, length):
        """Return a copy of `length` bytes at `gpa`, over borders of regions; GuestMemoryError when unmapped."""
        cdef uint32_t hint = 0
        if length < 0 or gpa < 0 or gpa + length > U64:
            raise GuestMemoryError(f"guest range {gpa:#x}+{length:#x} passes 2^64")
        copy = PyBytes_FromStringAndSize(NULL, length)
        if memory_copy_in(&self.c, &hint, PyBytes_AS_STRING(copy), gpa, length) < 0:
            raise GuestMemoryError(f"guest range {gpa:#x}+{length:#x} has unmapped bytes")
        return copy

    def view(self, gpa, length):
        """Return a writable memoryview of `length` bytes at `gpa` in one region; it pins the region's mapping."""
        self.translate(gpa, length)
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + region.length:
                return memoryview(region)[gpa - region.gpa : gpa - region.gpa + length]
        raise GuestMemoryError(f"guest range {gpa:#x}+{length:#x} is not inside one region")
