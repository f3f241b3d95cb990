"""Something for a ring to do, whichever device it belongs to: a disk reads, a card transmits.

With it a rule about rings is one case for both kinds of device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vhostd.driver.buffers import GUARD, cut
from vhostd.driver.conformance import words
from vhostd.driver.conformance.told import ToldBlockDriver
from vhostd.driver.conformance.verdict import Evidence, Failed
from vhostd.driver.frames import GUEST, HOST, frame
from vhostd.driver.net import NetHeader, header_len
from vhostd.driver.virtqueue import Virtqueue
from vhostd.spec.blk import SECTOR_LEN, Request


@dataclass(eq=False)
class Item:
    """One piece of work: `token` is what the ring's driver has for it; `used_len` once it is back."""

    number: int
    token: object
    used_len: int | None = None


class Work(Protocol):
    """Work on one ring."""

    queue: Virtqueue

    def submit(
        self, number: int = 0, *, kick: bool = True, indirect: bool | None = None, pieces: Sequence[int] | None = None
    ) -> Item:
        """Hand a piece of work to the device; `pieces` cut what the device reads."""
        ...

    def collect(self, timeout: float | None = None) -> list[Item]:
        """Wait for work that is back, and hold it to what it must be."""
        ...

    def finish(self, item: Item) -> Item:
        """Wait for one piece of work."""
        ...


class _Finishing:
    def finish(self: "Work", item: Item) -> Item:
        """Wait for one piece of work."""
        while item.used_len is None:
            self.collect()
        return item


class Reads(_Finishing):
    """Reads of a sector each, compared with what is there; `expected` begins at sector `first`."""

    def __init__(self, driver: ToldBlockDriver, first: int, expected: bytes) -> None:
        self.driver = driver
        self.queue = driver.queue
        self.first = first
        self.expected = expected
        self._items: dict[int, Item] = {}

    def submit(
        self, number: int = 0, *, kick: bool = True, indirect: bool | None = None, pieces: Sequence[int] | None = None
    ) -> Item:
        """Read sector `number` of what is known, modulo its length."""
        at = number % (len(self.expected) // SECTOR_LEN)
        pending = self.driver.submit(
            Request.IN, self.first + at, read_len=SECTOR_LEN, kick=kick, indirect=indirect, readable=pieces
        )
        item = Item(at, pending)
        self._items[id(pending)] = item
        return item

    def collect(self, timeout: float | None = None) -> list[Item]:
        """Wait for reads that are back. Raises Failed for other bytes than those on the disk."""
        found = []
        for pending in self.driver.collect(timeout):
            item = self._items.pop(id(pending))
            done = pending.completion
            assert done is not None
            item.used_len = done.used_len
            want = self.expected[item.number * SECTOR_LEN :][:SECTOR_LEN]
            if not done.ok or done.data != want:
                status = words.status_name(done.status)
                what = f"status {status}" if not done.ok else "other bytes than the disk holds"
                raise Failed(f"sector {self.first + item.number} to be read with status OK", what)
            found.append(item)
        return found


class Transmits(_Finishing):
    """Frames of 60 bytes, of a type that nobody answers, to a local address."""

    def __init__(self, queue: Virtqueue, features: int, evidence: Evidence, timeout: float) -> None:
        self.queue = queue
        self.arena = queue.arena
        self.header_len = header_len(features)
        self.evidence = evidence
        self.timeout = timeout

    def submit(
        self, number: int = 0, *, kick: bool = True, indirect: bool | None = None, pieces: Sequence[int] | None = None
    ) -> Item:
        """Transmit a frame that bears `number`."""
        data = NetHeader().pack(self.header_len) + frame(number.to_bytes(4), to=HOST, source=GUEST, length=60)
        buffers, at = [], 0
        for length in cut(len(data), [self.header_len] if pieces is None else pieces):
            gpa = self.arena.alloc(length + len(GUARD))
            self.arena.write(gpa, data[at : at + length] + GUARD)
            buffers.append((gpa, length))
            at += length
        item = Item(number, buffers)
        self.evidence.note(f"transmit a frame of 60 bytes: device-readable {words.lengths(buffers)}")
        self.queue.add(buffers, [], token=item, indirect=indirect)
        if kick:
            self.queue.kick()
        return item

    def collect(self, timeout: float | None = None) -> list[Item]:
        """Wait for frames that are back."""
        found = []
        for used in self.queue.wait(self.timeout if timeout is None else timeout):
            item: Item = used.token
            item.used_len = used.length
            for gpa, _ in item.token:  # type: ignore[attr-defined]
                self.arena.free(gpa)
            self.evidence.note(f"  used: length {used.length}")
            found.append(item)
        return found
