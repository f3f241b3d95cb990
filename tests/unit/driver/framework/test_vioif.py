"""The network driver against devices that are right, wrong and late, and an application that keeps what it gets."""

import os
import struct

import pytest

from tests.support.puppet import Puppet
from vhostd.driver.framework.device import Device
from vhostd.driver.framework.vioif import (
    FRAME_AT,
    WANTED,
    CtrlClass,
    CtrlRx,
    Segmentation,
    VioIf,
    offload_header,
    pseudo_header_sum,
    tcp_may_segment,
)
from vhostd.driver.net import NetHeader
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec.net import Feature
from vhostd.spec.virtio import Feature as Ring

ALL = WANTED | Ring.VERSION_1 | Ring.INDIRECT_DESC | Ring.EVENT_IDX | Ring.RING_PACKED
MAC = bytes([0x52, 0x54, 0, 1, 2, 3])


class Net:
    """The device's side: what it was sent, and what it will put into receive buffers."""

    def __init__(self):
        self.arena = None
        self.header_len = 12
        self.sent = []
        self.tx_used = 0  # None: keep what is sent
        self.inbox = []  # frames, or (frame, used length)
        self.ack = 0
        self.commands = []
        self.posted = []

    def __call__(self, index, readable, writable):
        out = b"".join(self.arena.read(gpa, length) for gpa, length in readable)
        if index == 1:
            self.sent.append((out[: self.header_len], out[self.header_len :], len(readable)))
            return self.tx_used
        if index == 2:
            self.commands.append(out)
            if self.ack is not None:
                self.arena.write(writable[0][0], bytes([self.ack]))
            return 1
        self.posted.append(writable)
        if not self.inbox:
            return None
        frame = self.inbox.pop(0)
        frame, used = frame if isinstance(frame, tuple) else (frame, self.header_len + len(frame))
        stream = struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, 1)[: self.header_len] + frame
        for gpa, length in writable:
            self.arena.write(gpa, stream[:length])
            stream = stream[length:]
        return used


@pytest.fixture
def attached(puppet, monkeypatch):
    """Attach a driver to a puppet with a Net behind it."""
    made = []

    def attach(*, features=ALL, queues=3, inbox=(), **options):
        device = puppet(features=features, config=MAC + struct.pack("<HHH", 1, 1, 1500), queues=2)
        net = Net()
        net.inbox = list(inbox)
        net.header_len = 10 if options.get("legacy") else 12
        start = Device.start

        def started(self):
            if net.arena is None:
                net.arena = self.arena
                Puppet.play(device, self, net)
            start(self)

        with monkeypatch.context() as patch:
            patch.setattr(Device, "start", started)
            card = VioIf.attach(
                str(device.path), queues=queues, **{"timeout": 2.0, "size": 32, "rx_len": 2048, **options}
            )
        made.append(card)
        return card, net

    yield attach
    for card in made:
        card.close()


