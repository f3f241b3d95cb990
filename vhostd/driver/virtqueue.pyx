"""The driver's half of a virtqueue, written from the specification: the split ring (2.7) and the packed one (2.8).

Both keep one book of descriptors here; what each does to its memory, and in what order, is in split_ring.pyx and
packed.pyx. ring_memory.pyx has that memory.
"""

import collections
import os
import struct
import time

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport UINT64_MAX, uint16_t, uint32_t, uint64_t

from vhostd.atomics cimport cpu_relax
from vhostd.driver.packed cimport packed_arm, packed_disarm, packed_has_used, packed_offer, packed_pop, packed_publish
from vhostd.driver.ring_memory cimport RingMemory
from vhostd.driver.split_ring cimport split_arm, split_disarm, split_has_used, split_offer, split_pop, split_publish
from vhostd.spec.layout cimport DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

from vhostd.errors import DeviceError, DeviceGone, DeviceTimeout, LocalProtocolError, RingError
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
    else:
        split_offer(ring, head)


cdef bint ring_publish(ring_t *ring) noexcept nogil:
    return packed_publish(ring) if ring.packed != NULL else split_publish(ring)


cdef bint ring_has_used(const ring_t *ring) noexcept nogil:
    return packed_has_used(ring) if ring.packed != NULL else split_has_used(ring)


cdef int ring_pop(ring_t *ring, uint32_t *head, uint32_t *length) noexcept nogil:
    return packed_pop(ring, head, length) if ring.packed != NULL else split_pop(ring, head, length)


cdef bint ring_arm(ring_t *ring) noexcept nogil:
    return packed_arm(ring) if ring.packed != NULL else split_arm(ring)


cdef void ring_disarm(ring_t *ring) noexcept nogil:
    if ring.packed != NULL:
        packed_disarm(ring)
    else:
        split_disarm(ring)


@cython.final
cdef class Virtqueue(RingMemory):
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
        self.watch_fd = -1

    def __init__(self, arena, size, *, event_idx=False, indirect=False, layout=None, parts=None, base=None,
                 packed=False, call_fd=None):
        RingMemory.__init__(
            self, arena, size, event_idx=event_idx, layout=layout, parts=parts, packed=packed, call_fd=call_fd)
        self.indirect = indirect
        self._tokens = {}
        self._tables = {}
        self.reset(base)

    cdef int _raise_broken(self) except -1:
        raise DeviceError(f"the ring is broken: {FAULTS[self.ring.broken]}")

    def reset(self, base=None):
        """Zero the ring's memory, forget every chain, and start both sides at `base`, as the constructor has it.

        Only while the back-end has stopped the ring: this is a driver's reset, or a ring that begins anywhere.
        """
        self._zero(base)
        cdef ring_t *ring = &self.ring
        cdef uint32_t i
        for i in range(ring.size):
            ring.link[i] = i + 1 if i + 1 < ring.size else NONE
            ring.count[i] = 0
        ring.free_head = 0
        ring.free_count = ring.size
        ring.in_flight = 0
        ring.broken = 0
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
        if not self.arena.closed:
            for table in self._tables.values():
                self.arena.free(table)
        self._tables.clear()
        self._let_go()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        self.close()

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

    def raw_wait(self, timeout=5.0):
        """Wait for a raw used element at most `timeout` seconds and return it as `raw_pop` does."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.raw_pop()
            if found is not None:
                return found
            if not self.arm():
                self._sleep(deadline)
