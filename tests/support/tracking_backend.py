"""A vhost-user disk in plain Python that tracks its requests in flight and moves its state, right or wrong in one way.

No installed back-end offers either: this one is what the tester's cases for them are tried on.
"""

import mmap
import os
import struct

from tests.support.wrong_backend import PROTOCOL, Session, WrongBackend

INFLIGHT_SHMFD, DEVICE_STATE = 1 << 12, 1 << 19
HEAD, ENTRY = 16, 16
STATE = b"a state of this disk"
SAVE = 0


class TrackingBackend(WrongBackend):
    """Listens at `path`; `wrong` names its mistakes."""

    protocol = PROTOCOL | INFLIGHT_SHMFD | DEVICE_STATE

    def session(self, connection):
        return _Session(self, connection)


class _Session(Session):
    area, at, counter, loaded = None, 0, 0, True

    def on_31(self, payload, fds):
        _, _, queues, size = struct.unpack_from("<QQHH", payload)
        length = queues * (HEAD + ENTRY * size) - ("inflight: too small" in self.wrong) * ENTRY
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, length)
        if "inflight: not zeroed" in self.wrong:
            os.pwrite(fd, b"\1", HEAD)
        answer = struct.pack("<QQHH", length, 0, queues, size)
        return answer.ljust(20 if "inflight: 20 bytes" in self.wrong else len(payload), b"\0"), fd

    def on_32(self, payload, fds):
        length, self.at, _, size = struct.unpack_from("<QQHH", payload)
        self.area = mmap.mmap(fds[0], self.at + length)
        os.close(fds[0])
        _, version, _, _, used = struct.unpack_from("<QHHHH", self.area, self.at)
        self.again = []
        if version:
            marked = [n for n in range(size) if self.area[self.at + HEAD + ENTRY * n]]
            self.again = sorted(marked, key=self._counter_of)
            self.counter = max((self._counter_of(n) for n in marked), default=0)
        if "inflight: not again" in self.wrong:
            self.again = []
        version = 0 if "inflight: no version" in self.wrong else 1
        struct.pack_into("<QHHHH", self.area, self.at, 0, version, size, 0, used)

    def _counter_of(self, head):
        return struct.unpack_from("<Q", self.area, self.at + HEAD + ENTRY * head + 8)[0]

    def taken(self, head):
        if self.area is not None:
            self.counter += 1
            struct.pack_into("<B5xHQ", self.area, self.at + HEAD + ENTRY * head, 1, 0, self.counter)

    def returned(self, head):
        if self.area is not None and "inflight: left" not in self.wrong:
            self.area[self.at + HEAD + ENTRY * head] = 0
        if self.area is not None and "inflight: no used_idx" not in self.wrong:
            struct.pack_into("<H", self.area, self.at + 14, self._used_idx())

    def _used_idx(self):
        _, _, (dev, used) = self.addr
        return struct.unpack_from("<H", dev, used + 2)[0]

    def ring(self):
        again, self.again = getattr(self, "again", []), []
        if again and self.enabled and self.addr:
            (table, desc), _, (dev, used) = self.addr
            for head in again:
                length = self.serve(table, desc, head)
                index = self._used_idx()
                struct.pack_into("<II", dev, used + 4 + 8 * (index % self.size), head, length)
                struct.pack_into("<H", dev, used + 2, (index + 1) % 65536)
                self.returned(head)
            os.eventfd_write(self.fds["call"], 1)
        super().ring()

    def on_42(self, payload, fds):
        direction, _ = struct.unpack("<II", payload)
        with open(fds[0], "wb" if direction == SAVE else "rb", buffering=0) as pipe:
            if direction == SAVE:
                pipe.write(STATE)
                self.held = os.dup(pipe.fileno()) if "state: held open" in self.wrong else None
                return struct.pack("<Q", 1 << 8)
            self.reading = os.dup(pipe.fileno())
        return struct.pack("<Q", 1 << 8)

    def on_43(self, payload, fds):
        if getattr(self, "reading", None) is not None:
            with open(self.reading, "rb") as pipe:
                self.loaded = pipe.read() == STATE or "state: takes all" in self.wrong
            self.reading = None
        return struct.pack("<Q", 0 if self.loaded else 1)
