"""Where the three parts of a ring lie (2.7, and 2.7.2 for legacy drivers; 2.8.10.1 for packed rings)."""

from dataclasses import dataclass

from vhostd.errors import LocalProtocolError
from vhostd.spec import virtio

LEGACY_ALIGN = 4096  # 4.1.5.1.3: a legacy PCI driver gives a page number


@dataclass(frozen=True)
class RingLayout:
    """Offsets in bytes from the start of the ring's memory, which is aligned to `align`; `length` is all of it."""

    size: int
    desc: int
    avail: int
    used: int
    length: int
    align: int


def _up(value: int, align: int) -> int:
    return -(-value // align) * align


def _check_size(size: int) -> None:
    if not 1 <= size <= virtio.QUEUE_SIZE_MAX:
        raise LocalProtocolError(f"ring: {size} entries are not 1..{virtio.QUEUE_SIZE_MAX} (2.7)")


def legacy_layout(size: int, align: int = LEGACY_ALIGN) -> RingLayout:
    """Return the contiguous layout of a legacy driver: the used ring starts on the next `align` boundary.

    Room for both event fields is always there. Raises LocalProtocolError for a size outside 1..32768.
    Spec: 2.7.2.
    """
    _check_size(size)
    avail = virtio.desc_table_len(size)
    used = _up(avail + virtio.avail_ring_len(size, event_idx=True), align)
    return RingLayout(size, 0, avail, used, used + _up(virtio.used_ring_len(size, event_idx=True), align), align)


def modern_layout(size: int, *, event_idx: bool, align: int = virtio.DESC_ALIGN) -> RingLayout:
    """Return the three parts one behind the other, each on a multiple of `align` bytes (at least 16).

    The event fields have room only with `event_idx`: without it, the byte behind each ring is someone else's.
    Raises LocalProtocolError for a size outside 1..32768.
    Spec: 2.7.
    """
    _check_size(size)
    if align % virtio.DESC_ALIGN:
        raise LocalProtocolError(f"ring: {align} is no multiple of {virtio.DESC_ALIGN} (2.7)")
    avail = _up(virtio.desc_table_len(size), align)
    used = _up(avail + virtio.avail_ring_len(size, event_idx=event_idx), align)
    return RingLayout(size, 0, avail, used, used + _up(virtio.used_ring_len(size, event_idx=event_idx), align), align)


def packed_layout(size: int) -> RingLayout:
    """Return the descriptor ring and the two event suppression structures behind it, the driver's and the device's.

    `avail` and `used` are the driver's and the device's area, which is what SET_VRING_ADDR calls them.
    Raises LocalProtocolError for a size outside 1..32768.
    Spec: 2.8.10.1.
    """
    _check_size(size)
    driver = _up(virtio.desc_table_len(size), virtio.EVENT_ALIGN)
    device = driver + virtio.EVENT_LEN
    return RingLayout(size, 0, driver, device, device + virtio.EVENT_LEN, virtio.DESC_ALIGN)
