"""The frame of every message (vhost-user, "Message Specification")."""

import struct
import time

from vhostd.driver.conformance.case import case
from vhostd.driver.conformance.check import Check
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature

R = FrontendRequest
HEADER = 'vhost-user, "Header"'
GET = struct.pack("<III", R.GET_FEATURES, VERSION, 0)


@case("VU-MSG-01", HEADER)
def reply_flags(check: Check) -> None:
    """A reply has version 1, the reply flag, and the number of its request."""
    frontend = check.connect()
    frontend.send(R.GET_FEATURES)
    frame = frontend.receive()
    check.equal(frame.request, R.GET_FEATURES, "a reply to request")
    check.equal(frame.flags & 3, VERSION, "version")
    check.expect(frame.flags & FLAG_REPLY, "bit 2 of flags, the reply flag", f"flags {frame.flags:#x}")
    check.equal(len(frame.payload), 8, "a payload of so many bytes,")


@case("VU-MSG-02", HEADER)
def reply_has_no_need_reply(check: Check) -> None:
    """A reply does not itself ask for a reply."""
    frontend = check.connect()
    frontend.send(R.GET_FEATURES)
    frame = frontend.receive()
    check.expect(not frame.flags & FLAG_NEED_REPLY, "bit 3 of flags clear", f"flags {frame.flags:#x}")


@case("VU-MSG-03", 'vhost-user, "Message Specification"')
def frames_in_pieces(check: Check) -> None:
    """A message that arrives byte by byte is one message: a stream has no borders."""
    frontend = check.negotiated()
    check.note("GET_FEATURES, byte by byte")
    for n in range(len(GET)):
        frontend.send_bytes(GET[n : n + 1])
        time.sleep(0.001)
    (value,) = struct.unpack("<Q", frontend.reply(R.GET_FEATURES).payload)
    check.equal(value, check.offered, "features")


@case("VU-MSG-04", 'vhost-user, "Message Specification"')
def frames_in_one_piece(check: Check) -> None:
    """Messages that arrive together are answered one by one, in order."""
    frontend = check.negotiated()
    check.note("GET_FEATURES GET_PROTOCOL_FEATURES GET_FEATURES in one piece")
    frontend.send_bytes(GET + struct.pack("<III", R.GET_PROTOCOL_FEATURES, VERSION, 0) + GET)
    for request in (R.GET_FEATURES, R.GET_PROTOCOL_FEATURES, R.GET_FEATURES):
        frontend.reply(request)


GETS = {
    "features": (R.GET_FEATURES, ProtocolFeature(0)),
    "protocol": (R.GET_PROTOCOL_FEATURES, ProtocolFeature(0)),
    "queue_num": (R.GET_QUEUE_NUM, ProtocolFeature.MQ),
    "slots": (R.GET_MAX_MEM_SLOTS, ProtocolFeature.CONFIGURE_MEM_SLOTS),
    "status": (R.GET_STATUS, ProtocolFeature.STATUS),
}
