"""A vhost-user disk in plain Python with packed rings, EVENT_IDX and IN_ORDER, which can be told to do one thing wrong.

No installed back-end offers packed rings: this one is what the tester's cases for them are tried on.
"""

import os
import struct
import sys
from types import SimpleNamespace

from tests.support.packed_device import AVAIL, NEXT, USED, WRITE, PackedDevice, Taken
from tests.support.wrong_backend import FEATURES, Session, WrongBackend

EVENT_IDX, RING_PACKED, IN_ORDER = 1 << 29, 1 << 34, 1 << 35


class BrokenRingError(Exception):
    """The ring cannot be trusted."""


class _Ring(PackedDevice):
    """A ring whose driver is not trusted: what breaks a rule breaks the ring, which is said."""

    strict = False

    def pop(self):
        before = self.avail_slot, self.avail_wrap
        try:
            return super().pop()
        except (AssertionError, EOFError, struct.error) as error:
            self.avail_slot, self.avail_wrap = before
            raise BrokenRingError(str(error)) from None

    def push(self, taken, length):
        wrong = self.wrong
        used = Taken(taken.id + ("packed: wrong id" in wrong), taken.readable, taken.writable, taken.descriptors)
        super().push(used, length + ("packed: used length" in wrong))
        if "packed: flags of the first round" in wrong:
            self.used_wrap = 1


class PackedBackend(WrongBackend):
    """Listens at `path`; `wrong` names its mistakes."""

    features = FEATURES | EVENT_IDX | RING_PACKED | IN_ORDER

    def session(self, connection):
        return _Session(self, connection)


class _Session(Session):
    device = None

    # The arena of PackedDevice.

    def read(self, gpa, length):
        area, at = self.find(gpa, 0)
        if at + length > len(area):
            raise EOFError
        return bytes(area[at : at + length])

    def write(self, gpa, data):
        area, at = self.find(gpa, 0)
        area[at : at + len(data)] = data

    def on_9(self, payload, fds):
        super().on_9(payload, fds)
        _, _, desc, used, avail, _ = struct.unpack("<IIQQQQ", payload)
        self.gpas = [self._gpa(uva) for uva in (desc, avail, used)]
        self.device = None

    def _gpa(self, uva):
        for gpa, length, start, _ in self.regions:
            if start <= uva < start + length:
                return gpa + uva - start
        raise EOFError

    def on_11(self, payload, fds):
        if self.device is not None and self.packed:
            avail = self.device.avail_slot | self.device.avail_wrap << 15
            used = self.device.used_slot | self.device.used_wrap << 15
            self.base = avail | (used ^ ("packed: wrong base" in self.wrong)) << 16
            self.started, self.device = False, None
            return struct.pack("<II", 0, self.base)
        return super().on_11(payload, fds)

    @property
    def packed(self):
        return bool(self.features & RING_PACKED)

    def ring(self):
        if not self.packed:
            self._split()
            return
        if not (self.enabled and self.addr):
            return
        if self.device is None:
            self._begin()
        device = self.device
        try:
            self._turns(device)
        except BrokenRingError:
            device.call()
            self.enabled = False
            if "packed: silent" not in self.wrong:
                os.eventfd_write(self.fds["err"], 1)

    def _turns(self, device):
        device.want_kicks(False)
        while True:
            while (taken := device.pop()) is not None:
                device.push(taken, self._do(taken))
            self._call(device)
            device.want_kicks(True)
            if not device.is_available():
                return

    def _begin(self):
        desc, avail, used = self.gpas
        call = SimpleNamespace(number=self.fds["call"])
        queue = SimpleNamespace(
            size=self.size, event_idx=bool(self.features & EVENT_IDX), desc_gpa=desc, avail_gpa=avail, used_gpa=used,
            call_fd=call,
        )  # fmt: skip
        self.device = _Ring(self, queue, self.base & 0x7FFF, self.base >> 15 & 1)
        self.device.used_slot, self.device.used_wrap = self.base >> 16 & 0x7FFF, self.base >> 31
        self.device.wrong = self.wrong

    def on_13(self, payload, fds):
        super().on_13(payload, fds)
        if self.device is not None:
            self.device.queue.call_fd.number = self.fds["call"]

    def _call(self, device):
        if "packed: never calls" in self.wrong:
            device.passed = []
        elif "packed: calls always" in self.wrong and device.passed:
            device.passed = []
            os.eventfd_write(self.fds["call"], 1)
        else:
            device.call()

    def _do(self, taken):
        try:
            readable = b"".join(self.read(at, length) for at, length in taken.readable)
            room = [(*self.find(at, 0), length) for at, length in taken.writable if length]
        except EOFError:
            raise BrokenRingError("a buffer that is not there") from None
        if not room or len(readable) < 16 or any(at + length > len(area) for area, at, length in room):
            raise BrokenRingError("a buffer that is not long enough")
        return self.carry_out(readable, room)

    def _split(self):
        """The split ring with EVENT_IDX: kicks are asked for behind what was taken, calls made where asked for."""
        if not (self.enabled and self.addr):
            return
        if not self.features & EVENT_IDX:
            super().ring()
            return
        (_, _), (drv, avail), (dev, used) = self.addr
        while True:
            old = self.base
            wrong, self.wrong, self.fds_call = self.wrong, self.wrong | {"never calls"}, None
            super().ring()
            self.wrong = wrong
            if old != self.base:
                (event,) = struct.unpack_from("<H", drv, avail + 4 + 2 * self.size)
                if (self.base - event - 1) % 65536 < (self.base - old) % 65536:
                    os.eventfd_write(self.fds["call"], 1)
            struct.pack_into("<H", dev, used + 4 + 8 * self.size, self.base)
            if struct.unpack_from("<H", drv, avail + 2)[0] == self.base:
                return


__all__ = ["AVAIL", "NEXT", "USED", "WRITE", "PackedBackend"]

if __name__ == "__main__":
    PackedBackend(sys.argv[1], *sys.argv[2:]).thread.join()
