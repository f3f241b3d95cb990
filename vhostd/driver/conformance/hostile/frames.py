"""Frames that are none: versions, flags, lengths, unknown requests, streams that end anywhere (HOSTILE S1 to S34)."""

import contextlib
import struct

from vhostd.driver.conformance.case import Level, Mark, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.conformance.hostile.tools import (
    KINDS,
    R,
    addr,
    attempt,
    closes,
    config,
    descriptor,
    refuses,
    single,
    state,
    table,
    u64,
)
from vhostd.driver.conformance.verdict import Fault
from vhostd.errors import DeviceGone, DeviceTimeout
from vhostd.protocol.rules import RULES
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature

HOSTILE = [Mark.HOSTILE]
ACK = ProtocolFeature.REPLY_ACK
HEADER = 'vhost-user, "Header"'


def _name(request: FrontendRequest) -> str:
    return request.name.lower().replace("_", "-")


def _lengths() -> dict[str, tuple[FrontendRequest, int]]:
    """Each request with payloads that are a byte too short, a byte and four too long."""
    rows = {}
    for request, rule in RULES.items():
        right = set(rule.payload.LENGTHS) | (set(rule.older.LENGTHS) if rule.older else set())
        for name, length in (("short", min(right) - 1), ("long", max(right) + 1), ("longer", max(right) + 4)):
            if length >= 0 and length not in right:
                rows[f"{_name(request)}.{name}"] = (request, length)
    return rows


@case("HOST-S1", HEADER, level=Level.SHOULD, marks=HOSTILE, rows={"0": 0, "2": 2, "3": 3})
def a_version_that_is_not_1(check: Check, version: int) -> None:
    """The lower two bits are the version (1): a stream of another one cannot be understood."""
    frontend = check.negotiated()
    frontend.send(R.GET_FEATURES, flags=version)
    closes(check, frontend)


@case("HOST-S2", HEADER, level=Level.SHOULD, marks=HOSTILE)
def a_request_that_says_it_is_a_reply(check: Check) -> None:
    """The reply flag is for replies: a request that has it is answered by no success."""
    frontend = check.negotiated()
    word = attempt(frontend, R.SET_FEATURES, u64(frontend.features), flags=VERSION | FLAG_REPLY)
    check.expect(word != "done", "anything but success", word)


@case("HOST-S3", HEADER, marks=HOSTILE, rows={"64k": 65536, "1g": 1 << 30, "all": 0xFFFFFFFF})
def a_length_beyond_every_message(check: Check, length: int) -> None:
    """Size is that of the payload that follows: one beyond every message is not waited for, nor allocated."""
    frontend = check.negotiated()
    frontend.send_bytes(struct.pack("<III", R.SET_FEATURES, VERSION, length) + bytes(64))
    closes(check, frontend)


@case("HOST-S4", HEADER, level=Level.SHOULD, marks=HOSTILE, protocol=ACK, rows=_lengths())
def a_payload_of_another_length(check: Check, row: tuple[FrontendRequest, int]) -> None:
    """A payload that is not the request's is refused, and never read as the next header."""
    request, length = row
    frontend = check.negotiated()
    # What a request carries before its feature is agreed upon is refused all the same.
    refuses(check, frontend, request, bytes(length))


@case(
    "HOST-S5",
    'vhost-user, "Front-end message types"',
    marks=HOSTILE,
    protocol=ACK,
    rows={"0": 0, "45": 45, "200": 200, "7fffffff": 0x7FFFFFFF, "ffffffff": 0xFFFFFFFF},
)
def a_request_that_does_not_exist(check: Check, request: int) -> None:
    """A request that is not known is refused."""
    refuses(check, check.negotiated(), request)


@case("HOST-S6", HEADER, marks=HOSTILE, rows={str(n): n for n in range(1, 12)})
def a_header_that_is_cut(check: Check, length: int) -> None:
    """A stream may end anywhere: the next front-end is served."""
    frontend = check.negotiated()
    frontend.send_bytes(struct.pack("<III", R.SET_FEATURES, VERSION, 8)[:length])
    frontend.close()


