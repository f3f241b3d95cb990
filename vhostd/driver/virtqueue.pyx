"""The driver's half of a virtqueue, written from the specification: split (2.7) here, packed (2.8) in packed.pyx.

Ordering, each named where it happens: an idx is stored after what it announces (2.7.13.3); idx is stored before the
device's wish for kicks is read (2.7.13.4); the wish for calls is stored before used.idx is read again (2.7.14).
"""

import collections
import os
import struct
import time

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport UINT64_MAX, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from vhostd.atomics cimport (
    cpu_relax,
    fence_full,
    load_acquire_u16,
    load_relaxed_u16,
    load_relaxed_u32,
    store_relaxed_u16,
    store_release_u16,
)
from vhostd.driver.packed cimport (
    packed_arm,
    packed_disarm,
    packed_has_used,
    packed_offer,
    packed_pop,
    packed_publish,
    packed_reset,
)
from vhostd.spec.layout cimport (
    AVAIL_F_NO_INTERRUPT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    USED_F_NO_NOTIFY,
    packed_desc_t,
    packed_event_t,
    vring_avail_t,
    vring_desc_t,
    vring_used_t,
)

from vhostd.driver.layout import modern_layout, packed_layout
from vhostd.errors import DeviceError, DeviceGone, DeviceTimeout, LocalProtocolError, RingError
from vhostd.fds import Fd
from vhostd.spec import virtio

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

Used = collections.namedtuple("Used", "head length token")
Desc = collections.namedtuple("Desc", "addr length flags next")
Packed = collections.namedtuple("Packed", "addr length id flags")

cdef uint32_t NONE = 0xFFFFFFFF
cdef dict FAULTS = {
    RING_E_IDX: "used.idx ran past what was made available (2.7.8)",
    RING_E_ID: "a used element names no chain in flight (2.7.8)",
    RING_E_LEN: "a used element claims more bytes than its chain has writable (2.7.8.2)",
}


cdef long ring_take(ring_t *ring, uint32_t count, uint64_t writable_len) noexcept nogil:
    if count == 0 or count > ring.free_count:
        return -1
    cdef uint32_t head = ring.free_head
    cdef uint32_t last = head
    cdef uint32_t _i
    for _i in range(count - 1):
        last = ring.link[last]
    ring.free_head = ring.link[last]
    ring.free_count -= count
    ring.tail[head] = last
    ring.count[head] = count
    ring.writable_len[head] = writable_len
    return <long>head


cdef void ring_give(ring_t *ring, uint32_t head) noexcept nogil:
    ring.link[ring.tail[head]] = ring.free_head
    ring.free_head = head
    ring.free_count += ring.count[head]
    ring.count[head] = 0


cdef void ring_offer(ring_t *ring, uint16_t head) noexcept nogil:
    if ring.packed != NULL:
        packed_offer(ring, head)
        return
    store_relaxed_u16(&(&ring.avail.ring[0])[ring.next_avail % ring.size], head)
    ring.next_avail += 1
    ring.in_flight += 1


cdef bint ring_publish(ring_t *ring) noexcept nogil:
    if ring.packed != NULL:
        return packed_publish(ring)
    cdef uint16_t old = ring.published
    cdef uint16_t new = ring.next_avail
    cdef bint wanted
    if old == new:
        return False
    # release: descriptors, tables, buffers and slots before the idx that announces them (2.7.13.3).
    store_release_u16(&ring.avail.idx, new)
    ring.published = new
    ring.publishes += 1
    # full: idx before the look at the device's wish; else we miss the wish while it misses the idx (2.7.13.4).
    fence_full()
    if ring.event_idx:
        # 2.7.10: the entry avail_event names is among the new ones.
        wanted = <uint16_t>(new - load_relaxed_u16(ring.avail_event) - 1) < <uint16_t>(new - old)
    else:
        wanted = not load_relaxed_u16(&ring.used.flags) & USED_F_NO_NOTIFY
    ring.kicks += wanted
    return wanted


cdef int ring_fail(ring_t *ring, int code) noexcept nogil:
    ring.broken = code
    return code


cdef bint ring_has_used(const ring_t *ring) noexcept nogil:
    if ring.packed != NULL:
        return packed_has_used(ring)
    return load_acquire_u16(&ring.used.idx) != ring.last_used


