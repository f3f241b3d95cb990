"""data/wireshark/vhost-user.lua: what tshark decodes is what the proxy says."""

import random
import re
import struct
import subprocess

import pytest

from tests.support import lua_tables
from tests.support.proxy import Kept, Proxy, payload_of
from vhostd.protocol.messages import U64
from vhostd.protocol.rules import BACKEND_RULES, RULES, ReplyKind
from vhostd.proxy.capture import Capture
from vhostd.proxy.conversation import Conversation
from vhostd.proxy.faults import Faults
from vhostd.proxy.output import as_object
from vhostd.proxy.record import Channel, Side
from vhostd.spec import blk
from vhostd.spec.virtio import DeviceId, Feature

UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
# Where a field of the proxy has another name in Wireshark, by what the message carries.
RENAMED = {
    "Config": {"offset": "config_offset", "size": "config_size", "flags": "config_flags"},
    "VringAddr": {"flags": "payload_flags"},
    "VringArea": {"flags": "payload_flags"},
    "ShmemMap": {"flags": "payload_flags"},
}
KINDS = {code.name: rule.payload.__name__ for code, rule in RULES.items()}
KINDS |= {f"BACKEND_{code.name}": rule.payload.__name__ for code, rule in BACKEND_RULES.items()}
COMMON = ["sender", "channel", "device", "connection", "number", "request", "code", "kind", "version", "flags", "size",
          "fds"]  # fmt: skip


def test_the_tables_are_those_of_the_specification():
    """`python -m tests.support.lua_tables` writes them anew."""
    text = lua_tables.LUA.read_text()
    assert text == lua_tables.with_tables(text)


