"""The control queue of the newer network driver: one request at a time, polled, its answer preset to OK."""

import struct
import time

from vhostd.driver.illumos.failures import GuestCorrupted, GuestHangs
from vhostd.driver.illumos.memory import GuestMemory, Zone
from vhostd.driver.illumos.ring import NO_INTERRUPT, Chain, Ring

BUFFER_LEN = 256
TIMEOUT = 5.0  # seconds
POLL_STEP = 0.001
CLASS_RX, CLASS_MQ = 0, 4
RX_PROMISC = 0
MQ_PAIRS_SET = 0
ACK_OK = 0


class Control:
    """The control queue. `poison` presets the answer to 0xFF, which the real driver does not do."""

    def __init__(self, memory: GuestMemory, ring: Ring, *, poison: bool = False) -> None:
        self.memory = memory
        self.ring = ring
        self.poison = poison
        self.busy = False  # after a request that was not answered, until a reset
        self._buffer = memory.alloc(Zone.CONTROL, BUFFER_LEN)
        self._chain = Chain(ring, 3)
        ring.avail_flags = NO_INTERRUPT

    def submit(self, kind: int, command: int, data: bytes) -> None:
        """Hand over a request: class and command, data, one byte for the answer."""
        arena, at = self.memory.arena, self._buffer
        arena.write(at, bytes(BUFFER_LEN))
        arena.write(at, bytes([kind, command]) + data + (b"\xff" if self.poison else b"\0"))
        self._chain.append(at, 2)
        self._chain.append(at + 2, len(data))
        self._chain.append(at + 2 + len(data), 1, write=True)
        self.ring.submit(self._chain, len(data))
        self.ring.flush()

    def wait(self) -> bool:
        """Poll for the answer; whether it is OK. Raises GuestHangs."""
        deadline = time.monotonic() + TIMEOUT
        while not (found := self.ring.reap()):
            if time.monotonic() > deadline:
                self.busy = True
                raise GuestHangs("illumos_E6", "a control request is not answered")
            time.sleep(POLL_STEP)
        chain, length = found[0]
        data_len = chain.token
        assert isinstance(data_len, int)
        ack = self.memory.arena.read(self._buffer + 2 + data_len, 1)[0]
        chain.clear()
        if length != 1:
            raise GuestCorrupted("illumos_R2.25", f"control: used length {length} instead of 1")
        if ack == 0xFF:
            raise GuestCorrupted("illumos_D10", "a control request came back without its answer")
        return ack == ACK_OK

    def promiscuous(self, *, on: bool) -> bool:
        """Turn promiscuous mode on or off."""
        self.submit(CLASS_RX, RX_PROMISC, bytes([on]))
        return self.wait()

    def pairs(self, count: int) -> bool:
        """Ask for so many queue pairs: two bytes little-endian in any mode."""
        self.submit(CLASS_MQ, MQ_PAIRS_SET, struct.pack("<H", count))
        return self.wait()
