"""A block driver (5.2): every request type, split and bounded as the device asks, its answers not taken for granted.

A request is a header and a status byte in one piece of memory, 17 bytes, and data between them in the chain:

    offset  0 .......... 15   16
            type res sector   status         readable | data | writable

The status byte is poisoned before each request, so that a device which writes none is found out.
"""

import dataclasses
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Self

from vhostd.driver.blk import pack_segments
from vhostd.driver.buffers import POISON
from vhostd.driver.framework.chain import Chain
from vhostd.driver.framework.device import Device, plausible
from vhostd.driver.framework.pool import Buffer, Constraints, Pool
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec import blk
from vhostd.spec.blk import ConfigOffset, Feature, Request, StatusByte

WANTED = (
    Feature.SIZE_MAX
    | Feature.SEG_MAX
    | Feature.RO
    | Feature.BLK_SIZE
    | Feature.TOPOLOGY
    | Feature.FLUSH
    | Feature.CONFIG_WCE
    | Feature.MQ
    | Feature.DISCARD
    | Feature.WRITE_ZEROES
)
REQUESTS_MAX = 256
SEG_MAX_UNTOLD = 128  # data segments where the device does not say
HEAD_LEN = blk.HEADER_LEN + blk.STATUS_LEN
_IDENTITY = re.compile(rb"[A-Za-z0-9_-]*")


class BlockError(DeviceError):
    """The device answered that it did not do it, or not what it did. `status` is the byte, POISON for none."""

    counter = "unknown_status"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class IoError(BlockError):
    """Status 1: I/O, range, read-only, malformed."""

    counter = "io_errors"


class UnsupportedError(BlockError):
    """Status 2: the device does not do this."""

    counter = "unsupported"


