"""The vhost-user document: request ids, protocol features, header flags, limits.

Each line bears the heading of the document under which it stands; where a whole class stands under one heading, the
class bears it.
"""

import enum

# "Header"
HEADER_LEN = 12  # u32 request, u32 flags, u32 size
VERSION = 0x1
VERSION_MASK = 0x3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3

# "Payload"
MEM_REGIONS_MAX = 8  # "Multiple memory regions description": region0 to region7
MEM_REGION_LEN = 32  # "Memory region description"
CONFIG_HEADER_LEN = 12  # "Virtio device config space": offset, size, flags
CONFIG_LEN_MAX = 256  # "Virtio device config space": the array of the reference implementation
SHMEM_REGIONS_MAX = 256  # "VIRTIO Shared Memory Region configuration"
PAYLOAD_LEN_MAX = 8 + 8 * SHMEM_REGIONS_MAX  # the longest payload there is: GET_SHMEM_CONFIG's reply

# "Front-end message types": SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR
VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 1 << 8
VRINGS_MAX = 256  # eight bits of index

# "A vring address description"
VRING_ADDR_LOG = 1 << 0  # VHOST_VRING_F_LOG ("Migration")

# "Back-end communication": "at most 8 descriptors in each message"
FDS_MAX = 8

DEVICE_STATE_NO_FD = 1 << 8  # "Front-end message types", SET_DEVICE_STATE_FD: no descriptor in the reply


class ProtocolFeature(enum.IntFlag):
    """Protocol feature bits, as masks ("Protocol features")."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM_MAP = 1 << 22


class FrontendRequest(enum.IntEnum):
    """What the front-end sends ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(enum.IntEnum):
    """What the back-end sends on its own channel ("Back-end message types")."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ConfigFlag(enum.IntEnum):
    """Who writes configuration space ("Virtio device config space", flags)."""

    WRITABLE = 0  # the guest, through the front-end: writable fields only
    MIGRATION = 1  # the front-end of a migration's destination


class IotlbType(enum.IntEnum):
    """The kinds of IOTLB message ("An IOTLB message", type)."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class TransferDirection(enum.IntEnum):
    """Where device state goes ("Device state transfer parameters")."""

    SAVE = 0
    LOAD = 1


class TransferPhase(enum.IntEnum):
    """In which phase of a migration ("Device state transfer parameters")."""

    STOPPED = 0


class IotlbAccess(enum.IntFlag):
    """What may be done with the memory ("An IOTLB message", permissions flags)."""

    READ = 1 << 0
    WRITE = 1 << 1


class VringAddrFlag(enum.IntFlag):
    """Flags of a vring address description, as masks: VHOST_VRING_F_LOG ("Migration")."""

    LOG = VRING_ADDR_LOG


class VringAreaFlag(enum.IntFlag):
    """What stands above the index of a vring area description, as masks."""

    NO_FD = VRING_NO_FD


class ShmemFlag(enum.IntFlag):
    """Flags of SHMEM_MAP, as masks ("Back-end message types")."""

    MAP_RW = 1 << 0


class HeaderFlag(enum.IntFlag):
    """Flags of a header above its version, as masks ("Header")."""

    REPLY = FLAG_REPLY
    NEED_REPLY = FLAG_NEED_REPLY