KINDS = {"modern": {}, "direct": {"indirect": False}, "legacy": {"legacy": True}, "packed": {"packed": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_both_ways(attached, kind):
    """ILLUMOS D5-F, R2.18-F: header and frame apart, the frame at 2 modulo 4; short ones inline, long ones not."""
    frames = [bytes([n]) * length for n, length in enumerate((60, 299, 300, 1514))]
    card, net = attached(inbox=frames, **KINDS[kind])
    for frame in frames:
        got = card.receive()
        assert bytes(got.data) == frame
        assert got.lent == (len(frame) >= 300)
        got.release()
        got.release()
    for frame in frames:
        assert card.send(frame)
    card.drain()
    assert [sent for _, sent, _ in net.sent] == frames
    assert all(writable[0][1] == net.header_len and writable[1][0] % 4 == 2 for writable in net.posted)
    assert (card.counters["tx_inline"], card.counters["tx_external"]) == (2, 2)
    assert card.link_up()
    assert card.mac() == MAC


def test_illumos_7366_an_application_that_keeps_every_frame(attached):
    """ILLUMOS C.3-F, R2.23-F: half of the pool is lent, the rest goes on as copies; memory is flat."""
    card, _ = attached(inbox=[bytes([n]) * 1000 for n in range(100)])
    before = card.device.arena.allocated
    kept = [card.receive() for _ in range(100)]
    assert sum(frame.lent for frame in kept) == card.lent_max == 16
    assert card.counters["loan_limit_copy"] == 84
    assert card.rx.in_flight == 16
    assert card.device.arena.allocated == before
    assert all(bytes(frame.data) == bytes([n]) * 1000 for n, frame in enumerate(kept))
    for frame in kept:
        frame.release()
    assert card.rx.in_flight == 32
    with pytest.raises(DeviceTimeout):
        card.receive(0.02)


@pytest.mark.parametrize(
    ("used", "counter"),
    [(0, "undersize"), (9, "undersize"), (12, "undersize"), (13, "rx_frames"), (12 + 2048 - FRAME_AT, "rx_frames")],
)
def test_a_used_length_is_checked(attached, used, counter):
    """ILLUMOS R2.25-F: no more than a header is undersize; the buffer is used again."""
    card, _ = attached(inbox=[(b"f" * 100, used), b"g" * 60])
    while card.counters["rx_frames"] < 1 + (counter == "rx_frames"):
        card.receive().release()
    assert card.counters[counter] >= 1
    assert card.rx.in_flight == 32


@pytest.mark.parametrize("used", [12 + 2048 - FRAME_AT + 1, 2**32 - 1])
def test_a_used_length_beyond_the_buffer_breaks_the_ring(attached, used):
    """ILLUMOS R2.25-F, R3.4-F: more than there was room for is no frame but a broken device; it is reset."""
    card, _ = attached(inbox=[(b"f" * 100, used)])
    with pytest.raises(DeviceError, match="more bytes"):
        card.receive()
    assert card.counters["broken_rings"] == 1
    assert card.rx.free == card.rx.count


def test_refill_says_what_it_did(attached):
    """ILLUMOS R2.21-F, R2.33-F: how many; with none nothing is tried in a loop, and it is counted."""
    card, _ = attached()
    assert card.refill() == 0
    assert card.rx.in_flight == 32
    card.stop()
    assert (card.rx.free, card.refill()) == (32, 0)


def test_corked_and_uncorked_without_a_lost_wake_up(attached):
    """ILLUMOS R2.27-F: mark, ask, look again. The device returns everything at every point between the steps."""
    for point in range(6):
        card, net = attached(size=8, large=2)
        net.tx_used = None
        told = []
        card.on_uncork = lambda told=told: told.append(1)
        while card.send(b"x" * 60):
            pass
        assert card.corked
        assert card.counters["corked"] == 1
        # It gives everything back: at once, or while the driver looks, by whichever way it is noticed.
        chains = card.device.rings[1].tokens()
        assert len(chains) == 8
        _give_back(card, point)
        for _ in range(3):
            card.device.wait_any(0.02)
            card.reclaim()
        assert not card.corked
        assert told
        assert card.send(b"y" * 60)


class Stepped:
    """A ring whose `arm` is done step by step, with something that happens between the steps."""

    def __init__(self, ring, between):
        self._ring = ring
        self._between = between

    def __getattr__(self, name):
        return getattr(self._ring, name)

    def arm(self):
        self._between("marked")
        self._ring.used_event = self._ring.last_used & 0xFFFF
        self._between("asked")
        found = self._ring.used_idx != self._ring.last_used & 0xFFFF
        self._between("looked")
        return found


@pytest.mark.parametrize("step", ["full", "marked", "asked", "looked", "corked"])
@pytest.mark.parametrize("count", range(1, 9))
def test_every_interleaving_of_corking_and_returning(attached, step, count):
    """ILLUMOS R2.27-F: whenever the device returns however many, a call is due, or nobody sleeps. No timer helps."""
    card, net = attached(size=8, large=2)
    net.tx_used = None
    ring = card.device.rings[1]
    heads = []

    def device(how_many):
        """Return chains, then call if used_event was passed: each side in its order."""
        arena, old = card.device.arena, ring.used_idx
        for head in heads[:how_many]:
            at = ring.used_gpa + 4 + 8 * (ring.used_idx % 8)
            arena.write(at, struct.pack("<II", head, 0))
            arena.write(ring.used_gpa + 2, struct.pack("<H", ring.used_idx + 1))
        del heads[:how_many]
        if (ring.used_idx - ring.used_event - 1) % 65536 < (ring.used_idx - old) % 65536:
            os.eventfd_write(ring.call_fd.number, 1)

    def between(now):
        if now == step and heads:
            device(count)

    while card.tx.free:
        assert card.send(b"x" * 60)
    ring.disarm()
    ring.take_call()
    heads += [int.from_bytes(card.device.arena.read(ring.avail_gpa + 4 + 2 * n, 2), "little") for n in range(8)]
    told = []
    card.on_uncork = lambda: told.append(1)
    card.tx.ring = Stepped(ring, between)
    cork = card._cork

    def corking():
        between("full")
        cork()
        between("corked")

    card._cork = corking
    assert not card.send(b"y" * 60)
    if card.corked:
        device(8)  # the others, at last, or none
        assert ring.take_call() > 0, "it sleeps, and nobody will call"
        card.reclaim()
    assert not card.corked
    assert told


def _give_back(card, after):
    """Use the transmit chains, `after` of them first and the others later, as a device does that was slow."""
    arena, ring = card.device.arena, card.device.rings[1]
    used_idx = int.from_bytes(arena.read(ring.used_gpa + 2, 2), "little")
    heads = [int.from_bytes(arena.read(ring.avail_gpa + 4 + 2 * n, 2), "little") for n in range(8)]
    for part in (heads[:after], heads[after:]):
        for head in part:
            arena.write(ring.used_gpa + 4 + 8 * (used_idx % 8), struct.pack("<II", head, 0))
            used_idx += 1
        arena.write(ring.used_gpa + 2, struct.pack("<H", used_idx))
        card.tick()


def test_a_frame_that_is_not_taken_is_the_callers(attached):
    """ILLUMOS R2.30-F: sent and counted, or refused with everything as before."""
    card, net = attached(size=8, large=2)
    net.tx_used = None
    sent = 0
    while card.send(b"z" * 1000):
        sent += 1
    assert sent == 2
    assert card.counters["tx_frames"] == 2
    assert card.send(b"w" * 60) in (True, False)
    with pytest.raises(LocalProtocolError):
        card.send(bytes(70000))


def test_what_was_sent_is_taken_back_by_the_next_send_and_by_the_timer(attached):
    """ILLUMOS R2.31-F, R2.28-F: before each send, and by a timer that does nothing after a stop."""
    card, _ = attached()
    for _ in range(100):
        while not card.send(b"a" * 60):
            card.device.wait_any(0.1)
    card.drain()
    assert card.send(b"b" * 60)
    for _ in range(200):
        if card.tick():
            break
        card.device.wait_any(0.01)
    assert card.tx.in_flight == 0
    card.stop()
    assert card.tick() == 0


def test_a_stop_takes_every_buffer_back(attached):
    """ILLUMOS D4-F, C.3: sent frames are drained within a bound, posted buffers evacuated."""
    card, net = attached(timeout=0.3)
    net.tx_used = None
    card.send(b"a" * 60)
    card.stop()
    assert card.counters["timeouts"] == 1
    assert (card.tx.free, card.rx.free) == (card.tx.count, card.rx.count)


def test_control_commands(attached):
    """ILLUMOS D10-F: the ack is poisoned; none, an error and 0 are told apart; a deadline."""
    card, net = attached(timeout=0.5)
    card.command(CtrlClass.RX, CtrlRx.PROMISC, b"\x01")
    assert net.commands == [b"\x00\x00\x01"]
    for ack, what in ((1, "answered 1"), (None, "wrote no ack")):
        net.ack = ack
        with pytest.raises(DeviceError, match=what):
            card.command(CtrlClass.RX, CtrlRx.PROMISC, b"\x00")
    other, _ = attached(features=ALL & ~Feature.CTRL_VQ)
    with pytest.raises(LocalProtocolError, match="CTRL_VQ"):
        other.command(CtrlClass.RX, CtrlRx.PROMISC, b"\x01")


def test_offload_headers(attached):
    """ILLUMOS D2-F (12465): both forms, as E.6 has their bytes."""
    assert offload_header(34, 16).pack(10) == bytes.fromhex("01 00 00 00 00 00 22 00 10 00")
    old = offload_header(34, 16, Segmentation(1448, 66, old=True))
    assert old.pack(10) == bytes.fromhex("01 01 00 00 a8 05 22 00 10 00")
    new = offload_header(34, 16, Segmentation(1448, 66))
    assert new.pack(12) == bytes.fromhex("01 01 42 00 a8 05 22 00 10 00 00 00")
    assert offload_header(54, 16, Segmentation(1428, 74, ipv6=True, congestion=True)).gso_type == 0x84
    assert pseudo_header_sum(bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), 20) == 0x841E
    card, net = attached()
    card.send(b"t" * 100, NetHeader(1, 0, 0, 0, 34, 16))
    card.drain()
    assert net.sent[0][0][:10] == bytes.fromhex("01 00 00 00 00 00 22 00 10 00")


@pytest.mark.parametrize(
    ("features", "four", "six"),
    [(Feature.CSUM | Feature.GSO, True, True), (Feature.GSO, False, False),
     (Feature.CSUM | Feature.HOST_TSO4, False, False),
     (Feature.CSUM | Feature.HOST_TSO4 | Feature.HOST_ECN, True, False),
     (Feature.CSUM | Feature.HOST_TSO6 | Feature.HOST_ECN, False, True)],
)  # fmt: skip
def test_when_segmentation_may_be_left_to_the_device(features, four, six):
    """ILLUMOS D2-F: CSUM and (GSO or (TSO and ECN))."""
    assert tcp_may_segment(features) is four
    assert tcp_may_segment(features, ipv6=True) is six


def test_the_link_is_read_when_it_is_asked(attached):
    """ILLUMOS D3-F: up where the device does not say."""
    card, _ = attached(features=ALL & ~Feature.STATUS & ~Feature.MAC)
    assert card.link_up()
    assert card.mac() is None
