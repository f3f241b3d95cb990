"""What a queue operation answers: a chain, nothing, or the rule that the driver broke."""

cdef enum vq_code_t:
    VQ_EMPTY = 0  # nothing is available
    VQ_CHAIN = 1  # a chain was taken
    # The ring is broken: the first answer names the rule, every later one is VQ_E_BROKEN.
    VQ_E_BROKEN = -1
    VQ_E_AVAIL_IDX = -2  # avail.idx ran further ahead than the queue is long, or went back (2.7.6)
    VQ_E_HEAD = -3  # a head outside the descriptor table (2.7.6)
    VQ_E_BUSY = -4  # a head made available again while in flight (2.7.13)
    VQ_E_NEXT = -5  # a next outside its table (2.7.5)
    VQ_E_LOOP = -6  # a chain longer than its table (2.7.5)
    VQ_E_ORDER = -7  # a device-readable buffer behind a device-writable one (2.7.4.2)
    VQ_E_INDIRECT = -8  # an indirect descriptor where none may be (2.7.5.3.1)
    VQ_E_TABLE = -9  # an indirect table of no, odd or too great length, or outside memory (2.7.5.3)
    VQ_E_FRAMING = -10  # a chain without the bytes its device type needs to answer it
    VQ_E_LENGTH = -11  # buffers that sum to 2^32 bytes or more (2.7.5)
    VQ_E_FAULT = -12  # guest memory vanished under the queue
    VQ_E_GONE = -13  # the front-end took away the memory of a ring that runs