class NoStatusError(BlockError):
    """The device wrote no status."""

    counter = "no_status"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What GET_ID gave: `text` is the leading run of A-Z a-z 0-9 - _, None when there is none; `raw` all 20 bytes."""

    raw: bytes
    text: str | None


class VioBlk:
    """One disk. Not for use from two threads.

    capacity: sectors of 512 bytes. seg_max, size_max: data segments of a request, and bytes of one. transfer_max: bytes
    of the longest request; longer ones are cut.
    """

    def __init__(self, device: Device, *, data_len: int = 1 << 17) -> None:
        self.device = device
        self.counters = device.counters
        self.read_config()
        ring = device.rings[0]
        # As many data segments as the longest request of ours needs, whatever more the device would take.
        segments = min(self.seg_max, -(-data_len // self.size_max))
        self.requests = min(ring.size, REQUESTS_MAX) if ring.indirect else max(1, ring.size // (segments + 2))
        capacity = segments + 2 if ring.indirect else min(segments + 2, ring.size)
        self.transfer_max = min(data_len, (capacity - 2) * self.size_max) // blk.SECTOR_LEN * blk.SECTOR_LEN
        if self.transfer_max < blk.SECTOR_LEN:
            raise LocalProtocolError(f"block: {ring.size} descriptors have no room for a sector")
        self.queue = device.make_queue(0, chains=self.requests, capacity=capacity)
        self._heads = Pool(device.arena, self.requests, HEAD_LEN, Constraints(first_len_min=HEAD_LEN))
        device.push_undo(self._heads.close)
        self._data = Pool(
            device.arena,
            min(self.requests, 64),
            self.transfer_max,
            Constraints(align=blk.SECTOR_LEN, segment_len_max=self.size_max, segments_max=capacity - 2),
        )
        device.push_undo(self._data.close)

    @classmethod
    def attach(cls, path: str, *, wanted: int = WANTED, data_len: int = 1 << 17, **options: object) -> "VioBlk":
        """Attach a device and start it; `options` as Device.attach has them. Close with `close`."""
        device = Device.attach(path, wanted=wanted, **options)  # type: ignore[arg-type]
        try:
            disk = cls(device, data_len=data_len)
            device.start()
        except BaseException:
            device.close()
            raise
        return disk

    def read_config(self) -> None:
        """Read what the device says of itself: at attach, and when it says that it changed.

        Raises DeviceError for a capacity that is absent.
        """
        device = self.device
        (self.capacity,) = struct.unpack("<Q", device.config(ConfigOffset.CAPACITY, 8))
        if self.capacity == (1 << 64) - 1:
            raise DeviceError("capacity is all ones: there is no configuration space (5.2.4)")
        self.seg_max = SEG_MAX_UNTOLD
        if device.has(Feature.SEG_MAX):
            self.seg_max = plausible(self._u32(ConfigOffset.SEG_MAX), 32, 1)
        self.size_max = 1 << 20
        if device.has(Feature.SIZE_MAX):
            self.size_max = plausible(self._u32(ConfigOffset.SIZE_MAX), 32, self.size_max)
        self.block_size = blk.SECTOR_LEN
        if device.has(Feature.BLK_SIZE):
            self.block_size = plausible(self._u32(ConfigOffset.BLK_SIZE), 32, blk.SECTOR_LEN)

    @property
    def read_only(self) -> bool:
        """Whether the device says that it takes no writes."""
        return self.device.has(Feature.RO)

    # Requests. Each is bounded by the device's timeout.

    def read(self, sector: int, length: int) -> bytes:
        """Read `length` bytes from `sector`. Raises LocalProtocolError outside the disk, BlockError, DeviceTimeout."""
        self._check_range(sector, length)
        parts = []
        for at, part_len in self._parts(length):
            parts.append(self._data_in(Request.IN, sector + at // blk.SECTOR_LEN, part_len))
        return b"".join(parts)

    def write(self, sector: int, data: bytes, *, force: bool = False) -> None:
        """Write `data` to `sector`. `force` sends it to a read-only device, too, which must refuse it."""
        self._check_range(sector, len(data))
        self._check_writable(force=force)
        for at, part_len in self._parts(len(data)):
            self._data_out(Request.OUT, sector + at // blk.SECTOR_LEN, data[at : at + part_len])

    def flush(self) -> None:
        """Make durable what was written. Where FLUSH was not agreed upon every write has been durable already."""
        if self.device.has(Feature.FLUSH):
            self._data_out(Request.FLUSH, 0, b"")

    def discard(self, segments: Sequence[tuple[int, int]], *, force: bool = False) -> None:
        """Discard (sector, sectors) ranges."""
        self._segments(Request.DISCARD, Feature.DISCARD, segments, 0, force=force)

    def write_zeroes(self, segments: Sequence[tuple[int, int]], *, unmap: bool = False, force: bool = False) -> None:
        """Write zeroes to (sector, sectors) ranges; `unmap` lets the device deallocate them."""
        flags = blk.WRITE_ZEROES_UNMAP if unmap else 0
        self._segments(Request.WRITE_ZEROES, Feature.WRITE_ZEROES, segments, flags, force=force)

    def get_id(self) -> Identity:
        """Ask for the identity. What was poisoned and not written, zeroes and an error are no identity.

        Raises DeviceTimeout; a disk that does not answer has no identity, and is not to be waited for at attach.
        """
        try:
            raw = self._data_in(Request.GET_ID, 0, blk.ID_LEN)
        except BlockError:
            return Identity(bytes([POISON]) * blk.ID_LEN, None)
        found = _IDENTITY.match(raw)
        text = found.group().decode("ascii") if found else ""
        return Identity(raw, text or None)

    @property
    def write_cache(self) -> bool | None:
        """Whether the device caches writes; None when it does not say."""
        if not self.device.has(Feature.CONFIG_WCE):
            return None
        return bool(self.device.config(ConfigOffset.WRITEBACK, 1)[0])

    @write_cache.setter
    def write_cache(self, enabled: bool) -> None:
        if not self.device.has(Feature.CONFIG_WCE):
            raise LocalProtocolError("block: CONFIG_WCE was not agreed upon (5.2.5)")
        self.device.frontend.set_config(ConfigOffset.WRITEBACK, bytes([enabled]))
        if self.write_cache != enabled:
            raise DeviceError(f"writeback was set to {int(enabled)} and reads back otherwise (5.2.5)")

    # Many at a time.

    def start_read(self, sector: int, length: int) -> Chain:
        """Submit a read of at most `transfer_max` bytes, not yet shown to the device; `finish` returns its data."""
        self._check_range(sector, length)
        return self._submit(Request.IN, sector, b"", length)

    def start_write(self, sector: int, data: bytes, *, force: bool = False) -> Chain:
        """Submit a write of at most `transfer_max` bytes, not yet shown to the device."""
        self._check_range(sector, len(data))
        self._check_writable(force=force)
        return self._submit(Request.OUT, sector, data, 0)

    def go(self) -> None:
        """Show the device all that was submitted."""
        self.queue.flush()

    def finish(self, chain: Chain) -> bytes:
        """Wait for a request and return what it read. Raises BlockError, DeviceTimeout."""
        try:
            self.queue.wait(chain, self.device.timeout)
        except DeviceError as error:
            if isinstance(error, DeviceTimeout) or self.queue.ring.broken:
                self._give_up(error)
            raise
        head, data, read_len = chain.cookie
        status = head.read(blk.HEADER_LEN, 1)[0]
        content = data.read(0, read_len) if data is not None and read_len else b""
        if chain.used_len != read_len + 1 and status == StatusByte.OK:
            self.counters["odd_lengths"] += 1  # a block driver does without the used length
        self._release(chain)
        self._raise_for(status)
        return content

    def close(self) -> None:
        """Flush what a write cache may hold, then give everything back; a second time does nothing."""
        if self.device.running and self.device.broken is None and not self.read_only:
            try:
                self.flush()
            except DeviceError:
                self.counters["close_errors"] += 1
        self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _u32(self, offset: int) -> int:
        return int.from_bytes(self.device.config(offset, 4), "little")

    def _parts(self, length: int) -> Iterable[tuple[int, int]]:
        for at in range(0, length, self.transfer_max):
            yield at, min(self.transfer_max, length - at)

    def _check_range(self, sector: int, length: int) -> None:
        sectors, rest = divmod(length, blk.SECTOR_LEN)
        # by subtraction, as it must be where numbers have a width
        if rest or not 0 <= sector <= self.capacity or sectors > self.capacity - sector:
            self.counters["bad_ranges"] += 1
            raise LocalProtocolError(f"block: {length} bytes at sector {sector} of {self.capacity}")

    def _check_writable(self, *, force: bool) -> None:
        if self.read_only and not force:
            raise LocalProtocolError("block: the disk is read-only (5.2.6.1)")

    def _segments(
        self, kind: Request, feature: Feature, segments: Sequence[tuple[int, int]], flags: int, *, force: bool
    ) -> None:
        if not self.device.has(feature):
            raise LocalProtocolError(f"block: {feature.name} was not agreed upon (5.2.3)")
        self._check_writable(force=force)
        for sector, sectors in segments:
            self._check_range(sector, sectors * blk.SECTOR_LEN)
        self._data_out(kind, 0, pack_segments(segments, flags))

    def _data_in(self, kind: Request, sector: int, length: int) -> bytes:
        chain = self._submit(kind, sector, b"", length)
        self.go()
        return self.finish(chain)

    def _data_out(self, kind: Request, sector: int, data: bytes) -> None:
        chain = self._submit(kind, sector, data, 0)
        self.go()
        self.finish(chain)

    def _submit(self, kind: Request, sector: int, data: bytes, read_len: int) -> Chain:
        length = len(data) or read_len
        if length > self.transfer_max:
            raise LocalProtocolError(f"block: a request of {length} bytes, {self.transfer_max} is the most")
        head, chain = self._heads.take(), self.queue.take()
        buffer = self._data.take() if length else None
        if head is None or chain is None or (length and buffer is None):
            for taken in (head, buffer):
                if taken is not None:
                    taken.give()
            if chain is not None:
                self.queue.give(chain)
            raise LocalProtocolError(f"block: all {self.requests} requests are out")
        head.write(struct.pack("<IIQB", kind, 0, sector, POISON))
        chain.append(head.gpa, blk.HEADER_LEN)
        if buffer is not None:
            buffer.write(data or bytes([POISON]) * read_len)
            self._append(chain, buffer, length, device_writes=bool(read_len))
        chain.append(head.gpa + blk.HEADER_LEN, blk.STATUS_LEN, device_writes=True)
        chain.cookie = (head, buffer, read_len)
        try:
            self.queue.submit(chain, awaited=True)
        except BaseException:
            self._release(chain)
            raise
        return chain

    @staticmethod
    def _append(chain: Chain, buffer: Buffer, length: int, *, device_writes: bool) -> None:
        for gpa, segment_len in buffer.segments:
            if length <= 0:
                break
            chain.append(gpa, min(segment_len, length), device_writes=device_writes)
            length -= segment_len

    def _release(self, chain: Chain) -> None:
        head, buffer, _ = chain.cookie
        head.give()
        if buffer is not None:
            buffer.give()
        self.queue.give(chain)

    def _give_up(self, error: DeviceError) -> None:
        """Reset, and fail what was in flight; its memory is handed out again only now."""
        for chain in self.device.give_up(error):
            self._release(chain)
        if self.device.broken is None:
            self.device.start()

    def _raise_for(self, status: int) -> None:
        if status == StatusByte.OK:
            return
        kinds: dict[int, tuple[type[BlockError], str]] = {
            StatusByte.IOERR: (IoError, "the device answered IOERR"),
            StatusByte.UNSUPP: (UnsupportedError, "the device answered UNSUPP"),
            POISON: (NoStatusError, "the device wrote no status (5.2.6)"),
        }
        kind, message = kinds.get(status, (BlockError, f"the device answered {status}, which is no status (5.2.6)"))
        self.counters[kind.counter] += 1
        raise kind(message, status)
