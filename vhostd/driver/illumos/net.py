"""The network driver: a fixed pool each way, loans to the stack, and a cork.

Receive buffers are 65,578 bytes: the header, a skip up to offset 14 so that the IP header is aligned, then the frame.
Transmit buffers have an inline area of 2,048 bytes for the header and for frames that are copied.
"""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from vhostd.driver.illumos.failures import GuestCorrupted, GuestHangs, GuestPanics
from vhostd.driver.illumos.memory import Buffer, GuestMemory, Piece, Zone
from vhostd.driver.illumos.ring import NO_INTERRUPT, Chain, NoRoom, Ring
from vhostd.driver.illumos.startup import BUFFERS_MAX, Card, IllumosGuest
from vhostd.errors import LocalProtocolError
from vhostd.spec import net

RX_LEN = 65_578
INLINE_LEN = 2048
FRAME_AT = 14  # offset of the frame in either kind of buffer
SEGS_MAX = 64
COPY_BELOW = 300  # bytes of a frame
HELD_MAX = 5.0  # seconds that a device may keep a frame to send
FRAME_LEN_MIN = 60
VLAN_LEN = 4


@dataclass(eq=False)
class RxBuffer:
    """One receive buffer and the chain it keeps."""

    buffer: Buffer
    chain: Chain


@dataclass(eq=False)
class TxBuffer:
    """One transmit buffer, the chain it keeps, and what is mapped behind it."""

    inline: int
    chain: Chain
    mapped: Buffer | None = None


@dataclass(eq=False)
class Frame:
    """A frame as the stack gets it. A loaned one keeps its buffer until `free`."""

    data: bytes
    loan: RxBuffer | None = None


@dataclass
class Counters:
    """What the driver counts."""

    refill_short: int = 0  # a refill that ended for want of descriptors
    loans: int = 0
    copies: int = 0
    loan_limit_copies: int = 0
    undersize: int = 0
    no_tx_buffer: int = 0
    too_many_pieces: int = 0


@dataclass(frozen=True)
class Offload:
    """What the header says of a frame; offsets from the frame's start."""

    start: int = 34
    offset: int = 16
    mss: int = 0  # 0: only the checksum
    hdr_len: int = 0
    gso_type: int = net.GsoType.TCPV4

    def pack(self, length: int) -> bytes:
        """Return the header's bytes."""
        gso = (self.gso_type, self.hdr_len, self.mss) if self.mss else (0, 0, 0)
        header = struct.pack("<BBHHHH", net.HeaderFlag.NEEDS_CSUM, *gso, self.start, self.offset)
        return header.ljust(length, b"\0")


