"""Headers, transmission, reception and merged buffers (virtio 5.1.6)."""

import os

from vhostd.driver.conformance.case import NET, Level, Mark, NetFeature, RingFeature, Row, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check
from vhostd.driver.frames import GUEST, HOST, frame
from vhostd.driver.net import NetHeader
from vhostd.spec.net import ETH_HEADER_LEN

N = NetFeature
WIRE = [Mark.WIRE]
MRG = int(N.MRG_RXBUF)
NO_MRG = ALL_FEATURES & ~MRG
# Features without which a card sends no more than plain frames.
GUEST_OFFLOADS = int(
    N.GUEST_CSUM | N.GUEST_TSO4 | N.GUEST_TSO6 | N.GUEST_ECN | N.GUEST_UFO | N.GUEST_USO4 | N.GUEST_USO6
)
TX, RX, MERGE = "virtio 5.1.6.2", "virtio 5.1.6.4", "virtio 5.1.6.3.1, 5.1.6.4"
LENGTHS = {str(n): n for n in (60, 61, 64, 128, 590, 1000, 1499, 1500, 1513, 1514)}


def _out(check: Check, length: int, pieces: list[int] | None, features: int) -> None:
    wire = check.wire()
    with check.guest(features=features) as guest:
        data = frame(os.urandom(8), to=HOST, source=GUEST, length=length)
        card = guest.net()
        card.send(data, pieces=pieces)
        check.note(f"transmit a frame of {length} bytes cut into {pieces or 'header and frame'}")
        seen = wire.expect(lambda got: got[:22] == data[:22], check.timeout)
        check.equal(seen, data, "the frame, as it was transmitted,")
        card.drain(check.timeout)


@case("NET-TX-01", TX, kinds=NET, marks=WIRE, rows=LENGTHS)
def a_frame_goes_out(check: Check, length: int) -> None:
    """A frame that is transmitted reaches the wire whole and unchanged."""
    _out(check, length, None, ALL_FEATURES)


CUTS = {
    "one": [],
    "header": [12],
    "bytes": [1] * 20,
    "6+6": [6, 6],
    "12+14": [12, 14],
    "26": [26],
    "11": [11],
    "13": [13],
    "thirty": [12, *([16] * 29)],
}


