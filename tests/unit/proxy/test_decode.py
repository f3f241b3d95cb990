"""proxy/decode: every message of the document has words, and no bytes at all make it fail."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.proxy import payload_of
from vhostd.protocol.messages import U64, MemRegion, MemTable, VringAddr, VringState
from vhostd.protocol.rules import BACKEND_RULES, RULES, ReplyKind
from vhostd.protocol.wire import encode
from vhostd.proxy import decode
from vhostd.proxy.decode import View
from vhostd.proxy.output import words
from vhostd.proxy.record import Channel
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import DeviceId, Feature, Status

VIEWS = [View(), View(DeviceId.BLOCK, Feature.RING_PACKED), View(DeviceId.NET, Feature.VERSION_1)]
EVERY = [(Channel.MAIN, code, rule) for code, rule in RULES.items()]
EVERY += [(Channel.BACKEND, code, rule) for code, rule in BACKEND_RULES.items()]
IDS = [code.name for _, code, _ in EVERY]


@pytest.mark.parametrize(("channel", "code", "rule"), EVERY, ids=IDS)
@pytest.mark.parametrize("view", VIEWS, ids=["unknown", "block", "net"])
def test_every_request_and_reply_has_words(channel, code, rule, view):
    """vhost-user, "Front-end message types", "Back-end message types": what the document lays out is decoded."""
    for seed in range(20):
        payload = payload_of(rule.payload, seed)
        fields, problem = decode.request(channel, int(code), payload, view)
        assert not problem
        assert bool(fields) == bool(payload) or code.name in {"CREATE_CRYPTO_SESSION"}, "a payload shows nothing"
        answer = payload_of(U64 if rule.reply is ReplyKind.ACK else rule.answer, seed)
        fields, problem = decode.reply(channel, int(code), answer, view)
        assert not problem
        assert bool(fields) == bool(answer) or code.name in {"CREATE_CRYPTO_SESSION", "GET_SHARED_OBJECT"}
        json.dumps(fields)
        assert words(fields).isprintable()


@given(
    channel=st.sampled_from(Channel),
    code=st.one_of(st.integers(0, 50), st.integers(0, (1 << 32) - 1)),
    payload=st.one_of(st.binary(max_size=300), st.integers(0, 60).map(lambda n: bytes([255]) * n)),
    view=st.sampled_from(VIEWS),
    is_reply=st.booleans(),
)
def test_no_bytes_make_it_fail(channel, code, payload, view, is_reply):
    """A hostile end's payload is shown or said not to be one; nothing is raised, and JSON takes it."""
    read = decode.reply if is_reply else decode.request
    fields, problem = read(channel, code, payload, view)
    assert isinstance(problem, str)
    json.dumps(fields)
    words(fields)


def shown(code, message, view=VIEWS[0], read=decode.request):
    fields, problem = read(Channel.MAIN, int(code), message if isinstance(message, bytes) else encode(message), view)
    assert not problem
    return words(fields)


def test_what_is_named_is_named():
    R = FrontendRequest  # noqa: N806
    u64 = lambda value: struct.pack("<Q", value)  # noqa: E731
    block, packed = View(DeviceId.BLOCK), View(DeviceId.BLOCK, Feature.RING_PACKED)
    assert shown(R.SET_FEATURES, u64(1 << 32 | 1 << 9 | 1 << 44), block) == "features=FLUSH|VERSION_1|0x100000000000"
    assert shown(R.SET_FEATURES, u64(1 << 9), View(DeviceId.NET)) == "features=GUEST_ECN"
    assert shown(R.SET_FEATURES, u64(1 << 9)) == "features=0x200"
    assert shown(R.SET_PROTOCOL_FEATURES, u64(ProtocolFeature.MQ | 1 << 40)) == "protocol_features=MQ|0x10000000000"
    assert shown(R.SET_STATUS, u64(Status.DRIVER | Status.FAILED)) == "status=DRIVER|FAILED"
    assert shown(R.SET_VRING_BASE, VringState(1, 0x80008000), packed) == (
        "vring=1 avail_idx=0 avail_wrap=1 used_idx=0 used_wrap=1"
    )
    assert shown(R.SET_VRING_BASE, VringState(1, 7), block) == "vring=1 base=7"
    assert shown(R.SET_VRING_ENABLE, VringState(2, 0)) == "vring=2 enable=off"
    assert shown(R.SET_VRING_ADDR, VringAddr(0, 3, 0x1000, 0x3000, 0x2000, 0x40)) == (
        "vring=0 flags=LOG|0x2 desc=0x1000 used=0x3000 avail=0x2000 log=0x40"
    )
    assert shown(R.SET_MEM_TABLE, MemTable((MemRegion(0, 1 << 31, 0x7F0000000000, 0),))) == (
        "regions=[gpa=0x0 length=2GiB uva=0x7f0000000000 offset=0x0]"
    )
    assert shown(R.SEND_RARP, bytes.fromhex("525400123456") + bytes(2)) == "mac=52:54:00:12:34:56"
    assert shown(R.SET_OWNER, u64(0), read=decode.reply) == "result=ok"
    assert shown(R.SET_OWNER, u64(22), read=decode.reply) == "result=failed (0x16)"


def test_configuration_space_by_fields():
    """5.2.4, 5.1.4: whole fields by name, whatever part of the space was read; the rest in hex."""
    space = struct.pack("<QIIHBBI", 32768, 0, 126, 16, 4, 63, 512) + struct.pack("<BBHI", 3, 0, 1, 8) + b"\1"
    config = struct.pack("<III", 0, len(space), 0) + space
    assert shown(FrontendRequest.GET_CONFIG, config, View(DeviceId.BLOCK), decode.reply) == (
        f"offset=0 size={len(space)} flags=WRITABLE config={{capacity=16MiB size_max=0 seg_max=126 geometry=16/4/63 "
        "blk_size=512 topology=physical 2^3, alignment 0, min 1, opt 8 writeback=on}"
    )
    config = struct.pack("<III", 0, 12, 1) + bytes.fromhex("525400123456") + struct.pack("<HHH", 1, 2, 1500)
    assert shown(FrontendRequest.GET_CONFIG, config, View(DeviceId.NET), decode.reply) == (
        "offset=0 size=12 flags=MIGRATION config={mac=52:54:00:12:34:56 status=LINK_UP max_virtqueue_pairs=2 mtu=1500}"
    )
    config = struct.pack("<III", 32, 2, 0) + b"\0\5"
    assert shown(FrontendRequest.SET_CONFIG, config, View(DeviceId.BLOCK)) == (
        "offset=32 size=2 flags=WRITABLE config={writeback=off bytes=0005}"
    )
    assert "config={bytes=0005}" in shown(FrontendRequest.SET_CONFIG, config)


def test_post_copy_answers_the_table_with_a_table():
    """vhost-user, "SET_MEM_TABLE": in post-copy the reply is where the back-end has mapped each region."""
    table = encode(MemTable((MemRegion(0, 4096, 0x1000, 0),)))
    assert "uva=0x1000" in shown(FrontendRequest.SET_MEM_TABLE, table, read=decode.reply)
