"""A network driver (5.1): bounded pools both ways, whatever the device or the application does with them.

A receive buffer holds the header and, from a place that is 2 modulo 4, the frame, so that an IP header is aligned:

    offset  0 ......... 9 (11)   14 ...
            virtio_net_hdr       Ethernet, IP ...        two descriptors; bytes between them belong to none

Receive buffers are lent to the application up to half of them; beyond that, and for short frames, it gets copies.
Transmit buffers come back unasked: calls stay off, used chains are taken back before each send and by `tick`, except
while there is no buffer left (corked).
"""

import dataclasses
import enum
import struct
import time
from collections.abc import Callable
from typing import Self, TypeVar

from vhostd.driver.buffers import POISON
from vhostd.driver.framework.chain import Chain, ChainQueue
from vhostd.driver.framework.device import Device
from vhostd.driver.framework.pool import Buffer, Constraints, Pool
from vhostd.driver.net import NetHeader, header_len
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec.net import FRAME_LEN_MAX, ConfigOffset, Feature, GsoType, HeaderFlag

WANTED = (
    Feature.CSUM
    | Feature.MTU
    | Feature.MAC
    | Feature.GSO
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
    | Feature.STATUS
    | Feature.CTRL_VQ
    | Feature.CTRL_RX
)
BUFFERS_MAX = 256  # in each direction
COPY_LEN = 300  # frames shorter than this are copied
INLINE_LEN = 2048
CHAIN_MAX = 64
FRAME_AT = 14  # round4(12) + 2, and round4(10) + 2
CTRL_LEN = 256
_T = TypeVar("_T")


class CtrlClass(enum.IntEnum):
    """Classes of control commands (5.1.6.5)."""

    RX = 0
    MQ = 4


class CtrlRx(enum.IntEnum):
    """Commands of class RX (5.1.6.5.1)."""

    PROMISC = 0
    ALLMULTI = 1


