"""A driver's half of a split ring, field by field, in memory of its own: for rings that no driver would make."""

import itertools
import os
import struct

from vhostd.fds import Fd
from vhostd.queues.counters import Counters
from vhostd.queues.memory import Fault, GuestMemory, Region
from vhostd.queues.queue import Queue
from vhostd.spec import virtio

UVA = 0x7F00_0000_0000
MEMORY_LEN = 1 << 20
TABLE, AVAIL, USED, DATA = 0x0, 0x80000, 0x90000, 0x40000
NEXT, WRITE, INDIRECT = 1, 2, 4


class FakeGuest:
    """Guest memory: regions of one memfd each, `borders` cut the guest-physical space into adjacent regions."""

    def __init__(self, length=MEMORY_LEN, borders=(), holes=()):
        self.fault = Fault()
        self.files = []
        self.regions = []
        edges = [0, *borders, length]
        for start, end in itertools.pairwise(edges):
            if start in holes:
                continue
            fd = Fd(os.memfd_create("guest"))
            os.ftruncate(fd.number, end - start)
            self.files.append(fd)
            self.regions.append(Region(fd.number, start, end - start, UVA + start, 0, self.fault))
        self.memory = GuestMemory(self.regions, self.fault)

    def write(self, gpa, data):
        for region in self.regions:
            if region.gpa <= gpa and gpa + len(data) <= region.gpa + region.length:
                with memoryview(region) as view:
                    view[gpa - region.gpa : gpa - region.gpa + len(data)] = data
                return
            if region.gpa <= gpa < region.gpa + region.length:
                part = region.gpa + region.length - gpa
                self.write(gpa, data[:part])
                self.write(gpa + part, data[part:])
                return
        raise AssertionError(f"test writes outside its memory: {gpa:#x}")

    def read(self, gpa, length):
        return self.memory.read(gpa, length)

    def close(self):
        for region in self.regions:
            region.close()
        for fd in self.files:
            fd.close()


class FakeRing:
    """The three areas of a ring of `size`, written to directly; `queue` is ours over the same memory."""

    def __init__(
        self, size=8, features=int(virtio.Feature.VERSION_1 | virtio.Feature.INDIRECT_DESC), base=0, guest=None
    ):
        self.guest = guest or FakeGuest()
        self.size = size
        self.event_idx = bool(features & virtio.Feature.EVENT_IDX)
        self.idx = base
        self.counters = Counters()
        self.guest.write(AVAIL + 2, struct.pack("<H", base))
        self.guest.write(USED + 2, struct.pack("<H", base))
        self.call = Fd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self.err = Fd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self.queue = self.make_queue(features, base)

    def make_queue(self, features, base, memory=None):
        queue = Queue(0, self.size, UVA + TABLE, UVA + AVAIL, UVA + USED, base, features,
                      memory or self.guest.memory, self.counters)  # fmt: skip
        queue.set_fds(self.call.number, self.err.number)
        queue.set_enabled(True)
        return queue

    def desc(self, index, addr, length, flags=0, next_=0, table=TABLE):
        self.guest.write(table + 16 * index, struct.pack("<QIHH", addr, length, flags, next_))

    def chain(self, head, buffers, first=None):
        """Write a direct chain of (addr, length, flags) from descriptor `head` on, in order of the table."""
        for i, (addr, length, flags) in enumerate(buffers):
            last = i == len(buffers) - 1
            at = (head + i) % self.size
            self.desc(at, addr, length, flags | (0 if last else NEXT), (at + 1) % self.size)

    def make_available(self, head):
        self.guest.write(AVAIL + 4 + 2 * (self.idx % self.size), struct.pack("<H", head))
        self.set_avail_idx(self.idx + 1)

    def set_avail_idx(self, idx):
        self.idx = idx & 0xFFFF
        self.guest.write(AVAIL + 2, struct.pack("<H", self.idx))

    def set_avail_flags(self, flags):
        self.guest.write(AVAIL, struct.pack("<H", flags))

    def set_used_event(self, event):
        self.guest.write(AVAIL + 4 + 2 * self.size, struct.pack("<H", event & 0xFFFF))

    @property
    def used_flags(self):
        return struct.unpack("<H", self.guest.read(USED, 2))[0]

    @property
    def used_idx(self):
        return struct.unpack("<H", self.guest.read(USED + 2, 2))[0]

    @property
    def avail_event(self):
        return struct.unpack("<H", self.guest.read(USED + 4 + 8 * self.size, 2))[0]

    def used(self, slot):
        return struct.unpack("<II", self.guest.read(USED + 4 + 8 * (slot % self.size), 8))

    def calls(self):
        """How often the driver was called since last asked."""
        try:
            return os.eventfd_read(self.call.number)
        except BlockingIOError:
            return 0

    def errors(self):
        try:
            return os.eventfd_read(self.err.number)
        except BlockingIOError:
            return 0

    def close(self):
        self.guest.close()
        self.call.close()
        self.err.close()
