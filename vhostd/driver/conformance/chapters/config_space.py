"""The configuration space over the socket (vhost-user, "Virtio device config space", GET_CONFIG, SET_CONFIG)."""

from vhostd.driver.conformance.case import BLOCK, NET, BlkFeature, case
from vhostd.driver.conformance.check import Check
from vhostd.errors import Refused
from vhostd.protocol.messages import Config
from vhostd.protocol.wire import encode
from vhostd.spec.vhost_user import ConfigFlag, FrontendRequest, ProtocolFeature

R = FrontendRequest
P = ProtocolFeature
GET = 'vhost-user, "Front-end message types", VHOST_USER_GET_CONFIG'
SET = 'vhost-user, "Front-end message types", VHOST_USER_SET_CONFIG'
SPACE = 'vhost-user, "Virtio device config space"'

BLOCK_LENGTHS = {str(n): n for n in (1, 2, 4, 8, 12, 16, 20, 24, 32, 33, 36, 48, 57, 60)}
NET_LENGTHS = {str(n): n for n in (1, 6, 8, 10, 12)}
BLOCK_FIELDS = {
    "seg-max": (12, 4),
    "geometry": (16, 4),
    "blk-size": (20, 4),
    "topology": (24, 8),
    "writeback": (32, 1),
    "num-queues": (34, 2),
    "discard": (36, 12),
    "write-zeroes": (48, 9),
}
NET_FIELDS = {"status": (6, 2), "pairs": (8, 2), "mtu": (10, 2)}


def _length(check: Check, length: int) -> None:
    whole, frontend = check.config(), check.negotiated()
    frontend.send(R.GET_CONFIG, encode(Config(0, length, 0, bytes(length))))
    frame = frontend.reply(R.GET_CONFIG)
    check.equal(len(frame.payload), 12 + length, "a reply whose payload has as many bytes as the request's,")
    check.equal(frame.payload[12:], whole[:length], "the first bytes of configuration space,")


@case("VU-CONF-01", GET, kinds=BLOCK, protocol=P.CONFIG, rows=BLOCK_LENGTHS)
def disk_any_length(check: Check, length: int) -> None:
    """On success the size of the reply's payload matches that of the request."""
    _length(check, length)


@case("VU-CONF-02", GET, kinds=NET, protocol=P.CONFIG, rows=NET_LENGTHS)
def card_any_length(check: Check, length: int) -> None:
    """On success the size of the reply's payload matches that of the request."""
    _length(check, length)


def _field(check: Check, offset: int, length: int) -> None:
    whole = check.config()[offset : offset + length]
    frontend = check.negotiated()
    frontend.send(R.GET_CONFIG, encode(Config(offset, length, 0, bytes(length))))
    frame = frontend.reply(R.GET_CONFIG)
    check.expect(frame.payload, "the bytes at that offset", "an empty reply")
    check.equal(
        frame.payload[:8], encode(Config(offset, length, 0, bytes(length)))[:8], "the offset and size asked for,"
    )
    check.equal(frame.payload[12:], whole, f"the bytes at offset {offset},")


@case("VU-CONF-03", SPACE, kinds=BLOCK, protocol=P.CONFIG, rows=BLOCK_FIELDS)
def disk_from_an_offset(check: Check, field: tuple[int, int]) -> None:
    """`offset` is that of the bytes in the device's configuration space."""
    _field(check, *field)


@case("VU-CONF-04", SPACE, kinds=NET, protocol=P.CONFIG, rows=NET_FIELDS)
def card_from_an_offset(check: Check, field: tuple[int, int]) -> None:
    """`offset` is that of the bytes in the device's configuration space."""
    _field(check, *field)


@case("VU-CONF-05", GET, protocol=P.CONFIG)
def at_any_time(check: Check) -> None:
    """GET_CONFIG is answered before the features are set, while rings run, and after they stopped."""
    whole, frontend = check.config(), check.negotiated()
    length = len(whole)
    check.equal(frontend.config(0, length), whole, "configuration space")
    frontend.close()
    with check.guest() as guest:
        guest.works(1)
        check.equal(guest.frontend.config(0, length), whole, "configuration space")
        guest.session.stop()
        check.equal(guest.frontend.config(0, length), whole, "configuration space")


