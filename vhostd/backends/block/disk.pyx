"""A disk as its rings share it: what the control thread sets, and workers read without a lock."""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from vhostd.atomics cimport load_relaxed_u32, load_relaxed_u64, store_relaxed_u32, store_relaxed_u64
from vhostd.backends.block.engine_mapped cimport map_image, stores_lost, unmap_image

from vhostd.errors import BackendError


cdef class Disk:
    """What the rings of one disk share. The control thread's methods; workers read the struct."""

    def __init__(self, int fd, *, bint read_only, bint direct, uint32_t memory_align, bint zero_in_place, bytes serial):
        if len(serial) > 20:
            raise ValueError("a serial has at most 20 bytes")
        self.c.fd = fd
        self.c.read_only = read_only
        self.c.direct = direct
        self.c.memory_align = memory_align
        self.c.zero_in_place = zero_in_place
        memcpy(self.c.serial, <const char *>serial, len(serial))

    def map_image(self, uint64_t length, *, bint stores):
        """Have the rings copy from a mapping of the image, of `length` bytes, and into it where `stores` allows.

        Before the first handler is made. Raises BackendError when the kernel does not map it.
        """
        cdef int result = map_image(&self.map, self.c.fd, length, not self.c.read_only, stores and not self.c.read_only)
        if result < 0:
            raise BackendError("the image cannot be mapped", OSError(-result, os.strerror(-result)))

    @property
    def mapped(self):
        """Whether requests may be copied from a mapping; False again once the file was found shorter than that."""
        return self.map.base != NULL and not load_relaxed_u32(&self.map.shrunk)

    @property
    def stores_lost(self):
        """Whether the file was found shorter after something had been stored through the mapping. A system call."""
        return self.map.base != NULL and stores_lost(&self.map, self.c.fd) != 0

    def unmap(self):
        """Give the mapping back; a second time does nothing. No ring is started."""
        unmap_image(&self.map)

    def __dealloc__(self):
        unmap_image(&self.map)

    @property
    def capacity_sectors(self):
        """Sectors of 512 bytes. A request is held to it when it is carried out."""
        return load_relaxed_u64(&self.c.capacity_sectors)

    @capacity_sectors.setter
    def capacity_sectors(self, uint64_t sectors):
        store_relaxed_u64(&self.c.capacity_sectors, sectors)

    @property
    def acked(self):
        """The features the driver acknowledged."""
        return load_relaxed_u64(&self.c.acked)

    @acked.setter
    def acked(self, uint64_t features):
        store_relaxed_u64(&self.c.acked, features)

    @property
    def write_through(self):
        """Whether each write is durable before its status."""
        return load_relaxed_u32(&self.c.write_through) != 0

    @write_through.setter
    def write_through(self, bint through):
        store_relaxed_u32(&self.c.write_through, through)

    @property
    def flush_failed(self):
        """Whether the host has failed a flush: none succeeds from then on."""
        return load_relaxed_u32(&self.c.flush_failed) != 0

    def fail_flushes(self):
        """The host has failed a flush that no request asked for."""
        store_relaxed_u32(&self.c.flush_failed, 1)
