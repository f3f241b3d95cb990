"""virtio-blk (5.2): what is offered, the configuration space, the serial number."""

import errno
import os
import re
import struct

from vhostd.backends.block.disk import Disk
from vhostd.backends.block.handler import COUNTER_NAMES, MAX_SEGMENT_SECTORS, MAX_SEGMENTS, BlockHandler
from vhostd.backends.block.image import Image
from vhostd.backends.block.options import QUEUES_MAX, BlockOptions
from vhostd.errors import BackendError, ConfigError, RemoteProtocolError
from vhostd.spec import blk, virtio
from vhostd.workers.loop import Loop

_SERIAL = re.compile(r"[A-Za-z0-9_-]{1,20}")


class BlockBackend:
    """One disk: an image, its features, and a handler for each ring."""

    kind = "block"
    mtu_settable = False
    tells_config = True
    counter_names = COUNTER_NAMES

    def __init__(self, options: BlockOptions, image: Image) -> None:
        self.options = options
        self.image = image
        self.serial = options.serial or image.default_serial()
        if not _SERIAL.fullmatch(self.serial):
            raise ConfigError(
                f"{options.name}: serial {self.serial!r}: 1 to 20 characters of A-Z a-z 0-9 _ -, since "
                "guests cut it at the first other one, and two cut serials may be one"
            )
        self.rings = options.queues or QUEUES_MAX
        self.queue_num = self.rings
        self.write_cache = options.write_cache
        self.disk = Disk(
            image.fd.number,
            read_only=options.read_only,
            direct=options.direct,
            memory_align=image.memory_align,
            zero_in_place=image.can_zero,
            serial=self.serial.encode("ascii"),
        )
        self.disk.capacity_sectors = image.size // blk.SECTOR_LEN
        self._map()
        self.disk.write_through = True  # until a driver says that it will flush
        self.features = self._offer()

    @classmethod
    def open(cls, options: BlockOptions) -> "BlockBackend":
        """Open and lock the image. Raises ConfigError or BackendError with what to do about it."""
        image = Image(options)
        try:
            return cls(options, image)
        except BaseException:
            image.close()
            raise

    def _map(self) -> None:
        """Have requests copied from and to a mapping of the image, where it can be mapped and the operator lets us."""
        options = self.options
        if options.aio not in ("auto", "mapped") or (options.aio == "auto" and options.direct):
            return
        if options.direct:
            raise ConfigError(
                f"{options.image}: a mapping is the page cache, which --direct passes by: leave --direct away, or take "
                "--aio io_uring"
            )
        if self.image.can_map:
            try:
                self.disk.map_image(self.image.size, stores=True)
            except BackendError as error:
                # Too large for an address space, or for what the process is given of one.
                if options.aio == "mapped":
                    why = f"{options.image}: {error}: take --aio auto, which serves it by system calls"
                    raise BackendError(why) from error
        elif options.aio == "mapped":
            raise ConfigError(
                f"{options.image}: only files on ext4, XFS and tmpfs are mapped: take --aio auto, which does what can "
                "be done there"
            )

    def _offer(self) -> int:
        """Bit by bit: what is implemented and what this image can do (5.2.3)."""
        offer = (
            virtio.Feature.VERSION_1
            | virtio.Feature.INDIRECT_DESC
            | virtio.Feature.EVENT_IDX
            | virtio.Feature.ANY_LAYOUT
            | blk.Feature.SEG_MAX
            | blk.Feature.BLK_SIZE
            | blk.Feature.TOPOLOGY
            | blk.Feature.FLUSH
        )
        if self.rings > 1:
            offer |= blk.Feature.MQ
        if self.options.read_only:
            return int(offer | blk.Feature.RO)
        offer |= blk.Feature.CONFIG_WCE
        if self.options.discard and self.image.can_punch:
            offer |= blk.Feature.DISCARD
        if self.options.write_zeroes:
            offer |= blk.Feature.WRITE_ZEROES
        return int(offer)

    @property
    def config_space(self) -> bytes:
        """virtio_blk_config to the end of write-zeroes (5.2.4)."""
        exponent = (self.image.physical_block_size // self.image.block_size).bit_length() - 1
        may_unmap = self.image.can_punch
        alignment = self.image.physical_block_size // blk.SECTOR_LEN
        return struct.pack(
            "<QIIHBBIBBHIBxHIIIIIB3x",
            self.disk.capacity_sectors,
            0,  # size_max: not offered
            self.options.seg_max,
            0,
            0,
            0,  # geometry: not offered
            self.image.block_size,
            exponent,
            0,
            1,
            0,  # topology: exponent, alignment offset, min and optimal I/O in blocks
            self.write_cache,
            self.rings,
            MAX_SEGMENT_SECTORS,
            MAX_SEGMENTS,
            alignment,
            MAX_SEGMENT_SECTORS,
            MAX_SEGMENTS,
            may_unmap,
        )

    def write_config(self, offset: int, payload: bytes) -> None:
        """Take the one byte that is the driver's, writeback (5.2.4): it says how durable each later write is."""
        if offset != blk.ConfigOffset.WRITEBACK or len(payload) != 1:
            raise RemoteProtocolError(
                f"SET_CONFIG: bytes {offset} to {offset + len(payload) - 1} are not the driver's to write "
                "(virtio 5.2.4)"
            )
        if payload[0] > 1:
            raise RemoteProtocolError(f"SET_CONFIG: writeback is 0 or 1, not {payload[0]} (virtio 5.2.4)")
        if not self.disk.acked & blk.Feature.CONFIG_WCE:
            raise RemoteProtocolError("SET_CONFIG: writeback without VIRTIO_BLK_F_CONFIG_WCE (virtio 5.2.4)")
        before, self.write_cache = self.write_cache, bool(payload[0])
        self._derive_write_through()
        if before and not self.write_cache:
            # What completed before must not be less durable than what follows.
            try:
                self._make_durable()
            except OSError as error:
                self.disk.fail_flushes()  # the kernel tells it once: the guest's next flush would not hear of it
                self.write_cache = before
                self._derive_write_through()
                raise BackendError(f"{self.options.image}: cannot be flushed", error) from error

    def _make_durable(self) -> None:
        """Flush what was written or stored. OSError when that failed, or when a part of it is not in the file."""
        os.fdatasync(self.image.fd.number)
        if self.disk.stores_lost:
            raise OSError(errno.EIO, "the image was cut short")

    def set_features(self, features: int) -> None:
        """Remember what the driver knows of: it decides whether a write may stay in a cache (5.2.5.2, 5.2.6.2)."""
        self.disk.acked = features
        self._derive_write_through()

    def _derive_write_through(self) -> None:
        may_flush = self.disk.acked & (blk.Feature.FLUSH | blk.Feature.CONFIG_WCE)
        self.disk.write_through = not (may_flush and self.write_cache)

    def set_mtu(self, mtu: int) -> None:
        """Refuse: a disk has none."""
        raise RemoteProtocolError("NET_SET_MTU: this is a disk")

    def announce(self, mac: bytes) -> None:
        """Refuse: a disk has no address."""
        raise RemoteProtocolError(f"SEND_RARP: {mac.hex(':')}: this is a disk")

    def handler_count(self) -> int:
        """One for each ring."""
        return self.rings

    def place(self, ring: int) -> tuple[int, int]:
        """Handler `ring`, its only slot."""
        return ring, 0

    def make_handler(self, number: int, loop: Loop, user: int) -> BlockHandler:
        """Make the handler of ring `number`."""
        return BlockHandler(number, self.disk, loop, user)

    def describe(self) -> dict[str, object]:
        """What an operator wants to know."""
        return {
            "image": self.options.image,
            "capacity_bytes": self.disk.capacity_sectors * blk.SECTOR_LEN,
            "read_only": self.options.read_only,
            "serial": self.serial,
            "write_cache": self.write_cache,
            "write_through": self.disk.write_through,
            "direct": self.options.direct,
            "mapped": self.disk.mapped,
            "flush_failed": self.disk.flush_failed,
        }

    def on_session_end(self) -> None:
        """Be careful until a driver says that it flushes. The write cache stays as it was set: none tells it again."""
        self.disk.acked = 0
        self._derive_write_through()

    def close(self) -> None:
        """Close the image. What is not durable yet is the page cache's, as it was all the time: nothing is lost."""
        self.disk.unmap()
        self.image.close()
