"""A card's configuration space, pairs of queues, and the control queue (virtio 5.1.4, 5.1.5, 5.1.2)."""

from vhostd.driver.conformance.case import NET, Level, Mark, NetFeature, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.frames import GUEST, HOST, frame
from vhostd.errors import DeviceTimeout
from vhostd.spec.vhost_user import ProtocolFeature

P = ProtocolFeature
N = NetFeature
CONFIG = P.CONFIG
LAYOUT = "virtio 5.1.4"


def _le16(check: Check, offset: int) -> int:
    return int.from_bytes(check.target.offer.config[offset : offset + 2], "little")


@case("NET-CONF-01", LAYOUT, kinds=NET, protocol=CONFIG, features=int(N.MAC))
def mac(check: Check) -> None:
    """With MAC the address is told: that of one card, not a group's, and not 0."""
    address = check.target.offer.config[:6]
    check.expect(any(address) and not address[0] & 1, "an address of one card", address.hex(":"))


@case("NET-CONF-02", "virtio 5.1.4.1", kinds=NET, protocol=CONFIG, features=int(N.MTU))
def mtu(check: Check) -> None:
    """The device MUST set mtu to between 68 and 65535 inclusive, if it offers VIRTIO_NET_F_MTU."""
    check.expect(_le16(check, 10) >= 68, "68 to 65535", str(_le16(check, 10)))


@case("NET-CONF-03", "virtio 5.1.4.1", kinds=NET, level=Level.SHOULD, protocol=CONFIG, features=int(N.MTU))
def mtu_of_1280(check: Check) -> None:
    """The device SHOULD set mtu to at least 1280, if it offers VIRTIO_NET_F_MTU."""
    check.expect(_le16(check, 10) >= 1280, "at least 1280", str(_le16(check, 10)))


@case("NET-CONF-04", "virtio 5.1.4.1", kinds=NET, protocol=CONFIG, features=int(N.MQ))
def pairs(check: Check) -> None:
    """The device MUST set max_virtqueue_pairs to between 1 and 0x8000 inclusive, if it offers VIRTIO_NET_F_MQ."""
    check.expect(1 <= _le16(check, 8) <= 0x8000, "1 to 0x8000", str(_le16(check, 8)))


@case(
    "NET-CONF-05",
    f'{LAYOUT}; vhost-user, "Multiple queue support"',
    kinds=NET,
    protocol=CONFIG | P.MQ,
    features=int(N.MQ),
)
def pairs_are_told_twice(check: Check) -> None:
    """max_virtqueue_pairs is what GET_QUEUE_NUM tells, in pairs or in queues."""
    told = check.target.offer.queues
    check.expect(_le16(check, 8) in {told, told // 2}, f"{told} pairs", str(_le16(check, 8)))


@case("NET-CONF-06", LAYOUT, kinds=NET, protocol=CONFIG, features=int(N.STATUS))
def status(check: Check) -> None:
    """Of status only LINK_UP and ANNOUNCE are defined."""
    check.expect(not _le16(check, 6) & ~3, "no other bits", f"{_le16(check, 6):#x}")


@case("NET-MQ-01", "virtio 5.1.2, 5.1.6.5.6", kinds=NET, queues=2)
def every_pair_transmits(check: Check) -> None:
    """Each pair transmits on its own queue."""
    count = min(check.target.offer.queues, 8)
    with check.guest(queues=count) as guest:
        for pair in range(count):
            guest.works(2, ring=2 * pair + 1)


@case("NET-MQ-02", "virtio 5.1.2", kinds=NET, queues=2, marks=[Mark.WIRE])
def every_pair_reaches_the_wire(check: Check) -> None:
    """What is transmitted on any pair reaches the wire."""
    wire = check.wire()
    count = min(check.target.offer.queues, 8)
    with check.guest(queues=count) as guest:
        for pair in range(count):
            data = frame(bytes([pair]) * 8, to=HOST, source=GUEST, length=100)
            guest.net(pair).send(data)
            wire.expect(lambda seen, data=data: seen == data, check.timeout)  # type: ignore[misc]


@case("NET-MQ-03", "virtio 5.1.6.5.6.2", kinds=NET, queues=2, marks=[Mark.WIRE])
def one_pair_is_enabled(check: Check) -> None:
    """With one pair enabled all frames come to its receive queue."""
    wire = check.wire()
    with check.guest(queues=2) as guest:
        for pair in range(2):
            guest.net(pair).post(16, 2048)
        for ring in (2, 3):
            guest.frontend.enable(ring, enabled=False)
        card = guest.net(0)
        for n in range(8):
            data = frame(n.to_bytes(2), length=100)
            wire.send(data)
            check.expect(card.receive(check.timeout).frame == data, "each frame on the first pair", "another one")


@case("NET-MQ-04", 'vhost-user, "Multiple queue support"; virtio 5.1.6.5.6', kinds=NET, queues=2, marks=[Mark.WIRE])
def pairs_come_and_go(check: Check) -> None:
    """Pairs are enabled and disabled under way; the first goes on."""
    wire = check.wire()
    with check.guest(queues=2) as guest:
        card = guest.net(0)
        card.post(32, 2048)
        for n in range(6):
            for ring in (2, 3):
                guest.frontend.enable(ring, enabled=n % 2 == 1)
            if n % 2 == 0:
                data = frame(n.to_bytes(2), length=100)
                wire.send(data)
                check.expect(card.receive(check.timeout).frame == data, "the frame on the first pair", "another one")


@case("NET-MQ-05", 'vhost-user, "Multiple queue support"', kinds=NET, marks=[Mark.WIRE])
def receive_ring_without_buffers(check: Check) -> None:
    """A receive queue without buffers drops frames; it goes on when buffers come."""
    wire = check.wire()
    with check.guest() as guest:
        for n in range(50):
            wire.send(frame(n.to_bytes(2), length=100))
        card = guest.net(0)
        card.post(64, 2048)
        # What waited may come first; then the ring is as good as new.
        try:
            while True:
                card.receive(0.2)
        except DeviceTimeout:
            pass
        card.post(4, 2048)
        data = frame(b"after", length=100)
        wire.send(data)
        check.expect(card.receive(check.timeout).frame == data, "the next frame", "another one")