cdef int ring_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil:
    if ring.packed != NULL:
        return packed_pop(ring, head, length)
    if ring.broken:
        return RING_E_BROKEN
    # acquire: used.idx before the elements and buffers it announces (2.7.14).
    cdef uint16_t pending = <uint16_t>(load_acquire_u16(&ring.used.idx) - ring.last_used)
    if pending == 0:
        return RING_EMPTY
    if pending > ring.in_flight:
        return ring_fail(ring, RING_E_IDX)
    cdef uint32_t slot = ring.last_used % ring.size
    cdef uint32_t id = load_relaxed_u32(&(&ring.used.ring[0])[slot].id)
    cdef uint32_t used_len = load_relaxed_u32(&(&ring.used.ring[0])[slot].len)
    if id >= ring.size or ring.count[id] == 0:
        return ring_fail(ring, RING_E_ID)
    if used_len > ring.writable_len[id]:
        return ring_fail(ring, RING_E_LEN)
    ring.last_used += 1
    ring.in_flight -= 1
    head[0] = id
    length[0] = used_len
    return RING_USED


cdef bint ring_arm(ring_t *ring) noexcept nogil:
    if ring.packed != NULL:
        return packed_arm(ring)
    if ring.event_idx:
        store_relaxed_u16(ring.used_event, ring.last_used)  # 2.7.7.2: a call once idx passes this
    else:
        store_relaxed_u16(&ring.avail.flags, 0)
    # full: the wish before the second look; else the device misses the wish while we miss its used element.
    fence_full()
    return load_acquire_u16(&ring.used.idx) != ring.last_used


cdef void ring_disarm(ring_t *ring) noexcept nogil:
    if ring.packed != NULL:
        packed_disarm(ring)
        return
    if ring.event_idx:
        store_relaxed_u16(ring.used_event, <uint16_t>(ring.last_used - 1))  # 2.7.7.1: flags stays 0
    else:
        store_relaxed_u16(&ring.avail.flags, AVAIL_F_NO_INTERRUPT)


