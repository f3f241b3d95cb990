"""A device's half of the packed ring in plain Python, slow and written line by line from 2.8."""

import os
import struct
from dataclasses import dataclass

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2


@dataclass
class Taken:
    """A chain the device has: its buffer id, its buffers as (gpa, length), and how many descriptors it occupied."""

    id: int
    readable: list
    writable: list
    descriptors: int


class PackedDevice:
    """Reads and writes the ring through the arena, as another process would through its mapping.

    Whatever breaks a rule is an AssertionError; `strict` also has the driver keep those that a device has to ignore.
    """

    strict = True

    def __init__(self, arena, queue, slot=0, wrap=1):
        self.arena = arena
        self.queue = queue
        self.size = queue.size
        self.event_idx = queue.event_idx
        self.avail_slot, self.avail_wrap = slot, wrap
        self.used_slot, self.used_wrap = slot, wrap
        self.passed = []  # (slot, wrap) of each descriptor used since the last call

    def descriptor(self, slot):
        return struct.unpack("<QIHH", self.arena.read(self.queue.desc_gpa + 16 * slot, 16))

    def event(self, gpa):
        return struct.unpack("<HH", self.arena.read(gpa, 4))

    def is_available(self):
        """2.8.1: AVAIL is the device's wrap counter and USED its inverse."""
        flags = self.descriptor(self.avail_slot)[3]
        return bool(flags & AVAIL) == bool(self.avail_wrap) and bool(flags & USED) != bool(self.avail_wrap)

    @staticmethod
    def onward(slot, wrap, count, size):
        slot += count
        return (slot - size, 1 - wrap) if slot >= size else (slot, wrap)

    def pop(self):
        """Return the next Taken, or None."""
        if not self.is_available():
            return None
        readable, writable, count = [], [], 0
        while True:
            addr, length, ident, flags = self.descriptor(self.avail_slot)
            assert bool(flags & AVAIL) == bool(self.avail_wrap) != bool(flags & USED), (
                "a chain that is not all available"
            )
            self.avail_slot, self.avail_wrap = self.onward(self.avail_slot, self.avail_wrap, 1, self.size)
            count += 1
            assert count <= self.size, "a chain longer than the ring"
            if flags & INDIRECT:
                assert not flags & (NEXT | WRITE if self.strict else NEXT), "2.8.7, 2.8.19: INDIRECT stands alone"
                assert 0 < length <= 16 << 15
                assert length % 16 == 0
                for at in range(addr, addr + length, 16):
                    inner, inner_len, _, inner_flags = struct.unpack("<QIHH", self.arena.read(at, 16))
                    assert inner_flags in (0, WRITE) or not self.strict, "2.8.7: only WRITE counts in a table"
                    self._place(readable, writable, inner, inner_len, inner_flags)
            else:
                self._place(readable, writable, addr, length, flags)
            if not flags & NEXT:
                return Taken(ident, readable, writable, count)

    @staticmethod
    def _place(readable, writable, addr, length, flags):
        if flags & WRITE:
            writable.append((addr, length))
        else:
            assert not writable, "a readable buffer behind a writable one"
            readable.append((addr, length))

    def push(self, taken, length):
        """Write a used descriptor; its flags last (2.8.2)."""
        at = self.queue.desc_gpa + 16 * self.used_slot
        flags = (AVAIL | USED if self.used_wrap else 0) | (WRITE if length else 0)
        self.arena.write(at + 8, struct.pack("<IH", length, taken.id))
        self.arena.write(at + 14, struct.pack("<H", flags))
        for n in range(taken.descriptors):
            self.passed.append(self.onward(self.used_slot, self.used_wrap, n, self.size))
        self.used_slot, self.used_wrap = self.onward(self.used_slot, self.used_wrap, taken.descriptors, self.size)

    def call(self):
        """Call when the driver wants it for what was used since the last time (2.8.10). Returns whether it did."""
        passed, self.passed = self.passed, []
        if not passed:
            return False
        off_wrap, flags = self.event(self.queue.avail_gpa)
        named = (off_wrap & 0x7FFF, off_wrap >> 15) in passed
        wanted = named if flags == DESC and self.event_idx else flags != DISABLE
        if wanted:
            os.eventfd_write(self.queue.call_fd.number, 1)
        return wanted

    def want_kicks(self, wanted):
        """Say whether the next descriptor is to be announced by a kick."""
        if not wanted:
            event = 0, DISABLE
        elif self.event_idx:
            event = self.avail_slot | self.avail_wrap << 15, DESC
        else:
            event = 0, ENABLE
        self.arena.write(self.queue.used_gpa, struct.pack("<HH", *event))
