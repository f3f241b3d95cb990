"""A pair of queues at a descriptor of the tap. Its worker's own, but for `mode`."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vhostd.backends.ringset cimport ringset_t
from vhostd.queues.chain cimport CHAIN_IOV_MAX
from vhostd.queues.counters cimport C_OWN
from vhostd.spec.layout cimport net_header_t
from vhostd.workers.handler cimport source_t

cdef enum:
    RX = 0  # slots; bit 1 << slot is their kick's
    TX = 1
    READY_TAP = 4
    TURN = 64  # frames of each direction in one turn
    VEC_MAX = 1024  # IOV_MAX
    DIRECT_MAX = 1000  # buffers that one readv fills; what lies behind is copied
    HELD_MAX = 1024  # buffers for one frame
    POOL = 4 * CHAIN_IOV_MAX
    FRAME_AT = 16
    BUFFER_LEN = 65600  # more than FRAME_LEN_MAX: a frame that fills it is too long
    INLINE_LEN = 2048  # frames up to this are copied behind their header: cheaper than a vector for the kernel
    WIDE_FOR = 64  # frames: how long several buffers are held ready after one frame needed them
    PATIENCE_NS = 20000000  # how long a frame waits for enough buffers
    PATIENCE_STEP_NS = 1500000  # how often it is looked at if nobody kicks; less than the worker's late look

# Counters of our own, in the order of COUNTER_NAMES in backend.py. A receive ring counts rx_, a transmit ring tx_.
cdef enum:
    N_RX_FRAMES = C_OWN
    N_RX_BYTES
    N_RX_DROPPED
    N_RX_NO_BUFFER
    N_RX_BAD_BUFFERS
    N_RX_ERRORS
    N_RX_MERGED
    N_RX_DELAYED
    N_TX_FRAMES
    N_TX_BYTES
    N_TX_DROPPED
    N_TX_ERRORS
    N_TX_GSO
    N_TX_LINEARISED

# A chain of the receive ring that was taken and not yet used. None is held between two turns.
cdef struct held_t:
    uint16_t head
    uint16_t bad  # not mapped, or without room for a header: it ends what can be used
    uint32_t iov  # its first device-writable buffer in `pool`
    uint32_t iov_count
    uint32_t len  # their sum

cdef struct pair_t:
    ringset_t r  # first
    source_t tap
    int tap_fd
    uint32_t multi_queue
    uint32_t attached  # the kernel may choose this queue
    uint64_t mode  # written by the control thread (relaxed), read once a turn
    # receive
    uint32_t tap_hot  # there may be something to read
    uint32_t starved  # waiting for more buffers than up to `seen`
    uint16_t seen
    uint32_t wide  # frames left in wide mode
    uint32_t set_aside  # bytes of the frame in `rx_buffer` that waits for buffers; 0: none does
    int64_t set_aside_ns  # since when
    int64_t look_ns  # when it is looked at next
    net_header_t rx_header  # of the frame being read, or set aside
    uint32_t held_at  # first that is held
    uint32_t held_end
    uint64_t held_len  # bytes of those that are good
    uint32_t pool_used
    held_t held[HELD_MAX]
    iovec pool[POOL]
    iovec vec[VEC_MAX]
    uint8_t rx_buffer[FRAME_AT + BUFFER_LEN]  # the frame from FRAME_AT on; in front, the header read with it
    # transmit
    iovec tx_vec[CHAIN_IOV_MAX + 1]
    uint8_t tx_buffer[BUFFER_LEN]
