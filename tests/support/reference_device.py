"""A device's half of the split ring in plain Python, slow and written line by line from 2.7."""

import os
import struct

NEXT, WRITE, INDIRECT = 1, 2, 4


def need_event(event, new, old):
    """2.7.10: `(u16)(new_idx - event_idx - 1) < (u16)(new_idx - old)`."""
    return (new - event - 1) % 65536 < (new - old) % 65536


class ReferenceDevice:
    """Reads and writes the ring through the arena, as another process would through its mapping."""

    def __init__(self, arena, queue, base=0):
        self.arena = arena
        self.queue = queue
        self.size = queue.size
        self.event_idx = queue.event_idx
        self.last_avail = base
        self.used_idx = base
        self.signalled = base  # used.idx at the last call

    def u16(self, gpa):
        return struct.unpack("<H", self.arena.read(gpa, 2))[0]

    def put16(self, gpa, value):
        self.arena.write(gpa, struct.pack("<H", value % 65536))

    @property
    def avail_event_gpa(self):
        return self.queue.used_gpa + 4 + 8 * self.size

    @property
    def used_event_gpa(self):
        return self.queue.avail_gpa + 4 + 2 * self.size

    def pending(self):
        return (self.u16(self.queue.avail_gpa + 2) - self.last_avail) % 65536

    def pop(self):
        """Return (head, readable, writable) with lists of (gpa, length), or None."""
        if not self.pending():
            return None
        head = self.u16(self.queue.avail_gpa + 4 + 2 * (self.last_avail % self.size))
        self.last_avail = (self.last_avail + 1) % 65536
        readable, writable = [], []
        table, count, index = self.queue.desc_gpa, self.size, head
        seen = 0
        while True:
            assert index < count, "a descriptor outside its table"
            addr, length, flags, following = struct.unpack("<QIHH", self.arena.read(table + 16 * index, 16))
            if flags & INDIRECT:
                assert table == self.queue.desc_gpa, "an indirect table in an indirect table (2.7.5.3.1)"
                assert not flags & NEXT, "INDIRECT with NEXT (2.7.5.3.1)"
                assert length % 16 == 0
                table, count, index = addr, length // 16, 0
                continue
            if flags & WRITE:
                writable.append((addr, length))
            else:
                assert not writable, "a readable buffer behind a writable one (2.7.4.2)"
                readable.append((addr, length))
            seen += 1
            assert seen <= count, "a chain with a loop (2.7.5.1)"
            if not flags & NEXT:
                return head, readable, writable
            index = following

    def push(self, head, length):
        at = self.queue.used_gpa + 4 + 8 * (self.used_idx % self.size)
        self.arena.write(at, struct.pack("<II", head, length))
        self.used_idx = (self.used_idx + 1) % 65536

    def publish(self):
        """Publish the used idx; call when the driver wants it. Returns whether it called."""
        self.put16(self.queue.used_gpa + 2, self.used_idx)
        if self.used_idx == self.signalled:
            return False
        if self.event_idx:
            wanted = need_event(self.u16(self.used_event_gpa), self.used_idx, self.signalled)
        else:
            wanted = not self.u16(self.queue.avail_gpa) & 1
        self.signalled = self.used_idx
        if wanted:
            os.eventfd_write(self.queue.call_fd.number, 1)
        return wanted

    def want_kicks(self, wanted):
        """Say whether the next entry is to be announced by a kick."""
        if self.event_idx:
            self.put16(self.avail_event_gpa, self.last_avail if wanted else self.last_avail - 1)
        else:
            self.put16(self.queue.used_gpa, 0 if wanted else 1)

    def serve(self, length=0):
        """Return every chain with `length` bytes written."""
        served = []
        while (chain := self.pop()) is not None:
            served.append(chain)
            self.push(chain[0], length)
        self.publish()
        return served