@cython.final
cdef class Virtqueue:
    """A ring in an arena, split or `packed`, with its three eventfds.

    `size` entries, 1..32768. The parts lie where `layout` says (`modern_layout` or `packed_layout` when None), or at
    the guest addresses in `parts` (descriptors, avail, used; of a packed ring descriptors, driver's and device's event
    suppression), which the caller has allocated. `base` is where both sides start: of a split ring the value of both
    idx fields, of a packed one as SET_VRING_BASE has it, both halves alike. `call_fd` is an Fd that several rings share
    and somebody else closes; each has its own when None. With `indirect` chains of two or more
    buffers go into a table of their own (2.7.5.3, 2.8.7).
    Raises LocalProtocolError when the arena has no room, or a part is not inside one region.
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self.ring, 0, sizeof(self.ring))
        self.watch_fd = -1

    def __init__(self, arena, size, *, event_idx=False, indirect=False, layout=None, parts=None, base=None,
                 packed=False, call_fd=None):
        if not 1 <= size <= virtio.QUEUE_SIZE_MAX:
            raise LocalProtocolError(f"ring: {size} entries are not 1..{virtio.QUEUE_SIZE_MAX} (2.7)")
        if self.ring.link != NULL:
            raise LocalProtocolError("ring: initialised twice")
        self.arena = arena
        self.indirect = indirect
        self._tokens = {}
        self._tables = {}
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
        self.reset(base)

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

    cdef int _raise_broken(self) except -1:
        raise DeviceError(f"the ring is broken: {FAULTS[self.ring.broken]}")

    cdef void _write_desc(
        self, uint32_t index, uint64_t addr, uint32_t length, uint16_t flags, uint16_t next_
    ) noexcept:
        cdef vring_desc_t *desc = &self.ring.desc[index]
        desc.addr = addr
        desc.len = length
        desc.flags = flags
        desc.next = next_

    def reset(self, base=None):
        """Zero the ring's memory, forget every chain, and start both sides at `base`, as the constructor has it.

        Only while the back-end has stopped the ring: this is a driver's reset, or a ring that begins anywhere.
        """
        self._check()
        cdef ring_t *ring = &self.ring
        cdef uint32_t i
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
        for i in range(ring.size):
            ring.link[i] = i + 1 if i + 1 < ring.size else NONE
            ring.count[i] = 0
        ring.free_head = 0
        ring.free_count = ring.size
        ring.in_flight = 0
        ring.broken = 0
        ring.next_avail = ring.published = ring.last_used = start
        self._tokens.clear()
        for table in self._tables.values():
            self.arena.free(table)
        self._tables.clear()

    def close(self):
        """Close the eventfds and give the memory back; a second time does nothing.

        The back-end must have stopped the ring, or be gone.
        """
        if not self._open:
            return
        self._open = False
        for fd in (self.kick_fd, self.err_fd, *([self.call_fd] if self._own_call else [])):
            fd.close()
        self.ring.desc = NULL
        self.ring.avail = NULL
        self.ring.used = NULL
        self.ring.driver_event = NULL
        self.ring.device_event = NULL
        self._desc_view = self._avail_view = self._used_view = None
        if not self.arena.closed:
            for table in self._tables.values():
                self.arena.free(table)
            if self._allocation is not None:
                self.arena.free(self._allocation)
        self._tables.clear()
        self._allocation = None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        self.close()

    @property
    def size(self):
        """Entries of the ring."""
        return self.ring.size

    @property
    def event_idx(self):
        """Whether EVENT_IDX rules both notifications (2.7.7, 2.7.10)."""
        return bool(self.ring.event_idx)

    @property
    def free(self):
        """Descriptors that are free."""
        return self.ring.free_count

    @property
    def in_flight(self):
        """Chains the device has and has not returned."""
        return self.ring.in_flight

    @property
    def broken(self):
        """What the device did that broke the ring for good, or None."""
        return FAULTS[self.ring.broken] if self.ring.broken else None

    @property
    def kicks(self):
        """How often the device wanted a kick at a publish."""
        return self.ring.kicks

    @property
    def publishes(self):
        """How often something was published."""
        return self.ring.publishes

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

    def add(self, readable, writable, *, token=None, indirect=None, table=None):
        """Put a chain into the next avail slot and return its head; the device sees it after `publish`.

        Both are sequences of (gpa, length in bytes), readable ones first in the chain (2.7.4.2). `indirect` overrides
        the ring's way for this chain; `table` is the guest address of memory of the caller's for its indirect table,
        which else is allocated until the chain comes back. `token` comes back with the used element.
        Raises LocalProtocolError for an empty chain or one that does not fit, DeviceError on a broken ring.
        """
        self._check()
        if self.ring.broken:
            self._raise_broken()
        cdef list buffers = [(gpa, length, 0) for gpa, length in readable]
        buffers += [(gpa, length, DESC_F_WRITE) for gpa, length in writable]
        cdef uint32_t count = len(buffers)
        if count == 0:
            raise LocalProtocolError("ring: a chain needs a buffer")
        writable_len = sum(length for _, length, flags in buffers if flags)
        if indirect is None:
            indirect = self.indirect and count > 1
        cdef long head = ring_take(&self.ring, 1 if indirect else count, min(writable_len, UINT64_MAX))
        if head < 0:
            raise LocalProtocolError(f"ring: {count} buffers do not fit, {self.ring.free_count} descriptors are free")
        cdef uint32_t i
        cdef uint32_t at = <uint32_t>head
        cdef uint16_t more
        if indirect:
            if table is None:
                try:
                    table = self.arena.alloc(virtio.desc_table_len(count), virtio.DESC_ALIGN)
                except LocalProtocolError:
                    ring_give(&self.ring, <uint32_t>head)
                    raise
                self._tables[head] = table
            self.arena.write(table, self._table_of(buffers))
            self._write_desc(at, table, virtio.desc_table_len(count), DESC_F_INDIRECT, 0)
        else:
            for i in range(count):
                gpa, length, flags = buffers[i]
                more = i + 1 < count
                self._write_desc(
                    at, gpa, length, flags | (DESC_F_NEXT if more else 0), self.ring.link[at] if more else 0)
                at = self.ring.link[at]
        self._tokens[head] = token
        ring_offer(&self.ring, <uint16_t>head)
        return head

    def _table_of(self, buffers):
        """Return the bytes of an indirect table. One of a packed ring is read in order and has no NEXT (2.8.7)."""
        if self.packed:
            return b"".join(struct.pack("<QIHH", gpa, length, 0, flags) for gpa, length, flags in buffers)
        count = len(buffers)
        return b"".join(
            struct.pack("<QIHH", gpa, length, flags | (DESC_F_NEXT if i + 1 < count else 0), (i + 1) % count)
            for i, (gpa, length, flags) in enumerate(buffers)
        )

    def publish(self):
        """Let the device see what was added; return whether it wants a kick. Sends none."""
        self._check()
        return bool(ring_publish(&self.ring))

    def kick(self, *, force=False):
        """Publish, and write the kick eventfd when the device wants that, or with `force` in any case."""
        if self.publish() or force:
            os.eventfd_write(self.kick_fd.number, 1)

    def pop(self):
        """Return the next Used, or None when there is none. Raises DeviceError, and breaks the ring, for a bad one."""
        self._check()
        cdef uint32_t head = 0
        cdef uint32_t length = 0
        cdef int code = ring_pop(&self.ring, &head, &length)
        if code == RING_EMPTY:
            return None
        if code < 0:
            self._raise_broken()
        ring_give(&self.ring, head)
        table = self._tables.pop(head, None)
        if table is not None:
            self.arena.free(table)
        return Used(head, length, self._tokens.pop(head, None))

    def reap(self):
        """Return every Used that is there now."""
        cdef list found = []
        used = self.pop()
        while used is not None:
            found.append(used)
            used = self.pop()
        return found

    def arm(self):
        """Ask for a call at the next used element; return whether one is there already, so that no call is promised."""
        self._check()
        return bool(ring_arm(&self.ring))

    def disarm(self):
        """Ask for no calls."""
        self._check()
        ring_disarm(&self.ring)

    def wait(self, timeout=5.0, *, poll=False):
        """Return the used elements there are, at least one, waiting at most `timeout` seconds.

        Sleeps on the call eventfd; with `poll` it spins on used.idx and asks for no calls. Raises DeviceTimeout,
        RingError when the back-end signals the error eventfd, DeviceGone when `watch_fd` (the socket) hangs up.
        """
        deadline = time.monotonic() + timeout
        if poll:
            self.disarm()
        while True:
            found = self.reap()
            if found:
                return found
            if poll:
                self._spin(deadline)
            elif not self.arm():
                self._sleep(deadline)

    def _spin(self, deadline):
        cdef int _i
        while time.monotonic() < deadline:
            with nogil:
                for _i in range(1000):
                    if ring_has_used(&self.ring):
                        break
                    cpu_relax()
            if ring_has_used(&self.ring):
                return
        raise DeviceTimeout(f"{self.ring.in_flight} chains were not returned in time")

    def _sleep(self, deadline):
        cdef pollfd fds[3]
        cdef int timeout_ms = max(0, int((deadline - time.monotonic()) * 1000 + 0.999))
        cdef int ready
        fds[0].fd = self.call_fd.number
        fds[1].fd = self.err_fd.number
        fds[2].fd = self.watch_fd
        fds[0].events = fds[1].events = POLLIN
        fds[2].events = 0  # only a hang-up: what the socket has to say is the front-end's to read
        fds[0].revents = fds[1].revents = fds[2].revents = 0
        with nogil:
            ready = poll(fds, 3, timeout_ms)
        if ready < 0 and errno == EINTR:
            return
        if fds[0].revents:
            self.take_call()
        elif fds[1].revents:
            raise RingError("the back-end signalled VRING_ERR")
        elif fds[2].revents:
            raise DeviceGone("the back-end closed the connection with chains in flight")
        elif ready == 0:
            raise DeviceTimeout(f"{self.ring.in_flight} chains were not returned in time, no call came")

    def tokens(self):
        """Return the tokens of all chains that the device has, oldest head numbers first: for whoever evacuates."""
        return [token for _, token in sorted(self._tokens.items())]

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

    def raw_wait(self, timeout=5.0):
        """Wait for a raw used element at most `timeout` seconds and return it as `raw_pop` does."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.raw_pop()
            if found is not None:
                return found
            if not self.arm():
                self._sleep(deadline)

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
