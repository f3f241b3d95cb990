"""A device for the imitated guest that is played by hand: what it offers, its configuration, and used elements."""

import struct

from vhostd.driver.arena import Arena
from vhostd.driver.illumos import GuestMemory
from vhostd.driver.illumos.memory import REGION
from vhostd.spec.virtio import Feature


def disk_config(*, capacity=0x8000, size_max=0, seg_max=126, block_len=512, exponent=3, discard=(0x400000, 32, 8)):
    """A block device's configuration space (5.2.4)."""
    space = bytearray(60)
    struct.pack_into("<QII", space, 0, capacity, size_max, seg_max)
    struct.pack_into("<IB", space, 20, block_len, exponent)
    struct.pack_into("<III", space, 36, *discard)
    return bytes(space)


def card_config(*, mac=b"\x02\x00\x00\x00\x00\x02", pairs=1, mtu=1500):
    """A network device's configuration space (5.1.4)."""
    return mac + struct.pack("<HHH", 1, pairs, mtu)


class Paper:
    """A platform on which nothing happens but what the test does."""

    def __init__(self, offered=(1 << 64) - 1, config=b""):
        self.offered = offered
        self.space = config
        self.memory = GuestMemory(Arena([REGION]))
        self.log = []
        self.on_vectors = lambda rings: None
        self.on_config = lambda offset: None

    def config(self, offset, length):
        self.log.append(("config", offset, length))
        self.on_config(offset)
        return self.space[offset : offset + length].ljust(length, b"\0")

    def write_config(self, offset, data):
        self.log.append(("write_config", offset, data))

    def generation(self):
        return 0

    def negotiated(self, features):
        self.log.append(("negotiated", features))

    def queue(self, ring):
        self.log.append(("queue", ring.index))

    def running(self, features, rings, indexes):
        self.log.append(("running", features, list(indexes)))
        assert all(ring.dump() == bytes(len(ring.dump())) for ring in rings), "E.3: all memory is zero before DRIVER_OK"

    def vectors(self, rings):
        self.log.append(("vectors",))
        self.on_vectors(rings)

    def pairs(self, count):
        self.log.append(("pairs", count))

    def reset(self):
        self.log.append(("reset",))


def use(ring, head, length, *, call=True):
    """Put one used element, as a device does, and call."""
    arena, at = ring.memory.arena, ring.used_gpa
    idx = ring.used_idx
    arena.write(at + 4 + 8 * (idx % ring.size), struct.pack("<II", head, length))
    arena.write(at + 2, struct.pack("<H", (idx + 1) % 65536))
    if call:
        interrupt(ring)


def interrupt(ring):
    """Signal the call descriptor."""
    import os

    os.eventfd_write(ring.call_fd.number, 1)


def serves_id(serial, *, length=21, status=0):
    """What a device does with GET_ID, given to Paper.on_vectors: the rings then have their vectors."""

    def answer(paper):
        def at_vectors(rings):
            # GET_ID comes next; it is answered before the driver waits, since a paper device has no thread.
            ring = rings[0]
            original = ring.flush

            def flush():
                original()
                ring.flush = original
                head, chain = next(iter(ring.in_flight.items()))
                ident, last = chain.entries[1][0], chain.entries[-1][0]
                paper.memory.arena.write(ident, serial)
                paper.memory.arena.write(last, bytes([status]))
                use(ring, head, length)

            ring.flush = flush

        paper.on_vectors = at_vectors
        return paper

    return answer


LEGACY = (1 << 64) - 1 & ~int(Feature.VERSION_1)