class Receive:
    """The receive queue of one pair."""

    def __init__(self, guest: IllumosGuest, memory: GuestMemory, ring: Ring, card: Card) -> None:
        self.guest = guest
        self.memory = memory
        self.ring = ring
        self.card = card
        self.counters = Counters()
        self.frames: list[Frame] = []
        self.loaned = 0
        self._newer = guest.generation == 2026
        count = min(ring.size, BUFFERS_MAX)
        self._free = [
            RxBuffer(memory.buffer(Zone.RX, RX_LEN), Chain(ring, SEGS_MAX)) for _ in range(count)
        ]  # a stack, its top in front
        self._loans_max = int(count * guest.loan_ratio)
        ring.avail_flags = NO_INTERRUPT

    def start(self) -> None:
        """Give the device every buffer, and ask for interrupts; the generations do so in different order."""
        if self._newer:
            for chain, _ in self.ring.reap():
                self._put_back(chain)
            self.refill()
            self.ring.avail_flags = 0
            self._handle(self.ring.reap())
        else:
            self.ring.avail_flags = 0
            self.refill()

    def stop(self) -> None:
        """Ask for no more interrupts; the buffers stay with the device."""
        self.ring.avail_flags = NO_INTERRUPT

    def refill(self) -> int:
        """Post every free buffer, with one flush; return how many."""
        added = 0
        while self._free:
            buffer = self._free[0]
            if not self._post(buffer):
                self.counters.refill_short += 1
                break
            self._free.pop(0)
            added += 1
        if added:
            self.ring.flush()
        return added

    def _post(self, buffer: RxBuffer) -> bool:
        header_len = self.card.header_len
        try:
            for gpa, length in buffer.buffer.cut(0, header_len):
                buffer.chain.append(gpa, length, write=True)
            for gpa, length in buffer.buffer.cut(FRAME_AT, RX_LEN - FRAME_AT):
                buffer.chain.append(gpa, length, write=True)
        except NoRoom:
            buffer.chain.clear()
            return False
        self.ring.submit(buffer.chain, buffer)
        return True

    def wait(self, timeout: float | None = None) -> list[Frame]:
        """Wait for an interrupt that brings frames; return those not taken yet. Raises GuestHangs."""
        deadline = time.monotonic() + (self.guest.timeout if timeout is None else timeout)
        while not self.frames:
            self._handle(self.ring.wait("illumos_E5", deadline))
        taken, self.frames = self.frames, []
        return taken

    def free(self, frame: Frame) -> None:
        """The stack is done with a loaned frame; its buffer waits for the next refill."""
        if frame.loan is not None:
            self._free.insert(0, frame.loan)
            frame.loan = None
            self.loaned -= 1

    def _handle(self, found: list[tuple[Chain, int]]) -> None:
        for chain, length in found:
            buffer = chain.token
            assert isinstance(buffer, RxBuffer)
            data = self._frame(buffer, length)
            chain.clear()
            if data is None:
                self._free.insert(0, buffer)
            elif len(data) < COPY_BELOW or self.loaned >= self._loans_max:
                self.counters.copies += 1
                self.counters.loan_limit_copies += len(data) >= COPY_BELOW
                self.frames.append(Frame(data))
                self._free.insert(0, buffer)
            else:
                self.counters.loans += 1
                self.loaned += 1
                self.frames.append(Frame(data, buffer))
        if found:
            self.refill()

    def _frame(self, buffer: RxBuffer, length: int) -> bytes | None:
        """Look at what the device filled in, as the driver and the stack above it will."""
        header_len = self.card.header_len
        if length < header_len or (self._newer and length == header_len):
            self.counters.undersize += 1
            raise GuestCorrupted("illumos_E5", f"used length {length} holds no frame behind {header_len} bytes")
        header = self.memory.read(buffer.buffer.cut(0, header_len))
        wanted = bytes(10) + (struct.pack("<H", 1) if header_len == net.HEADER_LEN else b"")
        if header != wanted:
            raise GuestCorrupted("illumos_E5", f"the header is {header.hex(' ')} with no offload taken")
        data = self.memory.read(buffer.buffer.cut(FRAME_AT, length - header_len))
        if len(data) < FRAME_LEN_MIN:
            raise GuestCorrupted("illumos_E5", f"a frame of {len(data)} bytes is not padded to {FRAME_LEN_MIN}")
        if len(data) > self.card.mtu + net.ETH_HEADER_LEN + VLAN_LEN:
            raise GuestCorrupted("illumos_E5", f"a frame of {len(data)} bytes with an MTU of {self.card.mtu}")
        return data

    def _put_back(self, chain: Chain) -> None:
        buffer = chain.token
        assert isinstance(buffer, RxBuffer)
        chain.clear()
        self._free.insert(0, buffer)

    def evacuate(self) -> None:
        """Claw everything back, after a reset."""
        for chain in self.ring.evacuate():
            self._put_back(chain)


