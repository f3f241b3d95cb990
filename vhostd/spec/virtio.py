"""Virtio: status bits, ring and transport features, limits of the rings."""

import enum


class Feature(enum.IntFlag):
    """Device-independent feature bits, as masks (virtio 6)."""

    NOTIFY_ON_EMPTY = 1 << 24  # 6.3, legacy
    LOG_ALL = 1 << 26  # vhost-user, "Migration": the bit belongs to vhost
    ANY_LAYOUT = 1 << 27  # 6.3, legacy: descriptors may frame a request in any way
    INDIRECT_DESC = 1 << 28  # 2.7.5.3
    EVENT_IDX = 1 << 29  # 2.7.7, 2.7.10
    PROTOCOL_FEATURES = 1 << 30  # vhost-user, "Feature negotiation": never seen by a guest
    VERSION_1 = 1 << 32  # 6.1
    ACCESS_PLATFORM = 1 << 33  # 6.1
    RING_PACKED = 1 << 34  # 2.8
    IN_ORDER = 1 << 35  # 2.7.9
    ORDER_PLATFORM = 1 << 36  # 6.1
    SR_IOV = 1 << 37  # 6.1
    NOTIFICATION_DATA = 1 << 38  # 6.1
    NOTIF_CONFIG_DATA = 1 << 39  # 6.1
    RING_RESET = 1 << 40  # 2.6.1
    ADMIN_VQ = 1 << 41  # 2.13


class Status(enum.IntFlag):
    """The device status field (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class DeviceId(enum.IntEnum):
    """Device types (5)."""

    NET = 1
    BLOCK = 2


QUEUE_SIZE_MAX = 32768  # 2.7: "queue size value is always a power of 2. The maximum is 32768"
DESC_LEN = 16  # 2.7.5
DESC_ALIGN = 16  # 2.7
AVAIL_ALIGN = 2  # 2.7
USED_ALIGN = 4  # 2.7
EVENT_LEN = 4  # 2.8.14: of each event suppression structure of a packed ring
EVENT_ALIGN = 4  # 2.8.10.1
PACKED_BASE = 0x80008000  # vhost-user, "A vring descriptor index for packed virtqueues": both sides at 0, counters at 1


def desc_table_len(size: int) -> int:
    """Bytes of the descriptor table of a split ring (2.7)."""
    return DESC_LEN * size


def avail_ring_len(size: int, *, event_idx: bool) -> int:
    """Bytes of the driver area: flags, idx, ring, and used_event where negotiated (2.7.6)."""
    return 4 + 2 * size + (2 if event_idx else 0)


def used_ring_len(size: int, *, event_idx: bool) -> int:
    """Bytes of the device area: flags, idx, ring, and avail_event where negotiated (2.7.8)."""
    return 4 + 8 * size + (2 if event_idx else 0)
