"""The frame of every message (vhost-user, "Message Specification")."""

import select
import struct
import time

from vhostd.driver.conformance.case import Level, Row, case
from vhostd.driver.conformance.check import Check
from vhostd.protocol.messages import Config
from vhostd.protocol.wire import encode
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature

R = FrontendRequest
P = ProtocolFeature
HEADER = 'vhost-user, "Header"'
FRAMES = 'vhost-user, "Message Specification"'
GET = struct.pack("<III", R.GET_FEATURES, VERSION, 0)
GETS = {
    "features": Row((R.GET_FEATURES, b"", 8)),
    "protocol": Row((R.GET_PROTOCOL_FEATURES, b"", 8)),
    "queue-num": Row((R.GET_QUEUE_NUM, b"", 8), protocol=P.MQ),
    "slots": Row((R.GET_MAX_MEM_SLOTS, b"", 8), protocol=P.CONFIGURE_MEM_SLOTS),
    "status": Row((R.GET_STATUS, b"", 8), protocol=P.STATUS),
    "config": Row((R.GET_CONFIG, encode(Config(0, 8, 0, bytes(8))), 20), protocol=P.CONFIG),
}


@case("VU-MSG-01", HEADER, rows=GETS)
def reply_header(check: Check, row: tuple[int, bytes, int]) -> None:
    """A reply has version 1, the reply flag, and the number of its request."""
    request, payload, length = row
    frontend = check.negotiated()
    frontend.send(request, payload)
    frame = frontend.receive()
    check.equal(frame.request, request, "a reply to request")
    check.equal(frame.flags & 3, VERSION, "version")
    check.expect(frame.flags & FLAG_REPLY, "bit 2 of flags, the reply flag", f"flags {frame.flags:#x}")
    check.equal(len(frame.payload), length, "a payload of so many bytes,")


@case("VU-MSG-02", HEADER, rows=GETS)
def reply_has_no_need_reply(check: Check, row: tuple[int, bytes, int]) -> None:
    """A reply does not itself ask for a reply."""
    request, payload, _ = row
    frontend = check.negotiated()
    frontend.send(request, payload)
    frame = frontend.receive()
    check.expect(not frame.flags & FLAG_NEED_REPLY, "bit 3 of flags clear", f"flags {frame.flags:#x}")


@case("VU-MSG-03", FRAMES)
def frames_in_pieces(check: Check) -> None:
    """A message that arrives byte by byte is one message: a stream has no borders."""
    frontend = check.negotiated()
    check.note("GET_FEATURES, byte by byte")
    for n in range(len(GET)):
        frontend.send_bytes(GET[n : n + 1])
        time.sleep(0.001)
    (value,) = struct.unpack("<Q", frontend.reply(R.GET_FEATURES).payload)
    check.equal(value, check.offered, "features")


@case("VU-MSG-04", FRAMES, rows={"2": 2, "3": 3, "20": 20})
def frames_in_one_piece(check: Check, count: int) -> None:
    """Messages that arrive together are answered one by one, in order."""
    frontend = check.negotiated()
    protocol = struct.pack("<III", R.GET_PROTOCOL_FEATURES, VERSION, 0)
    check.note(f"GET_FEATURES GET_PROTOCOL_FEATURES, {count} times, in one piece")
    frontend.send_bytes((GET + protocol) * count)
    for _ in range(count):
        frontend.reply(R.GET_FEATURES)
        frontend.reply(R.GET_PROTOCOL_FEATURES)


@case("VU-MSG-05", FRAMES)
def header_and_payload_apart(check: Check) -> None:
    """A message whose payload comes later than its header is one message."""
    frontend = check.negotiated()
    check.note("SET_FEATURES: the header, then half of the payload, then the rest; GET_FEATURES")
    data = struct.pack("<IIIQ", R.SET_FEATURES, VERSION, 8, frontend.features)
    for part in (data[:12], data[12:16], data[16:] + GET):
        frontend.send_bytes(part)
        time.sleep(0.02)
    frontend.reply(R.GET_FEATURES)


@case("VU-MSG-06", 'vhost-user, "Communication"')
def idle_is_silent(check: Check) -> None:
    """A back-end sends nothing on the socket but replies."""
    frontend = check.negotiated()
    check.expect(not _readable(frontend.fileno(), 0.1), "silence", "bytes on the socket with no request open")


@case("VU-MSG-07", 'vhost-user, "Front-end message types", VHOST_USER_SET_OWNER')
def owner(check: Check) -> None:
    """SET_OWNER issues this front-end as the session's owner, and has no reply."""
    frontend = check.connect()
    frontend.send(R.SET_OWNER)
    check.answers(frontend)


@case("VU-MSG-08", 'vhost-user, "Front-end message types", VHOST_USER_RESET_OWNER', level=Level.SHOULD)
def reset_owner(check: Check) -> None:
    """RESET_OWNER is ignored or disables all rings: the connection's state is not discarded."""
    with check.guest() as guest:
        guest.works(1)
        guest.frontend.send(R.RESET_OWNER)
        check.answers(guest.frontend)
        guest.frontend.enable(check.target.work_ring)
        guest.works(1)


def _readable(fd: int, seconds: float) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])