def _read_only(check: Check, offset: int, length: int) -> None:
    frontend = check.negotiated()
    frontend.set_features()
    before = frontend.config(0, len(check.target.offer.config))
    data = bytes(byte ^ 0x55 for byte in before[offset : offset + length])
    answer = None
    if frontend.protocol_features & P.REPLY_ACK:
        answer = check.acked(frontend, R.SET_CONFIG, Config(offset, length, ConfigFlag.WRITABLE, data))
    else:
        frontend.send(R.SET_CONFIG, encode(Config(offset, length, ConfigFlag.WRITABLE, data)))
    if frontend.closed_by_peer(0.05):  # a refusal, whatever it was called before
        check.note("  the back-end closed the connection")
        frontend, answer = check.negotiated(), None
    check.equal(frontend.config(0, len(before)), before, "configuration space as it was,")
    check.expect(answer != 0, "a refusal", "the answer 0: accepted")


BLOCK_READ_ONLY = {"capacity": (0, 8), **{k: v for k, v in BLOCK_FIELDS.items() if k != "writeback"}}


@case("VU-CONF-06", SET, kinds=BLOCK, protocol=P.CONFIG, rows=BLOCK_READ_ONLY)
def disk_read_only(check: Check, field: tuple[int, int]) -> None:
    """Back-ends must not accept SET_CONFIG for read-only fields unless the migration flag is set."""
    _read_only(check, *field)


@case("VU-CONF-07", SET, kinds=NET, protocol=P.CONFIG, rows=NET_FIELDS)
def card_read_only(check: Check, field: tuple[int, int]) -> None:
    """Back-ends must not accept SET_CONFIG for read-only fields unless the migration flag is set."""
    _read_only(check, *field)


@case(
    "VU-CONF-08",
    f"{SET}; virtio 5.2.4",
    kinds=BLOCK,
    protocol=P.CONFIG,
    features=int(BlkFeature.CONFIG_WCE),
    rows={"0": (0,), "1": (1,), "0-1": (0, 1), "1-0-1": (1, 0, 1)},
)
def writeback_is_kept(check: Check, values: tuple[int, ...]) -> None:
    """With CONFIG_WCE the driver may write the field writeback, and reads back what it wrote."""
    with check.guest() as guest:
        before = guest.frontend.config(0, 33)[32:]
        try:
            for value in values:
                guest.frontend.set_config(32, bytes([value]))
                check.equal(guest.frontend.config(0, 33)[32], value, "writeback")
                guest.works(1)
        finally:
            guest.frontend.set_config(32, before)


@case(
    "VU-CONF-09",
    f"{SET}; virtio 5.2.4",
    kinds=BLOCK,
    protocol=P.CONFIG | P.REPLY_ACK,
    features=int(BlkFeature.CONFIG_WCE),
)
def writeback_is_no_other_value(check: Check) -> None:
    """Writeback is 0 for write-through and 1 for write-back: it is never read as anything else."""
    with check.guest() as guest:
        before = guest.frontend.config(0, 33)[32:]
        try:
            guest.frontend.set_config(32, b"\x02")
            check.expect(guest.frontend.config(0, 33)[32] in {0, 1}, "0 or 1", "another value is kept")
        except Refused:
            return
        finally:
            guest.frontend.set_config(32, before)


@case("VU-CONF-10", GET, protocol=P.CONFIG, rows={"128": 128, "256": 256})
def longer_than_the_space(check: Check, length: int) -> None:
    """A reply is as long as the request, or empty to show an error; it is never shorter."""
    frontend = check.negotiated()
    frontend.send(R.GET_CONFIG, encode(Config(0, length, 0, bytes(length))))
    frame = frontend.reply(R.GET_CONFIG)
    check.expect(
        len(frame.payload) in {0, 12, 12 + length},
        f"{12 + length} bytes of payload, or an error",
        f"{len(frame.payload)} bytes",
    )