@case("HOST-S8", HEADER, marks=HOSTILE, rows={str(n): n for n in range(8)})
def a_payload_that_is_cut(check: Check, length: int) -> None:
    """A stream may end anywhere, in the middle of a payload too."""
    frontend = check.negotiated()
    frontend.send_bytes(struct.pack("<III", R.SET_FEATURES, VERSION, 8) + bytes(length))
    frontend.close()


@case("HOST-S9", HEADER, marks=HOSTILE)
def a_header_byte_by_byte(check: Check) -> None:
    """A stream has no borders: a message that comes byte by byte is a message."""
    frontend = check.negotiated()
    for byte in struct.pack("<III", R.GET_FEATURES, VERSION, 0):
        frontend.send_bytes(bytes([byte]))
    frame = frontend.reply(R.GET_FEATURES)
    check.equal(frame.payload, u64(check.offered), "the features,")


@case("HOST-S10", HEADER, marks=HOSTILE, rows={"2": 2, "10": 10, "200": 200})
def many_messages_in_one_write(check: Check, count: int) -> None:
    """A stream has no borders: each of many messages in one write is answered, in order."""
    frontend = check.negotiated()
    frontend.send_bytes(struct.pack("<III", R.GET_FEATURES, VERSION, 0) * count)
    for _ in range(count):
        check.equal(frontend.reply(R.GET_FEATURES).payload, u64(check.offered), "the features,")


@case("HOST-S14", HEADER, marks=HOSTILE, timeout=30)
def replies_that_nobody_reads(check: Check) -> None:
    """A front-end that never reads costs no other front-end its service."""
    frontend = check.negotiated()
    frontend.timeout = 0.5
    with contextlib.suppress(DeviceGone, DeviceTimeout):
        for _ in range(200):
            frontend.send_bytes(struct.pack("<III", R.GET_FEATURES, VERSION, 0) * 100)
    frontend.close()


FREE = {
    R.GET_FEATURES: b"",
    R.SET_OWNER: b"",
    R.GET_PROTOCOL_FEATURES: b"",
    R.GET_QUEUE_NUM: b"",
    R.SET_VRING_NUM: state(0, 64),
    R.SET_VRING_BASE: state(0, 0),
    R.SET_VRING_ENABLE: state(0, 0),
    R.GET_VRING_BASE: state(0, 0),
    R.SET_VRING_ADDR: addr(0, 0, 0, 0),
    R.GET_CONFIG: config(0, 8),
    R.SET_CONFIG: config(32, 1),
    R.RESET_OWNER: b"",
    R.SET_FEATURES: u64(0),
    R.GET_MAX_MEM_SLOTS: b"",
    R.GET_STATUS: b"",
    R.SET_STATUS: u64(1),
}


@case(
    "HOST-S20",
    'vhost-user, "Communication"',
    marks=[Mark.HOSTILE, Mark.PROC],
    rows={f"{_name(request)}.{count}": (request, count) for request in FREE for count in (1, 8, 33)},
)
def descriptors_with_a_message_that_takes_none(check: Check, row: tuple[FrontendRequest, int]) -> None:
    """Descriptors that a message does not take are closed."""
    request, count = row
    frontend = check.negotiated()
    with descriptor("eventfd") as number:
        attempt(frontend, request, FREE[request], [number] * count)
    frontend.close()