class Transmit:
    """The transmit queue of one pair."""

    def __init__(self, guest: IllumosGuest, memory: GuestMemory, ring: Ring, card: Card) -> None:
        self.guest = guest
        self.memory = memory
        self.ring = ring
        self.card = card
        self.counters = Counters()
        self.corked = False
        count = min(ring.size, BUFFERS_MAX)
        self._free = [TxBuffer(memory.alloc(Zone.INLINE, INLINE_LEN), Chain(ring, SEGS_MAX)) for _ in range(count)]
        ring.avail_flags = NO_INTERRUPT

    def send(self, frame: bytes, offload: Offload | None = None, blocks: Sequence[Piece] | None = None) -> bool:
        """Send one frame; False when there is no buffer, and the queue is corked then.

        Frames below 300 bytes are copied. Others are mapped: `blocks` are the physical pieces of the message blocks,
        which hold the frame already, or None for a buffer of the guest's page layout.
        """
        self.reclaim()
        if not self._free:
            self._cork()
            if not self._free:
                self.counters.no_tx_buffer += 1
                return False
        buffer = self._free.pop(0)
        arena, header_len = self.memory.arena, self.card.header_len
        arena.write(buffer.inline, offload.pack(header_len) if offload else bytes(header_len))
        pieces: list[Piece]
        if len(frame) < COPY_BELOW:
            arena.write(buffer.inline + FRAME_AT, frame)
            pieces = [(buffer.inline + FRAME_AT, len(frame))]
        elif blocks is not None:
            pieces = [block for block in blocks if block[1]]
        else:
            buffer.mapped = self.memory.buffer(Zone.FRAMES, len(frame))
            self.memory.write(buffer.mapped.pieces, frame)
            pieces = list(buffer.mapped.pieces)
        if len(pieces) > SEGS_MAX - 1:
            self.counters.too_many_pieces += 1
            if self.guest.generation == 2019:  # dropped
                self._give(buffer)
                return True
            buffer.mapped = self.memory.buffer(Zone.FRAMES, len(frame))
            self.memory.write(buffer.mapped.pieces, frame)
            pieces = list(buffer.mapped.pieces)
        try:
            buffer.chain.append(buffer.inline, header_len)
            for gpa, length in pieces:
                buffer.chain.append(gpa, length)
        except NoRoom:
            self._give(buffer)
            self.counters.no_tx_buffer += 1
            return False
        self.ring.submit(buffer.chain, buffer)
        self.ring.flush()
        return True

    def reclaim(self) -> int:
        """Take back what the device is done with; return how many. Raises GuestHangs for a chain held too long."""
        found = self.ring.reap()
        for chain, length in found:
            if length:
                raise GuestCorrupted("illumos_R2.25", f"tx: used length {length} of a chain with nothing writable")
            buffer = chain.token
            assert isinstance(buffer, TxBuffer)
            self._give(buffer)
        if found and self.corked:
            self.corked = False
            self.ring.avail_flags = NO_INTERRUPT
        oldest = min((chain.submitted for chain in self.ring.in_flight.values()), default=None)
        if oldest is not None and time.monotonic() - oldest > HELD_MAX:
            raise GuestHangs("illumos_R2.31", f"a frame is held for more than {HELD_MAX} s")
        return len(found)

    def drain(self, timeout: float = HELD_MAX) -> None:
        """Wait until every frame is returned, as a stop does without limit. Raises GuestHangs."""
        deadline = time.monotonic() + timeout
        while self.ring.in_flight:
            if self.reclaim() == 0:
                if time.monotonic() > deadline:
                    raise GuestHangs("illumos_R2.31", f"{len(self.ring.in_flight)} frames are not returned")
                time.sleep(0.001)

    def _cork(self) -> None:
        """Ask to be told of the next buffer; only the newer driver looks again after asking."""
        self.corked = True
        self.ring.avail_flags = 0
        if self.guest.generation == 2026:
            self.reclaim()

    def _give(self, buffer: TxBuffer) -> None:
        buffer.chain.clear()
        if buffer.mapped is not None:
            self.memory.free(buffer.mapped.block)
            buffer.mapped = None
        self._free.insert(0, buffer)

    def evacuate(self) -> None:
        """Claw everything back, after a reset."""
        for chain in self.ring.evacuate():
            buffer = chain.token
            assert isinstance(buffer, TxBuffer)
            self._give(buffer)


@dataclass
class NetDriver:
    """One card: its pairs, the first of which carries what `send` and `receive` say."""

    card: Card
    rx: list[Receive] = field(default_factory=list)
    tx: list[Transmit] = field(default_factory=list)

    def start(self) -> None:
        """Bring the interface up."""
        for rx in self.rx:
            rx.start()

    def stop(self) -> None:
        """Take it down: interrupts off, and every frame to send comes back."""
        for rx in self.rx:
            rx.stop()
        for tx in self.tx:
            tx.ring.avail_flags = NO_INTERRUPT
            tx.drain()

    def evacuate(self) -> None:
        """Claw all buffers back, after a reset."""
        for rx in self.rx:
            rx.evacuate()
        for tx in self.tx:
            tx.evacuate()


def check_interface(card: Card) -> None:
    """Raises GuestPanics for an address or MTU that the stack would not take."""
    if card.mac[0] & 1:
        raise GuestPanics("illumos_E1", f"the address {card.mac.hex(':')} is of a group")
    if not net.MIN_MTU <= card.mtu <= net.MAX_MTU:
        raise LocalProtocolError(f"an MTU of {card.mtu}")
