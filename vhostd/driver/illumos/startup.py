"""What the driver asks for, what it learns, and who stands between it and the device."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from vhostd.driver.illumos.failures import NoAttach
from vhostd.driver.illumos.memory import Layout
from vhostd.driver.illumos.ring import Ring
from vhostd.spec import blk, net
from vhostd.spec.blk import SECTOR_LEN, ConfigOffset
from vhostd.spec.virtio import Feature

Device = Literal["block", "net"]
Generation = Literal[2019, 2026]
Transport = Literal["legacy", "modern"]

BUFFERS_MAX = 256  # requests of a disk, buffers each way of a card
ALL_ONES_32, ALL_ONES_64 = (1 << 32) - 1, (1 << 64) - 1
SEG_MAX_DEFAULT, SIZE_MAX_DEFAULT = 128, 4096
PAIRS_MAX = 8

# What each generation asks for. Nothing is added later; the acknowledged set may be any subset.
BLOCK_2019 = (
    blk.Feature.SIZE_MAX
    | blk.Feature.SEG_MAX
    | blk.Feature.RO
    | blk.Feature.BLK_SIZE
    | blk.Feature.FLUSH
    | blk.Feature.TOPOLOGY
)
BLOCK_2026 = BLOCK_2019 | blk.Feature.DISCARD
NET_2019 = (
    net.Feature.CSUM
    | net.Feature.MTU
    | net.Feature.MAC
    | net.Feature.GSO
    | net.Feature.HOST_TSO4
    | net.Feature.HOST_ECN
)
NET_2026 = (
    NET_2019 | net.Feature.HOST_TSO6 | net.Feature.CTRL_VQ | net.Feature.CTRL_RX | net.Feature.STATUS | net.Feature.MQ
)
WANTED: dict[tuple[Device, Generation], int] = {
    ("block", 2019): int(BLOCK_2019),
    ("block", 2026): int(BLOCK_2026),
    ("net", 2019): int(NET_2019),
    ("net", 2026): int(NET_2026),
}


@dataclass(frozen=True)
class IllumosGuest:
    """One guest: the four axes, and the knobs beside them.

    `layout` of data pages. `fence`: without it the ring's index becomes visible after the device's wish was read.
    `loan_ratio` of the receive buffers may be with the stack at a time. `mac`, `seg_max`: whether they are offered.
    `poison`: a status byte is 0xFF before the device writes it, which the real driver does not do. `size` of rings,
    `pairs` of a card, `mtu` the front-end tells. `seed` of random pages. `timeout` in seconds, of every wait that the
    guest does without limit.
    """

    device: Device
    generation: Generation
    transport: Transport
    indirect: bool = True
    layout: Layout = Layout.SCATTERED
    fence: bool = True
    loan_ratio: float = 0.5
    mac: bytes | None = b"\x02\x00\x00\x00\x00\x02"
    seg_max: bool = True
    poison: bool = False
    size: int = 256
    pairs: int = 1
    mtu: int | None = 1500
    seed: int = 0
    timeout: float = 5.0

    @property
    def legacy(self) -> bool:
        """Whether the transport is the one before 1.0."""
        return self.transport == "legacy"

    @property
    def wanted(self) -> int:
        """The feature mask of this driver on this transport."""
        mask = WANTED[self.device, self.generation] | Feature.INDIRECT_DESC
        if not self.legacy:
            mask |= Feature.VERSION_1
            if (self.device, self.generation) == ("net", 2026):
                mask |= net.Feature.SPEED_DUPLEX
        return int(mask)

    def choose(self, offered: int) -> int:
        """Return what is acknowledged of an offer."""
        # Plain numbers: the complement of an IntFlag has only the bits of its own class.
        if not self.indirect:
            offered &= ~int(Feature.INDIRECT_DESC)
        if not self.seg_max and self.device == "block":
            offered &= ~int(blk.Feature.SEG_MAX)
        chosen = offered & self.wanted
        if self.device == "net" and not chosen & net.Feature.CTRL_VQ:
            chosen &= ~int(net.Feature.MQ)
        return chosen


class Platform(Protocol):
    """What lies between a driver and its device: a PCI bus, and behind it a front-end."""

    offered: int

    def config(self, offset: int, length: int) -> bytes:
        """Read configuration space."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration space, which the driver does for an address of its own."""

    def generation(self) -> int:
        """Read how often configuration space has changed; a modern device has a register for it."""

    def negotiated(self, features: int) -> None:
        """The driver has written what it acknowledges."""

    def queue(self, ring: Ring) -> None:
        """The driver has given a queue its memory."""

    def running(self, features: int, rings: Sequence[Ring], indexes: Sequence[int]) -> None:
        """The driver has set DRIVER_OK."""

    def vectors(self, rings: Sequence[Ring]) -> None:
        """The driver has programmed its interrupt vectors, after DRIVER_OK."""

    def pairs(self, count: int) -> None:
        """The driver has asked for so many queue pairs, by its control queue."""

    def reset(self) -> None:
        """The driver has written 0 to the status, and goes on at once."""


