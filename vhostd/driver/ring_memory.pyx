"""A virtqueue's memory: where its parts lie, its three eventfds, and every field as it stands there.

What is raw here is for input that no driver makes, and for looking at what a device wrote: nothing is checked and
nothing is booked. virtqueue.pyx is the driver that keeps the rules.
"""

import collections
import os

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from vhostd.atomics cimport load_acquire_u16, load_relaxed_u16, store_relaxed_u16, store_release_u16
from vhostd.driver.packed cimport packed_reset
from vhostd.spec.layout cimport packed_desc_t, packed_event_t, vring_avail_t, vring_desc_t, vring_used_t

from vhostd.driver.layout import modern_layout, packed_layout
from vhostd.errors import LocalProtocolError
from vhostd.fds import Fd
from vhostd.spec import virtio

Desc = collections.namedtuple("Desc", "addr length flags next")
Packed = collections.namedtuple("Packed", "addr length id flags")


cdef class RingMemory:
    """The parts of a ring in an arena, and its eventfds: what a Virtqueue drives, and its constructor's words."""

    def __cinit__(self, *args, **kwargs):
        memset(&self.ring, 0, sizeof(self.ring))

    def __init__(self, arena, size, *, event_idx=False, layout=None, parts=None, packed=False, call_fd=None):
        if not 1 <= size <= virtio.QUEUE_SIZE_MAX:
            raise LocalProtocolError(f"ring: {size} entries are not 1..{virtio.QUEUE_SIZE_MAX} (2.7)")
        if self.ring.link != NULL:
            raise LocalProtocolError("ring: initialised twice")
        self.arena = arena
        self._allocation = None
        self.packed = packed
        if parts is None:
            plan = layout or (packed_layout(size) if packed else modern_layout(size, event_idx=event_idx))
            if plan.size != size:
                raise LocalProtocolError(f"ring: a layout for {plan.size} entries does not fit {size}")
            at = arena.alloc(plan.length, plan.align)
            self._allocation = at
            parts = (at + plan.desc, at + plan.avail, at + plan.used)
        self.desc_gpa, self.avail_gpa, self.used_gpa = parts
        self._desc_view = arena.view(self.desc_gpa, virtio.desc_table_len(size))
        cdef ring_t *ring = &self.ring
        ring.size = size
        ring.event_idx = event_idx
        if packed:
            self._avail_view = arena.view(self.avail_gpa, virtio.EVENT_LEN)
            self._used_view = arena.view(self.used_gpa, virtio.EVENT_LEN)
            ring.packed = <packed_desc_t *>&self._desc_view[0]
            ring.driver_event = <packed_event_t *>&self._avail_view[0]
            ring.device_event = <packed_event_t *>&self._used_view[0]
            ring.book = ring.desc = <vring_desc_t *>calloc(size, sizeof(vring_desc_t))
            if ring.book == NULL:
                raise MemoryError
        else:
            self._avail_view = arena.view(self.avail_gpa, virtio.avail_ring_len(size, event_idx=event_idx))
            self._used_view = arena.view(self.used_gpa, virtio.used_ring_len(size, event_idx=event_idx))
            ring.desc = <vring_desc_t *>&self._desc_view[0]
            ring.avail = <vring_avail_t *>&self._avail_view[0]
            ring.used = <vring_used_t *>&self._used_view[0]
            ring.used_event = &(&ring.avail.ring[0])[size]
            ring.avail_event = <uint16_t *>&(&ring.used.ring[0])[size]
        ring.link = <uint32_t *>calloc(size, sizeof(uint32_t))
        ring.tail = <uint32_t *>calloc(size, sizeof(uint32_t))
        ring.count = <uint32_t *>calloc(size, sizeof(uint32_t))
        ring.writable_len = <uint64_t *>calloc(size, sizeof(uint64_t))
        if ring.link == NULL or ring.tail == NULL or ring.count == NULL or ring.writable_len == NULL:
            raise MemoryError
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick_fd, self.err_fd = (Fd(os.eventfd(0, flags)) for _ in range(2))
        self._own_call = call_fd is None
        self.call_fd = Fd(os.eventfd(0, flags)) if call_fd is None else call_fd
        self._open = True

    def __dealloc__(self):
        free(self.ring.book)
        free(self.ring.link)
        free(self.ring.tail)
        free(self.ring.count)
        free(self.ring.writable_len)

    cdef int _check(self) except -1:
        if not self._open:
            raise LocalProtocolError("ring: used after close")
        return 0

    cdef void _write_desc(
        self, uint32_t index, uint64_t addr, uint32_t length, uint16_t flags, uint16_t next_
    ) noexcept:
        cdef vring_desc_t *desc = &self.ring.desc[index]
        desc.addr = addr
        desc.len = length
        desc.flags = flags
        desc.next = next_

    cdef int _zero(self, object base) except -1:
        """Zero what both sides share and start both at `base`, as Virtqueue.reset has it."""
        self._check()
        cdef ring_t *ring = &self.ring
        cdef uint16_t start = 0
        if ring.packed != NULL:
            base = virtio.PACKED_BASE if base is None else base
            if base >> 16 != base & 0xFFFF or base & 0x7FFF >= ring.size:
                raise LocalProtocolError(f"ring: {base:#x} is no place where both sides of {ring.size} entries start")
            packed_reset(ring, (base & 0x7FFF) + (0 if base & 0x8000 else ring.size))
            memset(ring.device_event, 0, sizeof(packed_event_t))
        else:
            start = 0 if base is None else base
            memset(ring.desc, 0, self._desc_view.shape[0])
            memset(ring.avail, 0, self._avail_view.shape[0])
            memset(ring.used, 0, self._used_view.shape[0])
            ring.avail.idx = ring.used.idx = start
            if ring.event_idx:
                ring.used_event[0] = start
                ring.avail_event[0] = start
        ring.next_avail = ring.published = ring.last_used = start
        return 0

    cdef int _let_go(self) except -1:
        """Close the eventfds, forget the memory and give it back. Once."""
        self._open = False
        for fd in (self.kick_fd, self.err_fd, *([self.call_fd] if self._own_call else [])):
            fd.close()
        self.ring.desc = NULL
        self.ring.avail = NULL
        self.ring.used = NULL
        self.ring.driver_event = NULL
        self.ring.device_event = NULL
        self._desc_view = self._avail_view = self._used_view = None
        if self._allocation is not None and not self.arena.closed:
            self.arena.free(self._allocation)
        self._allocation = None
        return 0

    @property
    def size(self):
        """Entries of the ring."""
        return self.ring.size

    @property
    def event_idx(self):
        """Whether EVENT_IDX rules both notifications (2.7.7, 2.7.10)."""
        return bool(self.ring.event_idx)

    @property
    def next_avail(self):
        """The free-running index of the avail slot that is filled next."""
        return self.ring.next_avail

    @property
    def last_used(self):
        """The free-running index of the used slot that is read next."""
        return self.ring.last_used

    @property
    def base(self):
        """Where the device goes on when everything that was used has been taken: the value for SET_VRING_BASE."""
        if not self.packed:
            return self.ring.last_used
        half = self.ring.used_place % self.ring.size | (0x8000 if self.ring.used_place < self.ring.size else 0)
        return half | half << 16

    @property
    def uvas(self):
        """Front-end addresses of descriptors, avail and used ring, for SET_VRING_ADDR."""
        return tuple(self.arena.uva(gpa) for gpa in (self.desc_gpa, self.avail_gpa, self.used_gpa))

    def take_call(self):
        """Read the call eventfd: how many signals there were since, 0 for none."""
        return _take(self.call_fd)

    def take_err(self):
        """Read the error eventfd: how many signals there were since, 0 for none."""
        return _take(self.err_fd)

    cdef int _check_split(self) except -1:
        self._check()
        if self.packed:
            raise LocalProtocolError("ring: a packed ring has no such field (2.8): see raw_packed and read_packed")
        return 0

    cdef int _check_packed(self) except -1:
        self._check()
        if not self.packed:
            raise LocalProtocolError("ring: a split ring has no such field (2.7)")
        return 0

    # Raw access, for input no driver makes. Nothing is checked and nothing is booked.

    def raw_packed(self, slot, addr, length, id=0, flags=0):
        """Write a descriptor of a packed ring as given, AVAIL and USED bits included, its flags last."""
        self._check_packed()
        if not 0 <= slot < self.ring.size:
            raise IndexError(slot)
        cdef packed_desc_t *desc = &self.ring.packed[<uint32_t>slot]
        desc.addr = addr
        desc.len = length
        desc.id = id
        store_release_u16(&desc.flags, flags)

    def read_packed(self, slot):
        """Return a descriptor of a packed ring as it stands: a Packed of address, length, id and flags."""
        self._check_packed()
        if not 0 <= slot < self.ring.size:
            raise IndexError(slot)
        cdef packed_desc_t *desc = &self.ring.packed[<uint32_t>slot]
        cdef uint16_t flags = load_acquire_u16(&desc.flags)
        return Packed(desc.addr, desc.len, desc.id, flags)

    @property
    def avail_place(self):
        """The slot of a packed ring that is filled next, and the wrap counter there: (slot, 0 or 1)."""
        self._check_packed()
        return self.ring.avail_place % self.ring.size, int(self.ring.avail_place < self.ring.size)

    @property
    def device_event(self):
        """The device's event suppression structure: (off_wrap, flags) (2.8.14)."""
        self._check_packed()
        cdef uint16_t flags = load_acquire_u16(&self.ring.device_event.flags)
        return load_relaxed_u16(&self.ring.device_event.off_wrap), flags

    @property
    def driver_event(self):
        """Our own event suppression structure: (off_wrap, flags) (2.8.14)."""
        self._check_packed()
        return self.ring.driver_event.off_wrap, self.ring.driver_event.flags

    @driver_event.setter
    def driver_event(self, value):
        self._check_packed()
        store_relaxed_u16(&self.ring.driver_event.off_wrap, value[0])
        store_release_u16(&self.ring.driver_event.flags, value[1])

    def raw_desc(self, index, addr, length, flags=0, next=0):
        """Write a descriptor as given."""
        self._check_split()
        if not 0 <= index < self.ring.size:
            raise IndexError(index)
        self._write_desc(index, addr, length, flags, next)

    def read_desc(self, index):
        """Return a descriptor as it stands in the table."""
        self._check_split()
        if not 0 <= index < self.ring.size:
            raise IndexError(index)
        cdef vring_desc_t *desc = &self.ring.desc[index]
        return Desc(desc.addr, desc.len, desc.flags, desc.next)

    def raw_push(self, head):
        """Put any 16-bit value into the next avail slot, outside our book; publish it with `publish` or `kick`."""
        self._check_split()
        store_relaxed_u16(&(&self.ring.avail.ring[0])[self.ring.next_avail % self.ring.size], head)
        self.ring.next_avail += 1

    def raw_pop(self):
        """Return the next used element as (id, length), unchecked, or None. Not to be mixed with `add` in flight."""
        self._check_split()
        if load_acquire_u16(&self.ring.used.idx) == self.ring.last_used:
            return None
        cdef uint32_t slot = self.ring.last_used % self.ring.size
        self.ring.last_used += 1
        return (&self.ring.used.ring[0])[slot].id, (&self.ring.used.ring[0])[slot].len

    @property
    def avail_idx(self):
        """avail.idx as it stands in memory."""
        self._check_split()
        return load_relaxed_u16(&self.ring.avail.idx)

    @avail_idx.setter
    def avail_idx(self, value):
        self._check_split()
        self.ring.next_avail = self.ring.published = value
        store_release_u16(&self.ring.avail.idx, value)

    @property
    def avail_flags(self):
        """avail.flags as it stands in memory."""
        self._check_split()
        return load_relaxed_u16(&self.ring.avail.flags)

    @avail_flags.setter
    def avail_flags(self, value):
        self._check_split()
        store_relaxed_u16(&self.ring.avail.flags, value)

    @property
    def used_event(self):
        """used_event as it stands in memory; only with EVENT_IDX."""
        self._check_event_idx()
        return load_relaxed_u16(self.ring.used_event)

    @used_event.setter
    def used_event(self, value):
        self._check_event_idx()
        store_relaxed_u16(self.ring.used_event, value)

    @property
    def avail_event(self):
        """avail_event as the device wrote it; only with EVENT_IDX."""
        self._check_event_idx()
        return load_relaxed_u16(self.ring.avail_event)

    @property
    def used_idx(self):
        """used.idx as the device wrote it."""
        self._check_split()
        return load_acquire_u16(&self.ring.used.idx)

    @property
    def used_flags(self):
        """used.flags as the device wrote it."""
        self._check_split()
        return load_relaxed_u16(&self.ring.used.flags)

    def _check_event_idx(self):
        self._check_split()
        if not self.ring.event_idx:
            raise LocalProtocolError("ring: without EVENT_IDX there are no event fields (2.7.6)")


def _take(fd):
    try:
        return os.eventfd_read(fd.number)
    except BlockingIOError:
        return 0