class Frame:
    """A frame that was received: `data` is a view of the receive buffer until `release`, or a copy of our own."""

    def __init__(self, card: "VioIf", header: NetHeader, data: memoryview | bytes, buffer: Buffer | None) -> None:
        self.header = header
        self.data = data
        self._card = card
        self._buffer = buffer

    @property
    def lent(self) -> bool:
        """Whether the data lies in a receive buffer that the card misses."""
        return self._buffer is not None

    def release(self) -> None:
        """Give the buffer back to the card; a second time does nothing."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            assert isinstance(self.data, memoryview)
            self.data.release()
            self._card.take_home(buffer)


class VioIf:
    """One network card, one queue pair, and the control queue where there is one. Not for use from two threads.

    counters: rx_frames, lent, copied, loan_limit_copy, no_rx_buffer, refill_short, undersize, oversize, tx_frames,
    tx_inline, tx_external, corked.
    """

    def __init__(self, device: Device, *, rx_len: int = FRAME_LEN_MAX + FRAME_AT, large: int = 16) -> None:
        self.device = device
        self.counters = device.counters
        self.header_len = header_len(device.features)
        self.on_uncork: Callable[[], None] | None = None
        self.corked = False
        count = min(device.rings[0].size, BUFFERS_MAX)
        if not device.rings[0].indirect:
            count = max(1, count // 2)  # two descriptors a buffer
        constraints = Constraints(align=4, first_len_min=FRAME_AT + 1)
        self.rx = device.make_queue(0, chains=count, capacity=2)
        self._rx_pool = Pool(device.arena, count, rx_len, constraints)
        device.push_undo(self._rx_pool.close)
        self.lent_max = count // 2
        self._lent: set[Buffer] = set()
        self._arrived: list[Frame] = []
        tx_count = min(device.rings[1].size, BUFFERS_MAX)
        if not device.rings[1].indirect:
            tx_count = max(1, tx_count // 2)
        self.tx = device.make_queue(1, chains=tx_count, capacity=CHAIN_MAX)
        self._inline = Pool(device.arena, tx_count, INLINE_LEN, constraints)
        device.push_undo(self._inline.close)
        self._large = Pool(device.arena, large, FRAME_LEN_MAX, Constraints(align=4096))
        device.push_undo(self._large.close)
        self.ctrl: ChainQueue | None = None
        if device.has(Feature.CTRL_VQ) and len(device.rings) > 2:
            self.ctrl = device.make_queue(2, chains=1, capacity=3)
            self._ctrl_pool = Pool(device.arena, 1, CTRL_LEN)
            device.push_undo(self._ctrl_pool.close)

    @classmethod
    def attach(
        cls,
        path: str,
        *,
        wanted: int = WANTED,
        rx_len: int = FRAME_LEN_MAX + FRAME_AT,
        large: int = 16,
        **options: object,
    ) -> "VioIf":
        """Attach a device, start it, and post its receive buffers. Close with `close`."""
        device = Device.attach(path, wanted=wanted, **{"queues": 2, **options})  # type: ignore[arg-type]
        try:
            card = cls(device, rx_len=rx_len, large=large)
            device.start()
            card.refill()
        except BaseException:
            device.close()
            raise
        return card

    # Receive.

    def refill(self) -> int:
        """Post every receive buffer that is free; how many. With none nothing is tried again before one comes home."""
        posted = 0
        while self._rx_pool.free and self.rx.free and self.device.running:
            buffer, chain = self._rx_pool.take(), self.rx.take()
            assert buffer is not None  # both were counted, by the only thread there is
            assert chain is not None
            buffer.write(bytes([POISON]) * self.header_len)
            chain.append(buffer.gpa, self.header_len, device_writes=True)
            chain.append(buffer.gpa + FRAME_AT, buffer.length - FRAME_AT, device_writes=True)
            chain.cookie = buffer
            chain.on_complete = self._received
            try:
                self.rx.submit(chain)
            except LocalProtocolError:
                chain.cookie = None
                buffer.give()
                self.rx.give(chain)
                self.counters["refill_short"] += 1
                break
            posted += 1
        if posted:
            self.rx.flush()
        elif self.rx.in_flight == 0:
            self.counters["no_rx_buffer"] += 1
        return posted

    def receive(self, timeout: float | None = None) -> Frame:
        """Return the next frame. Raises DeviceTimeout when none comes: nothing is wrong with a device then."""
        deadline = time.monotonic() + (self.device.timeout if timeout is None else timeout)
        while not self._arrived:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceTimeout("no frame came")
            self._guarded(lambda left=left: self.device.wait_any(left))  # type: ignore[misc]
        return self._arrived.pop(0)

    def poll(self) -> list[Frame]:
        """Return the frames that are there now."""
        self._guarded(self.rx.reap)
        found, self._arrived = self._arrived, []
        return found

    def take_home(self, buffer: Buffer) -> None:
        """Take a lent buffer back and post it again; for Frame.release."""
        self._lent.discard(buffer)
        buffer.give()
        if self.device.running:
            self.refill()

    def _received(self, chain: Chain) -> None:
        buffer: Buffer = chain.cookie
        length = chain.used_len - self.header_len
        capacity = buffer.length - FRAME_AT
        self.rx.give(chain)
        if length <= 0:
            self.counters["undersize"] += 1
            buffer.give()
        elif length > capacity:
            self.counters["oversize"] += 1
            buffer.give()
        else:
            header = NetHeader.unpack(buffer.read(0, self.header_len))
            self.counters["rx_frames"] += 1
            if length >= COPY_LEN and len(self._lent) < self.lent_max:
                self._lent.add(buffer)
                self.counters["lent"] += 1
                self._arrived.append(Frame(self, header, buffer.view(FRAME_AT, length), buffer))
            else:
                self.counters["copied" if length < COPY_LEN else "loan_limit_copy"] += 1
                self._arrived.append(Frame(self, header, buffer.read(FRAME_AT, length), None))
                buffer.give()
        self.refill()

    # Transmit.

    def send(self, data: bytes, header: NetHeader | None = None) -> bool:
        """Hand a frame to the device; False, with nothing taken, while the card is corked: `on_uncork` tells when not.

        Raises LocalProtocolError for a frame that is longer than any buffer.
        """
        if len(data) > FRAME_LEN_MAX:
            raise LocalProtocolError(f"card: a frame of {len(data)} bytes")
        self.reclaim()
        small = len(data) < COPY_LEN
        head, chain = self._inline.take(), self.tx.take()
        body = None if small else self._large.take()
        if head is None or chain is None or (body is None and not small):
            for taken in (head, body):
                if taken is not None:
                    taken.give()
            if chain is not None:
                self.tx.give(chain)
            self._cork()
            return False
        head.write((header or NetHeader()).pack(self.header_len))
        chain.append(head.gpa, self.header_len)
        if body is None:
            head.write(data, FRAME_AT)
            chain.append(head.gpa + FRAME_AT, len(data))
        else:
            body.write(data)
            chain.append(body.gpa, len(data))
        chain.cookie = (head, body)
        chain.on_complete = self._sent
        try:
            self.tx.submit(chain)
        except LocalProtocolError:
            self._let_go(chain)
            self._cork()
            return False
        self.tx.flush()
        self.counters["tx_frames"] += 1
        self.counters["tx_inline" if small else "tx_external"] += 1
        return True

    def reclaim(self) -> int:
        """Take back what was sent; how many. Uncorks."""
        count = self._guarded(self.tx.reap)
        if count and self.corked:
            self.corked = False
            self.tx.ring.disarm()
            if self.on_uncork is not None:
                self.on_uncork()  # last: it may send
        return count

    def tick(self) -> int:
        """Do what a timer of some 200 ms does: take back what was sent while nobody sends. Not after a stop."""
        return self.reclaim() if self.device.running else 0

    def drain(self, timeout: float | None = None) -> None:
        """Wait until every frame that was sent is back. Raises DeviceTimeout, after which the device has been reset."""
        limit = self.device.timeout if timeout is None else timeout
        self._guarded(lambda: self.tx.until(lambda: self.tx.in_flight == 0, limit))

    def _cork(self) -> None:
        """Mark, ask for a call, look again, and only then leave it at that: a chain used in between has no call."""
        self.corked = True
        self.counters["corked"] += 1
        if self.tx.ring.arm():
            self.reclaim()

    def _sent(self, chain: Chain) -> None:
        self._let_go(chain)

    def _let_go(self, chain: Chain) -> None:
        head, body = chain.cookie
        head.give()
        if body is not None:
            body.give()
        self.tx.give(chain)

    # Control (5.1.6.5), configuration, end.

    def command(self, group: int, command: int, data: bytes) -> None:
        """Carry out a control command. Its ack is poisoned before, so that a device which writes none did not do it.

        Raises LocalProtocolError without a control queue, DeviceError for any ack but 0, DeviceTimeout.
        """
        if self.ctrl is None:
            raise LocalProtocolError("card: CTRL_VQ was not agreed upon (5.1.3)")
        buffer, chain = self._ctrl_pool.take(), self.ctrl.take()
        if buffer is None or chain is None:
            raise LocalProtocolError("card: a control command is under way")
        ack_at = 2 + len(data)
        buffer.write(bytes([group, command]) + data + bytes([POISON]))
        chain.append(buffer.gpa, 2)
        chain.append(buffer.gpa + 2, len(data))
        chain.append(buffer.gpa + ack_at, 1, device_writes=True)
        chain.cookie = buffer
        self.ctrl.submit(chain, awaited=True)
        self.ctrl.flush()
        queue = self.ctrl
        self._guarded(lambda: queue.wait(chain, self.device.timeout))
        ack = buffer.read(ack_at, 1)[0]
        buffer.give()
        self.ctrl.give(chain)
        if ack:
            what = "wrote no ack" if ack == POISON else f"answered {ack}"
            raise DeviceError(f"control command {group}, {command}: the device {what} (5.1.6.5)")

    def mac(self) -> bytes | None:
        """Return the card's address; None when the device has none to tell."""
        return self.device.config(ConfigOffset.MAC, 6) if self.device.has(Feature.MAC) else None

    def link_up(self) -> bool:
        """Whether the link is up; it is when the device does not say (5.1.4.2)."""
        if not self.device.has(Feature.STATUS):
            return True
        return bool(self.device.config(ConfigOffset.STATUS, 2)[0] & 1)

    def stop(self) -> None:
        """Drain what is sent, reset, and take every buffer back, those the device was to fill, too."""
        try:
            self.drain()
        except DeviceTimeout:
            return  # it has been reset
        self._evacuate(self.device.reset())

    def close(self) -> None:
        """Give everything back; a second time does nothing. Lent frames must have been released."""
        self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _evacuate(self, chains: list[Chain]) -> None:
        for chain in chains:
            if chain.queue is self.tx:
                self._let_go(chain)
            else:
                chain.cookie.give()
                chain.queue.give(chain)
        self.corked = False

    def _guarded(self, work: Callable[[], _T]) -> _T:
        """Do something with a ring; when a deadline passes or the ring breaks, reset and take everything back."""
        try:
            return work()
        except DeviceError as error:
            if isinstance(error, DeviceTimeout) or any(queue.ring.broken for queue in self.device.queues):
                self._evacuate(self.device.give_up(error))
            raise


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """How a large segment asks to be cut: TCP payload of `size` bytes each, headers of `headers_len` bytes."""

    size: int
    headers_len: int
    ipv6: bool = False
    congestion: bool = False  # CWR is set: ECN
    old: bool = False  # as drivers did it that left hdr_len 0


