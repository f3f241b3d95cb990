"""Rings and headers as C structs.

Hosts are little-endian, and so is each field here: VERSION_1 guests always, legacy guests of such hosts too. A port to
a big-endian host starts by giving these fields accessors.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

# 2.7.5
cdef enum:
    DESC_F_NEXT = 1
    DESC_F_WRITE = 2
    DESC_F_INDIRECT = 4

# 2.7.6.1, 2.7.8: the flags of the two rings
cdef enum:
    AVAIL_F_NO_INTERRUPT = 1
    USED_F_NO_NOTIFY = 1

cdef enum:
    QUEUE_SIZE_MAX = 32768  # 2.7

cdef packed struct vring_desc_t:  # 2.7.5
    uint64_t addr
    uint32_t len
    uint16_t flags
    uint16_t next

cdef packed struct vring_avail_t:  # 2.7.6; used_event follows ring[size]
    uint16_t flags
    uint16_t idx
    uint16_t ring[1]

cdef packed struct vring_used_elem_t:  # 2.7.8
    uint32_t id
    uint32_t len

cdef packed struct vring_used_t:  # 2.7.8; avail_event follows ring[size]
    uint16_t flags
    uint16_t idx
    vring_used_elem_t ring[1]

# 2.8.1, 2.8.9
cdef enum:
    PACKED_F_AVAIL = 1 << 7
    PACKED_F_USED = 1 << 15
    EVENT_ENABLE = 0
    EVENT_DISABLE = 1
    EVENT_DESC = 2  # only with EVENT_IDX

cdef packed struct packed_desc_t:  # 2.8.13
    uint64_t addr
    uint32_t len
    uint16_t id
    uint16_t flags

cdef packed struct packed_event_t:  # 2.8.14
    uint16_t off_wrap  # offset in the ring, and the wrap counter in bit 15
    uint16_t flags

# 5.2.6
cdef enum:
    BLK_T_IN = 0
    BLK_T_OUT = 1
    BLK_T_FLUSH = 4
    BLK_T_GET_ID = 8
    BLK_T_DISCARD = 11
    BLK_T_WRITE_ZEROES = 13
    BLK_T_BARRIER = 0x80000000  # legacy, masked
    BLK_S_OK = 0
    BLK_S_IOERR = 1
    BLK_S_UNSUPP = 2
    BLK_WRITE_ZEROES_UNMAP = 1
    BLK_ID_LEN = 20
    BLK_HEADER_LEN = 16
    BLK_SEGMENT_LEN = 16

cdef packed struct blk_header_t:  # 5.2.6
    uint32_t type
    uint32_t reserved
    uint64_t sector

cdef packed struct blk_segment_t:  # 5.2.6: discard and write zeroes
    uint64_t sector
    uint32_t num_sectors
    uint32_t flags

# 5.1.6
cdef enum:
    NET_HDR_F_NEEDS_CSUM = 1
    NET_HDR_F_DATA_VALID = 2
    NET_GSO_NONE = 0
    NET_GSO_TCPV4 = 1
    NET_GSO_UDP = 3
    NET_GSO_TCPV6 = 4
    NET_GSO_ECN = 0x80

cdef packed struct net_header_t:  # 5.1.6; num_buffers is absent for legacy drivers without MRG_RXBUF
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
    uint16_t num_buffers
