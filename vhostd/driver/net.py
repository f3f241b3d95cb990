"""Frames as a guest's driver sends and receives them (5.1.6): a header, then Ethernet.

Whether the header has 12 bytes or 10 depends on what was negotiated (5.1.6.1), and with MRG_RXBUF a frame may fill
several buffers (5.1.6.4).
"""

import dataclasses
import itertools
import struct
import time
from collections.abc import Sequence
from typing import Self

from vhostd.driver.buffers import GUARD, POISON, cut
from vhostd.driver.virtqueue import Used, Virtqueue
from vhostd.errors import DeviceError, DeviceTimeout
from vhostd.spec.net import FRAME_LEN_MAX, HEADER_LEN, HEADER_LEN_LEGACY, Feature
from vhostd.spec.virtio import Feature as RingFeature


@dataclasses.dataclass(frozen=True)
class NetHeader:
    """virtio_net_hdr (5.1.6); lengths and offsets in bytes."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, length: int) -> bytes:
        """Return the first `length` bytes of the header, 10 or 12."""
        return struct.pack("<BBHHHHH", *dataclasses.astuple(self))[:length]

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the header of 10 or 12 bytes; num_buffers is 0 where it is absent."""
        return cls(*struct.unpack("<BBHHHHH", data.ljust(HEADER_LEN, b"\0")))


@dataclasses.dataclass(frozen=True)
class Received:
    """A frame, its header, and the used length of each buffer it came in."""

    header: NetHeader
    frame: bytes
    used_lens: tuple[int, ...]


def header_len(features: int) -> int:
    """Return how many bytes the header has with these acknowledged features (5.1.6.1)."""
    return HEADER_LEN if features & (RingFeature.VERSION_1 | Feature.MRG_RXBUF) else HEADER_LEN_LEGACY


class NetDriver:
    """One queue pair; `features` are the acknowledged ones, `timeout` is in seconds."""

    def __init__(self, rx: Virtqueue, tx: Virtqueue, features: int, *, timeout: float = 5.0) -> None:
        self.rx = rx
        self.tx = tx
        self.arena = rx.arena
        self.timeout = timeout
        self.header_len = header_len(features)
        self.mergeable = bool(features & Feature.MRG_RXBUF)
        self._arrived: list[tuple[bytes, int]] = []  # what each used buffer holds, and its used length

    def post(self, count: int, length: int = FRAME_LEN_MAX + HEADER_LEN, pieces: Sequence[int] = ()) -> None:
        """Post `count` receive buffers of `length` bytes, cut into `pieces` and the rest, with at most one kick.

        The usual buffer is one descriptor (5.1.6.3.1); [header_len] keeps the header apart.
        """
        for _ in range(count):
            writable = [self._buffer(bytes([POISON]) * n) for n in cut(length, pieces)]
            self.rx.add([], writable, token=writable)
        self.rx.kick()

    def receive(self, timeout: float | None = None) -> Received:
        """Return the next frame, gathered from all its buffers; they are not posted again.

        Raises DeviceTimeout when none comes, DeviceError for a header that cannot be (5.1.6.4).
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        first, used_len = self._next(deadline)
        if used_len < self.header_len:
            raise DeviceError(f"rx: a buffer used with {used_len} bytes has no header (5.1.6.4)")
        header = NetHeader.unpack(first[: self.header_len])
        if self.mergeable and header.num_buffers == 0:
            raise DeviceError("rx: num_buffers is 0 (5.1.6.4.1)")
        if not self.mergeable and self.header_len == HEADER_LEN and header.num_buffers != 1:
            raise DeviceError(f"rx: num_buffers is {header.num_buffers} without MRG_RXBUF (5.1.6.4.1)")
        parts, lens = [first[self.header_len :]], [used_len]
        for _ in range(header.num_buffers - 1 if self.mergeable else 0):
            part, used_len = self._next(deadline)
            parts.append(part)
            lens.append(used_len)
        return Received(header, b"".join(parts), tuple(lens))

    def send(self, frame: bytes, header: NetHeader | None = None, pieces: Sequence[int] | None = None) -> None:
        """Send a frame; `pieces` cut header and frame, None keeps the header apart. Reclaims what was sent before."""
        self._reclaim(self.tx.reap())
        data = (header or NetHeader()).pack(self.header_len) + frame
        lengths = cut(len(data), [self.header_len] if pieces is None else pieces)
        starts = itertools.accumulate(lengths, initial=0)
        readable = [self._buffer(data[at : at + n]) for at, n in zip(starts, lengths, strict=False)]
        self.tx.add(readable, [], token=readable)
        self.tx.kick()

    def drain(self, timeout: float | None = None) -> None:
        """Wait until every frame that was sent is returned. Raises DeviceTimeout otherwise."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while self.tx.in_flight:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceTimeout(f"{self.tx.in_flight} frames were not returned in time")
            self._reclaim(self.tx.wait(left))

    def _next(self, deadline: float) -> tuple[bytes, int]:
        while not self._arrived:
            for used in self.rx.wait(max(0.0, deadline - time.monotonic())):
                content = b"".join(self.arena.read(gpa, length) for gpa, length in used.token)
                self._arrived.append((content[: used.length], used.length))
                self._release(used)
        return self._arrived.pop(0)

    def _reclaim(self, found: list[Used]) -> None:
        for used in found:
            if used.length:
                raise DeviceError(f"tx: used length {used.length} of a chain with nothing writable (2.7.8.2)")
            self._release(used)

    def _buffer(self, content: bytes) -> tuple[int, int]:
        gpa = self.arena.alloc(len(content) + len(GUARD))
        self.arena.write(gpa, content + GUARD)
        return gpa, len(content)

    def _release(self, used: Used) -> None:
        for gpa, length in used.token:
            if self.arena.read(gpa + length, len(GUARD)) != GUARD:
                raise DeviceError(f"the device wrote behind the {length} bytes at {gpa:#x}")
            self.arena.free(gpa)