@case(
    "HOST-S24",
    'vhost-user, "Front-end message types"',
    marks=HOSTILE,
    protocol=ACK,
    rows={
        "mem-table.none": (R.SET_MEM_TABLE, table((0, 4096, 0, 0)), 0),
        "mem-table.two-for-one": (R.SET_MEM_TABLE, table((0, 4096, 0, 0)), 2),
        "mem-table.one-for-two": (R.SET_MEM_TABLE, table((0, 4096, 0, 0), (8192, 4096, 8192, 0)), 1),
        "add-mem-reg.none": (R.ADD_MEM_REG, single(0, 4096, 0), 0),
        "add-mem-reg.two": (R.ADD_MEM_REG, single(0, 4096, 0), 2),
        "kick.none": (R.SET_VRING_KICK, u64(0), 0),
        "kick.two": (R.SET_VRING_KICK, u64(0), 2),
        "call.none": (R.SET_VRING_CALL, u64(0), 0),
        "call.two": (R.SET_VRING_CALL, u64(0), 2),
        "err.none": (R.SET_VRING_ERR, u64(0), 0),
        "err.two": (R.SET_VRING_ERR, u64(0), 2),
        "backend-req.none": (R.SET_BACKEND_REQ_FD, b"", 0),
        "backend-req.two": (R.SET_BACKEND_REQ_FD, b"", 2),
    },
)
def too_few_or_too_many_descriptors(check: Check, row: tuple[FrontendRequest, bytes, int]) -> None:
    """A message comes with as many descriptors as it says: else it is refused, and all are closed."""
    request, payload, count = row
    frontend = check.negotiated()
    with descriptor("memory" if "MEM" in request.name else "eventfd") as number:
        refuses(check, frontend, request, payload, [number] * count)


@case("HOST-S30", 'vhost-user, "Communication"', marks=[Mark.HOSTILE, Mark.PROC],
      rows={"64": 64, "128": 128, "253": 253})  # fmt: skip
def more_descriptors_than_any_message_has(check: Check, count: int) -> None:
    """However many descriptors come, none stays."""
    frontend = check.negotiated()
    with descriptor("eventfd") as number:
        attempt(frontend, R.SET_OWNER, b"", [number] * count)
    frontend.close()


@case(
    "HOST-S37",
    'vhost-user, "SET_VRING_KICK"',
    level=Level.SHOULD,
    marks=HOSTILE,
    protocol=ProtocolFeature.REPLY_ACK,
    rows={f"{_name(request)}.{kind}": (request, kind)
          for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR) for kind in KINDS},
)  # fmt: skip
def a_descriptor_that_is_no_eventfd(check: Check, row: tuple[FrontendRequest, str]) -> None:
    """Whatever comes in an eventfd's place: it is refused or used, and costs nobody anything."""
    request, kind = row
    with check.guest() as guest:
        with descriptor(kind) as number:
            word = attempt(guest.frontend, request, u64(check.target.work_ring), [number])
        check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)


@case(
    "HOST-S39",
    'vhost-user, "ADD_MEM_REG"',
    level=Level.SHOULD,
    marks=HOSTILE,
    protocol=ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS,
    rows={kind: kind for kind in KINDS if kind not in {"memory", "zero"}},
)
def memory_that_is_none(check: Check, kind: str) -> None:
    """Memory is mapped from a file that can be mapped: anything else is refused."""
    frontend = check.negotiated()
    with descriptor(kind) as number:
        refuses(check, frontend, R.ADD_MEM_REG, single(0x4000_0000, 1 << 20, 0x4000_0000), [number])


@case(
    "HOST-S120",
    'vhost-user, "Back-end communication"',
    marks=HOSTILE,
    protocol=ACK | ProtocolFeature.BACKEND_REQ,
    level=Level.SHOULD,
    rows={kind: kind for kind in KINDS},
)
def a_back_end_channel_of_any_kind(check: Check, kind: str) -> None:
    """The back-end channel is a socket: whatever else comes is refused or never waited for."""
    frontend = check.negotiated()
    with descriptor(kind) as number:
        word = attempt(frontend, R.SET_BACKEND_REQ_FD, b"", [number])
    check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)


@case("HOST-S13", 'vhost-user, "VHOST_USER_PROTOCOL_F_REPLY_ACK"', marks=HOSTILE)
def an_answer_asked_for_without_the_feature(check: Check) -> None:
    """need_reply means nothing where REPLY_ACK was not negotiated: the next message is answered as ever."""
    frontend = check.negotiated(protocol=ProtocolFeature.MQ)
    frontend.send(R.SET_FEATURES, u64(frontend.features), flags=VERSION | FLAG_NEED_REPLY)
    check.answers(frontend)
