"""Virtio block (5.2): features, request types, status bytes, configuration space."""

import enum

SECTOR_LEN = 512  # 5.2.4: capacity and sector are in units of 512 bytes, whatever blk_size says
HEADER_LEN = 16  # 5.2.6: le32 type, le32 reserved, le64 sector
STATUS_LEN = 1
ID_LEN = 20  # 5.2.6: GET_ID's string, NUL only when shorter
SEGMENT_LEN = 16  # 5.2.6: le64 sector, le32 num_sectors, le32 flags
CONFIG_LEN = 60  # to the end of write_zeroes_may_unmap and its padding (5.2.4)


class Feature(enum.IntFlag):
    """Block feature bits, as masks (5.2.3)."""

    BARRIER = 1 << 0  # 5.2.3.1, legacy
    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    SCSI = 1 << 7  # legacy
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16
    ZONED = 1 << 17


class Request(enum.IntEnum):
    """Request types (5.2.6)."""

    IN = 0
    OUT = 1
    SCSI_CMD = 2  # legacy
    SCSI_CMD_OUT = 3  # legacy
    FLUSH = 4
    FLUSH_OUT = 5  # legacy
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


TYPE_BARRIER = 1 << 31  # legacy: OR-ed into the type, masked away by a device without BARRIER
WRITE_ZEROES_UNMAP = 1  # 5.2.6: flags of a segment


class StatusByte(enum.IntEnum):
    """The last byte of every request (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class ConfigOffset(enum.IntEnum):
    """Where fields lie in the configuration space (5.2.4)."""

    CAPACITY = 0  # le64, sectors
    SIZE_MAX = 8  # le32
    SEG_MAX = 12  # le32
    GEOMETRY = 16  # le16 cylinders, u8 heads, u8 sectors
    BLK_SIZE = 20  # le32
    TOPOLOGY = 24  # u8 physical_block_exp, u8 alignment_offset, le16 min_io_size, le32 opt_io_size
    WRITEBACK = 32  # u8, the only writable byte
    NUM_QUEUES = 34  # le16
    MAX_DISCARD_SECTORS = 36  # le32
    MAX_DISCARD_SEG = 40  # le32
    DISCARD_SECTOR_ALIGNMENT = 44  # le32
    MAX_WRITE_ZEROES_SECTORS = 48  # le32
    MAX_WRITE_ZEROES_SEG = 52  # le32
    WRITE_ZEROES_MAY_UNMAP = 56  # u8
