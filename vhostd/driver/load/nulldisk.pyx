"""A disk that does nothing, on a thread without the GIL: what is left is the generator and the ring itself.

The device's half of a split ring, as cheap as the specification allows: it walks each chain to its status byte, says
OK, and publishes eight used elements at a time. It shows how fast the generator is, and nothing else: it knows the
ring's owner, trusts it, and shares its mapping.
"""

import os
import threading

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.unistd cimport write

from vhostd.atomics cimport (
    cpu_relax,
    fence_full,
    load_acquire_u16,
    load_relaxed_u16,
    load_relaxed_u32,
    store_relaxed_u16,
    store_relaxed_u32,
    store_release_u16,
)
from vhostd.driver.virtqueue cimport Virtqueue, ring_t
from vhostd.spec.layout cimport (
    AVAIL_F_NO_INTERRUPT,
    BLK_S_OK,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    USED_F_NO_NOTIFY,
    vring_desc_t,
    vring_used_elem_t,
)

from vhostd.errors import LocalProtocolError

cdef enum:
    BATCH = 8  # used elements of one cache line


@cython.final
cdef class NullDisk:
    """Serves `queue`, whose arena has one region, while the `with` block lasts; on `cpus` only, if those are named."""

    cdef Virtqueue queue
    cdef uint32_t stop
    cdef uint8_t *memory
    cdef uint64_t memory_gpa
    cdef uint16_t next_avail
    cdef uint16_t next_used
    cdef uint64_t done
    cdef int call_fd
    cdef object thread
    cdef object view
    cdef object cpus

    def __cinit__(self, Virtqueue queue, cpus=None):
        if len(queue.arena.regions) != 1:
            raise LocalProtocolError("null disk: an arena of one region")
        (region,) = queue.arena.regions
        self.queue = queue
        self.view = queue.arena.view(region.gpa, region.length)
        cdef uint8_t[::1] memory = self.view
        self.memory = &memory[0]
        self.memory_gpa = region.gpa
        self.next_avail = self.next_used = queue.last_used
        self.call_fd = queue.call_fd.number
        self.cpus = cpus

    @property
    def served(self):
        """How many chains it has returned."""
        return self.done

    def __enter__(self):
        self.thread = threading.Thread(target=self._run, name="null disk")
        self.thread.start()
        return self

    def __exit__(self, kind, value, tb):
        store_relaxed_u32(&self.stop, 1)
        self.thread.join()
        self.view = None

    def _run(self):
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)
        with nogil:
            self.loop()

    cdef inline vring_desc_t *at(self, uint64_t gpa) noexcept nogil:
        return <vring_desc_t *>(self.memory + (gpa - self.memory_gpa))

    cdef void serve(self, uint32_t head, vring_used_elem_t *used) noexcept nogil:
        cdef ring_t *ring = &self.queue.ring
        cdef vring_desc_t *table = ring.desc
        cdef vring_desc_t *desc = &table[head]
        cdef uint32_t written = 0
        if desc.flags & DESC_F_INDIRECT:
            table = self.at(desc.addr)
            desc = table
        while desc.flags & DESC_F_NEXT:
            if desc.flags & DESC_F_WRITE:
                written += desc.len
            desc = &table[desc.next]
        (<uint8_t *>self.at(desc.addr))[0] = BLK_S_OK
        used.id = head
        used.len = written + 1

    cdef void loop(self) noexcept nogil:
        cdef ring_t *ring = &self.queue.ring
        cdef uint16_t avail
        cdef uint16_t count
        cdef uint16_t _i
        cdef uint16_t old
        cdef uint64_t one = 1
        cdef bint wanted
        # Never a kick: this thread looks all the time.
        if ring.event_idx:
            store_relaxed_u16(ring.avail_event, <uint16_t>(self.next_avail - 1))
        else:
            store_relaxed_u16(&ring.used.flags, USED_F_NO_NOTIFY)
        while not load_relaxed_u32(&self.stop):
            # acquire: pairs with the driver's release of avail.idx.
            avail = load_acquire_u16(&ring.avail.idx)
            if avail == self.next_avail:
                cpu_relax()
                continue
            count = <uint16_t>(avail - self.next_avail)
            if count > BATCH:
                count = BATCH
            old = self.next_used
            for _i in range(count):
                self.serve(
                    load_relaxed_u16(&(&ring.avail.ring[0])[self.next_avail % ring.size]),
                    &(&ring.used.ring[0])[self.next_used % ring.size],
                )
                self.next_avail += 1
                self.next_used += 1
            # release: status and elements before the idx; pairs with the driver's acquire.
            store_release_u16(&ring.used.idx, self.next_used)
            self.done += count
            fence_full()  # idx before the look at the driver's wish; pairs with its fence when it arms
            if ring.event_idx:
                wanted = (<uint16_t>(self.next_used - load_relaxed_u16(ring.used_event) - 1)
                          < <uint16_t>(self.next_used - old))
            else:
                wanted = not load_relaxed_u16(&ring.avail.flags) & AVAIL_F_NO_INTERRUPT
            if wanted:
                write(self.call_fd, &one, 8)
