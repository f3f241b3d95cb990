"""proxy/output, proxy/summary, proxy/capture: what people, programs and Wireshark are given."""

import io
import json
import re
import struct
from pathlib import Path

import pytest

from vhostd.errors import BackendError
from vhostd.protocol.wire import frame_bytes
from vhostd.proxy.capture import LINKTYPE, PSEUDO, Capture
from vhostd.proxy.output import JsonLines, Lines, as_object, duration
from vhostd.proxy.record import Channel, Event, Fault, Seen, Side
from vhostd.proxy.summary import Summary
from vhostd.spec.vhost_user import FrontendRequest
from vhostd.spec.virtio import DeviceId

GET = int(FrontendRequest.GET_FEATURES)


def message(**changes):
    """A request that came with two descriptors."""
    facts = {
        "time_ns": 1_700_000_000_123_456_789, "connection": 3, "channel": Channel.MAIN, "sender": Side.FRONT_END,
        "data": frame_bytes(GET, 9, b""), "number": 7, "request": "GET_FEATURES", "code": GET, "flags": 9,
        "fds": ("memfd:ram 1MiB", "eventfd"), "device": DeviceId.BLOCK,
    }  # fmt: skip
    return Seen(**facts | changes)


def line(record, *, colour=False):
    out = io.StringIO()
    Lines(out, colour=colour).seen(record)
    assert out.getvalue().count("\n") == 1
    return out.getvalue().rstrip("\n")


def test_a_line_for_people():
    assert line(message()) == ("    0.000000 3    #7 -> GET_FEATURES (needs a reply) fds: memfd:ram 1MiB, eventfd")
    reply = message(
        sender=Side.BACK_END, is_reply=True, flags=5, fds=(), took_ns=1_500_000, fields={"features": "FLUSH"},
        fault_words="delayed by 5 ms", notes=("odd",),
    )  # fmt: skip
    assert line(reply) == (
        "    0.000000 3    #7 <- GET_FEATURES reply after 1.5 ms features=FLUSH ** delayed by 5 ms [odd]"
    )
    raw = message(code=None, flags=None, request="", number=0, data=bytes(40), problem="bytes", fds=())
    assert line(raw) == f"    0.000000 3    #- -> 40 bytes [bytes] {'00' * 32} and 8 more"
    assert "\x1b[" in line(message(), colour=True)


def test_a_name_that_a_peer_chose_cannot_steer_the_terminal():
    """A memfd's name, and a path, are the front-end's words."""
    shown = line(message(fds=("memfd:\x1b[2J\nforged line 1MiB", "/tmp/\udcff")))
    assert shown.isprintable()
    assert "\\x1b[2J\\nforged" in shown


def test_json_has_the_same_keys_for_every_message():
    out = io.StringIO()
    lines = JsonLines(out)
    lines.seen(message())
    lines.seen(message(is_reply=True, took_ns=1500, fds=()))
    lines.seen(message(code=None, flags=None, request="", number=0, device=None))
    lines.event(Event(time_ns=10**9, connection=1, kind="open", text="x"))
    found = [json.loads(text) for text in out.getvalue().splitlines()]
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert [one["event"] for one in found] == ["message", "message", "bytes", "open"]
    assert found[0]["flags"] == "NEED_REPLY"
    assert (found[0]["version"], found[0]["from"], found[0]["channel"]) == (1, "front-end", "main")
    assert (found[1]["kind"], found[1]["took_us"]) == ("reply", 1.5)
    assert (found[2]["kind"], found[2]["number"], found[2]["code"]) == (None, None, None)


@pytest.mark.parametrize(
    ("time_ns", "text"), [(999, "1 us"), (1_000_000, "1.0 ms"), (2_500_000_000, "2.50 s"), (0, "0 us")]
)
def test_durations(time_ns, text):
    assert duration(time_ns) == text


def test_the_summary_counts_and_knows_the_slowest():
    summary = Summary()
    summary.event(Event(time_ns=0, connection=1, kind="open", text=""))
    for number in range(1, 10):
        summary.seen(message(number=number))
        summary.seen(message(number=number, sender=Side.BACK_END, is_reply=True, took_ns=number * 1000, fds=()))
    summary.seen(message(fault=Fault.DROP))
    found = summary.as_object()
    assert found["requests"] == {"GET_FEATURES": {"count": 10, "replies": 9, "mean_us": 5.0, "max_us": 9.0}}
    assert [one["number"] for one in found["slowest"]] == [9, 8, 7, 6, 5]
    assert (found["connections"], found["messages"], found["fds"], found["faults"]) == (1, 19, 20, 1)
    assert "slowest replies: GET_FEATURES 9 us (connection 3, #9)" in "\n".join(summary.lines())


def blocks(data):
    """The blocks of a pcapng file, as (type, body)."""
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, length - 4) == (length,)
        yield kind, data[8 : length - 4]
        data = data[length:]


def test_a_capture_is_pcapng():
    """The Internet-Draft's blocks: a section, an interface of our link type, a packet each."""
    out = io.BytesIO()
    capture = Capture(out)
    record = message(problem="it is odd")
    capture.seen(record)
    (section, head), (interface, described), (packet, body) = blocks(out.getvalue())
    assert (section, interface, packet) == (0x0A0D0D0A, 1, 6)
    assert struct.unpack_from("<IHH", head) == (0x1A2B3C4D, 1, 0)
    assert struct.unpack_from("<H", described) == (LINKTYPE,)
    _, high, low, captured, length = struct.unpack_from("<IIIII", body)
    assert high << 32 | low == record.time_ns
    assert captured == length == PSEUDO.size + len(record.data)
    assert PSEUDO.unpack_from(body, 20) == (1, 0, 0, 2, 0, 0, 2, 3, 7)
    assert body[20 + PSEUDO.size : 20 + length] == record.data
    assert b"fd 0: memfd:ram 1MiB; fd 1: eventfd; it is odd" in body


def test_a_capture_that_cannot_be_written_says_so():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(BackendError, match="No space left"):
        Capture(full)


def test_the_keys_are_those_of_the_document():
    """docs/proxy.md, "JSON": each key has its row, in order, and no row is of a key that is none."""
    text = (Path(__file__).parents[3] / "docs" / "proxy.md").read_text().partition("## JSON")[2].partition("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(as_object(message()))
