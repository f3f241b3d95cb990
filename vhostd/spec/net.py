"""Virtio net (5.1): features, the header before each frame, configuration space."""

import enum


class Feature(enum.IntFlag):
    """Net feature bits, as masks (5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GSO = 1 << 6  # 5.1.3.2, legacy
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    GUEST_HDRLEN = 1 << 59
    RSS = 1 << 60
    RSC_EXT = 1 << 61
    STANDBY = 1 << 62
    SPEED_DUPLEX = 1 << 63


class Status(enum.IntFlag):
    """The status field of the configuration space (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


class HeaderFlag(enum.IntFlag):
    """virtio_net_hdr.flags (5.1.6)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4


class GsoType(enum.IntEnum):
    """virtio_net_hdr.gso_type (5.1.6), without the ECN bit."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


GSO_ECN = 0x80  # 5.1.6: OR-ed into gso_type
HEADER_LEN_LEGACY = 10  # 5.1.6.1: without VERSION_1 and MRG_RXBUF there is no num_buffers
HEADER_LEN = 12  # 5.1.6
MIN_MTU = 68  # 5.1.4.1
MAX_MTU = 65535
CONFIG_LEN = 12  # mac, status, max_virtqueue_pairs, mtu (5.1.4)
ETH_HEADER_LEN = 14
FRAME_LEN_MAX = 65535 + ETH_HEADER_LEN + 4  # the largest GSO frame: an IP datagram, Ethernet, one VLAN tag


class ConfigOffset(enum.IntEnum):
    """Where fields lie in the configuration space (5.1.4)."""

    MAC = 0  # 6 bytes
    STATUS = 6  # le16, LINK_UP = 1
    MAX_VIRTQUEUE_PAIRS = 8  # le16
    MTU = 10  # le16