def tshark(capture, *words):
    run = subprocess.run(
        ["tshark", "-X", f"lua_script:{lua_tables.LUA}", "-r", str(capture), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "Lua Error" not in run.stdout + run.stderr
    return run.stdout


def decoded(capture):
    """Of each packet, its fields: a name, and all the values it has."""
    names = sorted(set(re.findall(r'^field\("\w+", "(\w+)"', lua_tables.LUA.read_text(), re.MULTILINE)))
    names += ["config." + row[2] for rows in lua_tables.config_space.LAYOUTS.values() for row in rows]
    words = ["-T", "fields", "-E", "separator=\t", "-E", "aggregator=;", "-E", "occurrence=a"]
    for name in names:
        words += ["-e", f"vhostuser.{name}"]
    for line in tshark(capture, *words).splitlines():
        values = line.split("\t")
        yield {name: value.split(";") for name, value in zip(names, values, strict=True) if value}


def number(text):
    """What a length or an address of the proxy's is as a number."""
    unit = next((unit for unit in UNITS[:0:-1] if text.endswith(unit)), "B" if text.endswith("B") else "")
    return int(text.removesuffix(unit), 0) << 10 * UNITS.index(unit or "B")


def same(key, ours, theirs):
    """Whether a value of the proxy's is one of tshark's."""
    if isinstance(ours, int):
        return int(theirs, 0) == ours
    if re.fullmatch(r"0x[0-9a-f]+|\d+[KMGTPE]?i?B", ours) and re.fullmatch(r"0x[0-9a-f]+|\d+", theirs):
        return int(theirs, 0) == number(ours)
    if key == "data":  # the proxy shows the beginning
        return theirs.replace(":", "").startswith(ours.split(" ")[0])
    return theirs == ours


def compare(record, packet):
    """A message as the proxy's JSON has it, with the same one as tshark prints it."""
    assert packet["sender"] == [record["from"]]
    assert packet["channel"] == [record["channel"]]
    assert packet.get("device") == (record["device"] and [record["device"]])
    assert packet["request"] == [record["request"]]
    assert packet["kind"] == [record["kind"]]
    assert packet["flags"] == [record["flags"]]
    for key in ("connection", "code", "version", "size"):
        assert int(packet[key][0]) == record[key], key
    assert packet.get("number") == (record["number"] and [str(record["number"])])
    assert int(packet["fds"][0]) == len(record["fds"])
    kind = KINDS.get(record["request"])
    wanted = {}
    for key, value in record["fields"].items():
        if key == "config":
            for name, one in value.items():
                if name not in {"bytes", "geometry", "topology", "status", "writeback", "write_zeroes_may_unmap"}:
                    wanted["config." + name] = [number(one) // blk.SECTOR_LEN if name == "capacity" else one]
        elif key == "regions":
            for name in value[0] if value else ():
                wanted[name] = [region[name] for region in value]
        else:
            wanted["data" if key == "bytes" else RENAMED.get(kind, {}).get(key, key)] = [value]
    for key, values in wanted.items():
        theirs = packet.get(key, [])
        assert len(theirs) == len(values), (record, packet, key)
        assert all(same(key, ours, one) for ours, one in zip(values, theirs, strict=True)), (key, values, theirs)
    shown = set(packet) - set(wanted) - set(COMMON) - {"format"}
    assert {key for key in shown if not key.startswith("config.")} == set(), "tshark shows what the proxy does not"


class Captured(Kept):
    """Keeps it in a capture, too."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.file = path.open("wb", buffering=0)
        self._capture = Capture(self.file)

    def seen(self, record):
        super().seen(as_object(record))
        self._capture.seen(record)


@pytest.fixture
def kept(tmp_path):
    kept = Captured(tmp_path / "all.pcapng")
    with kept.file:
        yield kept


def say(talk, channel, sender, code, payload, flags):
    begun = talk.begin(channel, sender, int(code), flags)
    talk.end(begun, payload, ("eventfd",) * (code % 3))


@pytest.mark.parametrize("device", [None, DeviceId.BLOCK, DeviceId.NET])
def test_every_message_of_the_document(kept, device):
    """vhost-user, "Payload": each request and reply, with numbers of all sorts, is the same in both."""
    for seed, features in enumerate([0, Feature.RING_PACKED, 0xFFFFFFFFFFFFFFFF]):
        talk = Conversation(seed + 1, kept, Faults(), device)
        say(talk, Channel.MAIN, Side.FRONT_END, 2, struct.pack("<Q", features), 1)
        for channel, rules in ((Channel.MAIN, RULES), (Channel.BACKEND, BACKEND_RULES)):
            for code, rule in rules.items():
                asker = channel.asker
                say(talk, channel, asker, code, payload_of(rule.payload, 100 * seed + code), 9)
                answer = U64 if rule.reply is ReplyKind.ACK else rule.answer
                say(talk, channel, Side(1 - asker), code, payload_of(answer, 200 * seed + code), 5)
                if code == 2 and channel is Channel.MAIN:  # what was acknowledged stays
                    say(talk, Channel.MAIN, Side.FRONT_END, 2, struct.pack("<Q", features), 1)
    packets = list(decoded(kept.path))
    assert len(packets) == len(kept.records) > 300
    for record, packet in zip(kept.records, packets, strict=True):
        assert record["problem"] is None
        compare(record, packet)


def test_no_bytes_break_the_dissector(kept):
    """Random requests, lengths and payloads, and pieces that are no message: never an error of Lua's."""
    rng = random.Random(7)
    talk = Conversation(1, kept, Faults())
    for _ in range(600):
        channel, side = rng.choice(list(Channel)), rng.choice(list(Side))
        payload = rng.choice([rng.randbytes(rng.randrange(80)), bytes([255]) * rng.randrange(2200)])
        if rng.random() < 0.1:
            talk.raw(channel, side, rng.randbytes(rng.randrange(1, 40)), (), "bytes")
        else:
            say(talk, channel, side, rng.choice([rng.randrange(50), rng.getrandbits(32)]), payload, rng.getrandbits(32))
    text = tshark(kept.path, "-V")
    assert text.count("Seen by the proxy") == 600
    assert "Malformed Packet" not in text


def test_a_real_session(start, tmp_path):
    """A disk at work through the proxy: tshark's fields are the JSON's, message by message."""
    capture = tmp_path / "session.pcapng"
    disk = start()
    with Proxy(tmp_path / "proxy.sock", disk.socket, "--pcap", str(capture)) as proxy:
        disk.socket = proxy.socket
        with disk.session() as session:
            assert session.frontend.config(0, 60)
            session.stop()
        proxy.until(lambda records: any(r["event"] == "close" for r in records), "the connection did not end")
        assert proxy.stop() == 0
    records, packets = proxy.messages(), list(decoded(capture))
    assert len(records) == len(packets) > 30
    for record, packet in zip(records, packets, strict=True):
        compare(record, packet)
    assert any("SEG_MAX|BLK_SIZE" in packet.get("features", [""])[0] for packet in packets)