@case("NET-TX-02", "virtio 2.7.4.1, 5.1.6.2", kinds=NET, marks=WIRE, rows=CUTS)
def in_any_cut(check: Check, pieces: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: header and frame in any cut."""
    _out(check, 600, pieces, ALL_FEATURES)


@case(
    "NET-TX-03",
    "virtio 5.1.6.1",
    kinds=NET,
    marks=WIRE,
    rows={"mergeable": Row(ALL_FEATURES, features=MRG), "plain": NO_MRG},
)
def header_has_12_bytes(check: Check, features: int) -> None:
    """With VERSION_1 the header has num_buffers, with MRG_RXBUF or without: 12 bytes."""
    _out(check, 200, None, features)


@case("NET-TX-04", "virtio 5.1.6.2.1", kinds=NET, marks=WIRE)
def num_buffers_is_not_looked_at(check: Check) -> None:
    """num_buffers of a transmitted header is unused: whatever it is, the frame goes out."""
    wire = check.wire()
    with check.guest() as guest:
        data = frame(os.urandom(8), to=HOST, source=GUEST, length=100)
        guest.net().send(data, NetHeader(num_buffers=7))
        wire.expect(lambda got: got == data, check.timeout)


@case("NET-TX-05", "virtio 2.7.8.2", kinds=NET, rows={"60": 60, "1514": 1514})
def used_length_of_transmission(check: Check, length: int) -> None:
    """Nothing is written to a transmitted frame: its used length is 0."""
    with check.guest() as guest:
        at = guest.arena.alloc(2048)
        guest.arena.write(at, bytes(12) + frame(to=HOST, source=GUEST, length=length))
        guest.add(guest.queues[1], [(at, 12 + length)], [])
        check.equal([used.length for used in guest.queues[1].wait(check.timeout)], [0], "used length")


@case("NET-TX-06", TX, kinds=NET, rows={"16": 16, "100": 100})
def many_at_once(check: Check, count: int) -> None:
    """Frames that are transmitted together are each returned, once."""
    with check.guest() as guest:
        work = guest.work()
        items = [work.submit(n, kick=False) for n in range(count)]
        guest.queue.kick()
        for item in items:
            work.finish(item)


@case("NET-TX-07", TX, kinds=NET, marks=WIRE)
def in_order(check: Check) -> None:
    """Frames of one queue go out in the order in which they were made available."""
    wire = check.wire()
    with check.guest() as guest:
        token = os.urandom(6)
        card = guest.net()
        for n in range(50):
            card.send(frame(token + n.to_bytes(2), to=HOST, source=GUEST, length=80))
        for n in range(50):
            seen = wire.expect(lambda got: got[14:20] == token, check.timeout)
            check.equal(int.from_bytes(seen[20:22]), n, "frame")


def _in(check: Check, length: int, *, buffer_len: int, features: int, pieces: list[int] | None = None) -> None:
    wire = check.wire()
    with check.guest(features=features) as guest:
        card = guest.net()
        card.post(16, buffer_len, pieces or [])
        data = frame(os.urandom(8), length=length)
        wire.send(data)
        got = card.receive(check.timeout)
        while got.frame[:22] != data[:22]:
            got = card.receive(check.timeout)
        check.equal(got.frame, data, "the frame, as it was sent,")
        check.equal(sum(got.used_lens), card.header_len + length, "used lengths of header and frame together,")
        mergeable = bool(guest.frontend.features & MRG)
        want = -(-(card.header_len + length) // buffer_len) if mergeable else 1
        check.equal(got.header.num_buffers, want, "num_buffers")


@case("NET-RX-01", RX, kinds=NET, marks=WIRE, rows=LENGTHS)
def a_frame_comes_in(check: Check, length: int) -> None:
    """A frame that comes from the wire is received whole and unchanged, behind its header."""
    _in(check, length, buffer_len=2048, features=ALL_FEATURES)


@case("NET-RX-02", "virtio 5.1.6.4.1", kinds=NET, marks=WIRE, rows={"60": 60, "1514": 1514})
def num_buffers_is_1(check: Check, length: int) -> None:
    """Without MRG_RXBUF the device MUST set num_buffers to 1."""
    _in(check, length, buffer_len=2048, features=NO_MRG & ~GUEST_OFFLOADS)


@case("NET-RX-03", "virtio 2.7.4.1, 5.1.6.3", kinds=NET, marks=WIRE, rows={k: v for k, v in CUTS.items() if k != "one"})
def into_any_cut(check: Check, pieces: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: a receive buffer in any cut."""
    _in(check, 500, buffer_len=2048, features=ALL_FEATURES, pieces=pieces)


MERGED = {
    "2x1024": (1514, 1024),
    "3x600": (1514, 600),
    "6x256": (1400, 256),
    "12x128": (1500, 128),
    "exact": (1012, 512),
    "one-over": (1013, 512),
}


@case("NET-MRG-01", MERGE, kinds=NET, marks=WIRE, features=MRG, rows=MERGED)
def merged(check: Check, row: tuple[int, int]) -> None:
    """With MRG_RXBUF a frame fills as many buffers as num_buffers says; each but the last is full."""
    length, buffer_len = row
    _in(check, length, buffer_len=buffer_len, features=ALL_FEATURES)


@case("NET-MRG-02", "virtio 5.1.6.4.1", kinds=NET, marks=WIRE, features=MRG)
def as_few_as_possible(check: Check) -> None:
    """The device MUST use only as many buffers as the frame needs."""
    _in(check, 100, buffer_len=128, features=ALL_FEATURES)


@case("NET-MRG-03", "virtio 5.1.6.4", kinds=NET, marks=WIRE, features=MRG)
def one_after_another(check: Check) -> None:
    """Merged and single frames follow each other, each whole."""
    wire = check.wire()
    with check.guest() as guest:
        card = guest.net()
        card.post(120, 256)
        token = os.urandom(6)
        frames = [frame(token + n.to_bytes(2), length=60 + 97 * n % 1400) for n in range(15)]
        for data in frames:
            wire.send(data)
        for n, data in enumerate(frames):
            got = card.receive(check.timeout)
            while got.frame[14:20] != token:
                got = card.receive(check.timeout)
            check.equal(got.frame, data, f"frame {n}")


@case("NET-RX-04", "virtio 5.1.6.4.1", kinds=NET, marks=WIRE, level=Level.SHOULD)
def too_small_a_buffer(check: Check) -> None:
    """Without MRG_RXBUF a frame that fits no buffer is dropped, and the next that fits is received."""
    wire = check.wire()
    with check.guest(features=NO_MRG & ~GUEST_OFFLOADS) as guest:
        card = guest.net()
        card.post(8, 256)
        wire.send(frame(b"large", length=1000))
        data = frame(b"small", length=100)
        wire.send(data)
        got = card.receive(check.timeout)
        check.equal(got.frame, data, "the frame that fits,")


@case("NET-RX-05", RX, kinds=NET, marks=WIRE)
def in_order_too(check: Check) -> None:
    """Frames of one flow are received in the order in which they came."""
    wire = check.wire()
    with check.guest() as guest:
        card = guest.net()
        card.post(100, 2048)
        token = os.urandom(6)
        for n in range(50):
            wire.send(frame(token + n.to_bytes(2), length=80))
        for n in range(50):
            got = card.receive(check.timeout).frame
            check.equal(got[14:22], token + n.to_bytes(2), f"frame {n}")


@case("NET-RX-06", "virtio 5.1.6.4.1", kinds=NET, marks=WIRE)
def header_is_clear(check: Check) -> None:
    """Without GUEST_CSUM the device MUST set flags to zero and gso_type to GSO_NONE."""
    wire = check.wire()
    with check.guest(features=ALL_FEATURES & ~GUEST_OFFLOADS) as guest:
        card = guest.net()
        card.post(8, 2048)
        wire.send(frame(b"plain", length=100))
        header = card.receive(check.timeout).header
        check.equal((header.flags, header.gso_type), (0, 0), "flags and gso_type")


@case("NET-RX-07", RX, kinds=NET, marks=WIRE)
def stopped_receives_nothing(check: Check) -> None:
    """A stopped receive queue is not processed: its buffers stay the driver's."""
    wire = check.wire()
    with check.guest() as guest:
        guest.net().post(8, 2048)
        guest.session.stop()
        wire.send(frame(length=100))
        check.expect(check.quiet(guest.queues[0]), "no used buffer", "one was used")


@case("NET-RX-08", "virtio 5.1.6.3.1", kinds=NET, marks=WIRE, features=int(RingFeature.INDIRECT_DESC))
def into_indirect_buffers(check: Check) -> None:
    """Receive buffers may be indirect chains."""
    _in(check, ETH_HEADER_LEN + 400, buffer_len=2048, features=ALL_FEATURES, pieces=[12, 100])
