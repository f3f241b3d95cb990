"""virtio_net_hdr (5.1.6): what was negotiated about it, and how it crosses between driver and tap.

The tap's header is always the ten bytes of VNET_HDR_LEN, in memory of ours; the driver's has ten or twelve, anywhere in
its buffers. So the kernel never reads a header that a guest can still change, and framing costs nothing (2.7.4).
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from vhostd.spec.layout cimport net_header_t

cdef enum:
    VNET_HDR_LEN = 10
    ETH_HEADER_LEN = 14
    FRAME_LEN_MAX = 65553  # an IP datagram of 65535 bytes, Ethernet, one VLAN tag
    FRAME_LEN_MIN = 60  # of Ethernet, without its checksum
    GSO_SIZE_MIN = 8  # as TCP_MIN_GSO_SIZE of Linux: smaller ones only make work
    GSO_SIZE_MAX = 65495  # what an IP datagram has room for behind its headers and TCP's

# What was negotiated, as one word: flags, and in the upper half the longest frame that is not a GSO one.
cdef enum:
    MODE_HDR12 = 1 << 0  # VERSION_1 or MRG_RXBUF (5.1.6.1)
    MODE_MRG = 1 << 1
    MODE_TX_CSUM = 1 << 2
    MODE_TX_TSO4 = 1 << 3
    MODE_TX_TSO6 = 1 << 4
    MODE_TX_ECN = 1 << 5
    MODE_RX_CSUM = 1 << 6
    MODE_RX_TSO4 = 1 << 7
    MODE_RX_TSO6 = 1 << 8
    MODE_RX_ECN = 1 << 9

cdef inline uint32_t header_len(uint64_t mode) noexcept nogil:
    return 12 if mode & MODE_HDR12 else 10

# Whether a frame segmented as `gso_type` says may cross. `mode`: its TX bits are looked at.
cdef inline int gso_allowed(uint64_t mode, uint8_t gso_type) noexcept nogil:
    cdef uint8_t kind = gso_type & <uint8_t>~0x80
    if gso_type & 0x80 and not mode & MODE_TX_ECN:
        return 0
    if kind == 1:
        return (mode & MODE_TX_TSO4) != 0
    if kind == 4:
        return (mode & MODE_TX_TSO6) != 0
    return 0

# Copy the first `length` bytes of iov[0..count), which has them, to `to`. Returns the entry that held the last of them,
# and in `offset` how many of its bytes were taken.
cdef inline uint32_t gather(void *to, uint32_t length, const iovec *iov, uint32_t count, size_t *offset) noexcept nogil:
    cdef uint32_t k = 0
    cdef size_t n
    cdef uint32_t done = 0
    while k < count:
        n = min(<size_t>(length - done), iov[k].iov_len)
        memcpy(<uint8_t *>to + done, iov[k].iov_base, n)
        done += <uint32_t>n
        if done == length:
            offset[0] = n
            return k
        k += 1
    offset[0] = 0
    return k

# Copy `length` bytes to where they belong, `at` bytes into iov[0..count). What has no room is left out.
cdef inline void scatter(const iovec *iov, uint32_t count, size_t at, const void *source, size_t length) noexcept nogil:
    cdef uint32_t k
    cdef size_t n
    cdef const uint8_t *p = <const uint8_t *>source
    for k in range(count):
        if at >= iov[k].iov_len:
            at -= iov[k].iov_len
            continue
        n = min(length, iov[k].iov_len - at)
        memcpy(<uint8_t *>iov[k].iov_base + at, p, n)
        p += n
        length -= n
        at = 0
        if length == 0:
            return