def offload_header(start: int, offset: int, segmentation: Segmentation | None = None) -> NetHeader:
    """Return the header of a frame whose checksum is left to the device (5.1.6.2).

    start: bytes from the frame's start to what is summed; offset: from there to the checksum.
    """
    gso_type, gso_size, hdr_len = GsoType.NONE.value, 0, 0
    if segmentation is not None:
        gso_type = (GsoType.TCPV6 if segmentation.ipv6 else GsoType.TCPV4).value
        gso_type |= 0x80 if segmentation.congestion else 0
        gso_size = segmentation.size
        hdr_len = 0 if segmentation.old else segmentation.headers_len
    return NetHeader(HeaderFlag.NEEDS_CSUM, gso_type, hdr_len, gso_size, start, offset)


def tcp_may_segment(features: int, *, ipv6: bool = False) -> bool:
    """Whether a driver may leave TCP segmentation to the device (5.1.6.2.1)."""
    tso = Feature.HOST_TSO6 if ipv6 else Feature.HOST_TSO4
    by_kind = features & tso and features & Feature.HOST_ECN
    return bool(features & Feature.CSUM and (features & Feature.GSO or by_kind))


def pseudo_header_sum(source: bytes, target: bytes, length: int, protocol: int = 6) -> int:
    """Return the sum a TCP checksum field starts from over IPv4: of addresses, protocol and length (bytes)."""
    total: int = sum(struct.unpack("!4H", source + target)) + protocol + length
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