@dataclass(frozen=True)
class Disk:
    """What the block driver learns. Lengths in bytes, `capacity` in sectors of 512."""

    features: int
    capacity: int
    seg_max: int
    size_max: int
    block_len: int
    exponent: int
    discard: tuple[int, int, int] | None  # sectors, segments, alignment

    @property
    def transfer_max(self) -> int:
        """The largest transfer: a product of 32 bits, as the driver has it."""
        return self.seg_max * self.size_max & ALL_ONES_32

    @property
    def read_only(self) -> bool:
        """Whether RO was offered."""
        return bool(self.features & blk.Feature.RO)


def _u32(platform: Platform, offset: int) -> int:
    return int(struct.unpack("<I", platform.config(offset, 4))[0])


def _u64(platform: Platform, guest: IllumosGuest, offset: int) -> int:
    """Read two halves: until two whole reads agree, or between two looks at the generation that do."""
    if not guest.legacy:
        return _u64_by_generation(platform, offset)
    before = (_u32(platform, offset), _u32(platform, offset + 4))
    for _ in range(1000):
        now = (_u32(platform, offset), _u32(platform, offset + 4))
        if now == before:
            return now[0] | now[1] << 32
        before = now
    raise NoAttach("illumos_R2.51", "the configuration space does not come to rest")


def _u64_by_generation(platform: Platform, offset: int) -> int:
    for _ in range(1000):
        before = platform.generation()
        high, low = _u32(platform, offset + 4), _u32(platform, offset)
        if platform.generation() == before:
            return low | high << 32
    raise NoAttach("illumos_R2.51", "the configuration space does not come to rest")


@dataclass(frozen=True)
class Limits:
    """What the block driver reads before it makes its queue."""

    seg_max: int
    discard: tuple[int, int, int] | None


def learn_limits(platform: Platform, guest: IllumosGuest, features: int) -> Limits:
    """Read what a request may hold."""
    seg_max = SEG_MAX_DEFAULT
    if features & blk.Feature.SEG_MAX:
        seg_max = _u32(platform, ConfigOffset.SEG_MAX)
        if seg_max in {0, ALL_ONES_32}:
            seg_max = 1
    discard = None
    if guest.generation == 2026 and features & blk.Feature.DISCARD:
        limits = (
            _u32(platform, ConfigOffset.MAX_DISCARD_SECTORS),
            _u32(platform, ConfigOffset.MAX_DISCARD_SEG),
            _u32(platform, ConfigOffset.DISCARD_SECTOR_ALIGNMENT),
        )
        discard = limits if all(limits) else None
    return Limits(seg_max, discard)


def learn_disk(platform: Platform, guest: IllumosGuest, features: int, limits: Limits) -> Disk:
    """Read the rest of a disk's configuration space. Raises NoAttach for a disk the driver would not take."""
    capacity = _u64(platform, guest, ConfigOffset.CAPACITY)
    if capacity == ALL_ONES_64:
        raise NoAttach("illumos_R2.17", "the capacity reads as all ones")
    block_len = _u32(platform, ConfigOffset.BLK_SIZE) if features & blk.Feature.BLK_SIZE else SECTOR_LEN
    exponent = platform.config(ConfigOffset.TOPOLOGY, 1)[0] if features & blk.Feature.TOPOLOGY else 0
    size_max = SIZE_MAX_DEFAULT
    if features & blk.Feature.SIZE_MAX:
        told = _u32(platform, ConfigOffset.SIZE_MAX)
        if told not in {0, ALL_ONES_32}:
            size_max = told
    disk = Disk(features, capacity, limits.seg_max, size_max, block_len, exponent, limits.discard)
    _check_arithmetic(disk)
    return disk


def _check_arithmetic(disk: Disk) -> None:
    """The sums of the driver and of the layer above it, with what was offered (D9)."""
    if disk.block_len < SECTOR_LEN or disk.block_len & disk.block_len - 1:
        raise NoAttach("illumos_D9", f"a block of {disk.block_len} bytes is no power of two from 512")
    if disk.transfer_max == 0 or disk.transfer_max % disk.block_len:
        raise NoAttach(
            "illumos_D9",
            f"SEG_MAX {disk.seg_max} times SIZE_MAX {disk.size_max} is {disk.transfer_max} in 32 bits, "
            f"no multiple of {disk.block_len}: the medium is absent",
        )
    if disk.capacity * SECTOR_LEN % disk.block_len:
        raise NoAttach("illumos_D9", f"{disk.capacity} sectors are no whole blocks of {disk.block_len} bytes")


@dataclass(frozen=True)
class Card:
    """What the network driver learns."""

    features: int
    mac: bytes
    mtu: int
    pairs: int

    @property
    def header_len(self) -> int:
        """Bytes of virtio_net_hdr: 12 with VERSION_1, as merged buffers are never asked for."""
        return net.HEADER_LEN if self.features & Feature.VERSION_1 else net.HEADER_LEN_LEGACY

    @property
    def tso4(self) -> bool:
        """Whether it would send large segments: GSO, or both bits that make it up, on top of CSUM."""
        both = net.Feature.HOST_TSO4 | net.Feature.HOST_ECN
        gso = bool(self.features & net.Feature.GSO) or self.features & both == both
        return gso and bool(self.features & net.Feature.CSUM)

    @property
    def csum(self) -> bool:
        """Whether it leaves checksums to the device."""
        return bool(self.features & net.Feature.CSUM)
