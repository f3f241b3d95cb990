"""The front-end's end: requests out, replies in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.errors import LocalProtocolError, RemoteProtocolError
from vhostd.protocol import messages as m
from vhostd.protocol import wire
from vhostd.protocol.framing import Frame
from vhostd.protocol.frontend_session import FrontendSession
from vhostd.protocol.rules import BACKEND_RULES, RULES, ReplyKind
from vhostd.spec import vhost_user as spec
from vhostd.spec.vhost_user import BackendRequest as B
from vhostd.spec.vhost_user import FrontendRequest as R
from vhostd.spec.vhost_user import ProtocolFeature as P

from .peer import REGION, null_fds

SAMPLES = {
    m.Empty: m.Empty(),
    m.U64: m.U64(P.REPLY_ACK),  # which SET_PROTOCOL_FEATURES then sets
    m.VringState: m.VringState(1, 0),
    m.VringAddr: m.VringAddr(0, 0, 0, 0, 0, 0),
    m.VringFd: m.VringFd(0, no_fd=True),
    m.MemTable: m.MemTable((REGION,)),
    m.SingleRegion: m.SingleRegion(REGION),
    m.Log: m.Log(1, 2),
    m.Iotlb: m.Iotlb(1, 2, 3, 3, 2),
    m.Config: m.Config(0, 4, 0, b"abcd"),
    m.VringArea: m.VringArea(0, 4096, 0),
    m.Inflight: m.Inflight(0, 0, 1, 128),
    m.SharedObject: m.SharedObject(bytes(16)),
    m.DeviceStateTransfer: m.DeviceStateTransfer(0, 0),
    m.ShmemConfig: m.ShmemConfig(0, (0,) * 256),
    m.ShmemMap: m.ShmemMap(0, 0, 0, 4096, 1),
    m.Opaque: m.Opaque(b"session"),
}
REPLY = spec.VERSION | spec.FLAG_REPLY
ALL = P((1 << 23) - 1)


def session(features=ALL):
    front = FrontendSession()
    front.send(R.SET_PROTOCOL_FEATURES, m.U64(features), need_reply=False)
    return front


def frame_of(out, fds=()):
    request, flags, size = wire.parse_header(out.data[:12])
    assert len(out.data) == 12 + size
    return Frame(request, flags, out.data[12:], fds)


@pytest.mark.parametrize("request_", RULES, ids=lambda r: r.name)
def test_each_request_goes_out_and_its_reply_comes_in(request_):
    """vhost-user, "Communication": a request with its own reply awaits that, any other one an acknowledgement."""
    rule = RULES[request_]
    front = session()
    out = front.send(request_, SAMPLES[rule.payload], tuple(range(rule.fds[0])))
    frame = frame_of(out)
    assert frame.need_reply
    assert wire.decode(frame.request, frame.payload) == SAMPLES[rule.payload]
    assert front.awaited == 1
    own = rule.reply is not ReplyKind.ACK
    answer = SAMPLES[rule.answer] if own else m.U64(0)
    got = front.receive(Frame(request_, REPLY, wire.encode(answer)))
    assert (got.message, got.is_ack, got.failed) == (answer, not own, False)
    assert front.awaited == 0


@pytest.mark.parametrize("request_", sorted(set(RULES) - {R.SET_PROTOCOL_FEATURES}), ids=lambda r: r.name)
def test_without_reply_ack_only_own_replies_are_awaited(request_):
    """REPLY_ACK not negotiated: nothing is awaited but a request's own reply, need_reply or not."""
    rule = RULES[request_]
    front = session(P(0))
    front.send(request_, SAMPLES[rule.payload], tuple(range(rule.fds[0])), need_reply=True)
    assert front.awaited == (rule.reply is ReplyKind.VALUE)


def test_replies_come_in_the_order_of_their_requests():
    """Several requests may be under way."""
    front = session()
    front.send(R.GET_FEATURES)
    front.send(R.SET_OWNER)
    front.send(R.GET_VRING_BASE, m.VringState(1, 0))
    assert front.receive(Frame(1, REPLY, bytes(8))).message == m.U64(0)
    failed = front.receive(Frame(3, REPLY, b"\5" + bytes(7)))
    assert failed.failed
    assert failed.is_ack
    assert front.receive(Frame(11, REPLY, wire.encode(m.VringState(1, 9)))).message == m.VringState(1, 9)


CONFIG = m.Config(0, 4, 0, b"abcd")


@pytest.mark.parametrize(
    ("request_", "message", "frame"),
    [
        (R.GET_FEATURES, None, Frame(15, REPLY, bytes(8))),
        (R.GET_FEATURES, None, Frame(1, spec.VERSION, bytes(8))),
        (R.GET_FEATURES, None, Frame(1, 0x6, bytes(8))),
        (R.GET_FEATURES, None, Frame(1, REPLY | 0x10, bytes(8))),
        (R.GET_FEATURES, None, Frame(1, REPLY, bytes(7))),
        (R.GET_FEATURES, None, Frame(1, REPLY, b"")),
        (R.SET_OWNER, None, Frame(3, REPLY, bytes(4))),
        (R.SET_OWNER, None, Frame(3, REPLY, b"")),
        (R.GET_VRING_BASE, m.VringState(1, 0), Frame(11, REPLY, wire.encode(m.VringState(0, 0)))),
        (R.GET_CONFIG, CONFIG, Frame(24, REPLY, wire.encode(m.Config(0, 3, 0, b"abc")))),
        (R.GET_CONFIG, CONFIG, Frame(24, REPLY, wire.encode(m.Config(1, 4, 0, b"abcd")))),
        (R.GET_INFLIGHT_FD, m.Inflight(0, 0, 1, 128), Frame(31, REPLY, bytes(24))),
    ],
    ids=lambda v: repr(v)[:60],
)
def test_a_wrong_reply_is_fatal(request_, message, frame):
    """ "If front-end ... receives a wrong reply it will close the connection": id, flags, length, content."""
    front = session()
    front.send(request_, message)
    with pytest.raises(RemoteProtocolError, match="reply to") as caught:
        front.receive(frame)
    assert caught.value.fatal


def test_a_reply_with_descriptors_that_has_none_is_fatal():
    """Only four replies carry a descriptor."""
    front = session()
    front.send(R.GET_FEATURES)
    frame = Frame(1, REPLY, bytes(8), null_fds(1))
    with pytest.raises(RemoteProtocolError, match="1 fd"):
        front.receive(frame)
    frame.close_fds()
    front = session()
    front.send(R.GET_INFLIGHT_FD, m.Inflight(0, 0, 1, 128), length=24)
    frame = Frame(31, REPLY, bytes(24), null_fds(1))
    assert front.receive(frame).fds == frame.fds
    frame.close_fds()


def test_a_reply_that_nobody_awaits_is_fatal():
    """A back-end speaks on this socket only when it is asked."""
    with pytest.raises(RemoteProtocolError) as caught:
        FrontendSession().receive(Frame(1, REPLY, bytes(8)))
    assert caught.value.fatal


def test_a_reply_may_keep_need_reply():
    """The reference implementation answers in the request's own header."""
    front = session()
    front.send(R.SET_OWNER)
    assert not front.receive(Frame(3, REPLY | spec.FLAG_NEED_REPLY, bytes(8))).failed


def test_get_config_that_failed():
    """GET_CONFIG: "uses zero length of payload to indicate an error"."""
    front = session()
    front.send(R.GET_CONFIG, CONFIG)
    assert front.receive(Frame(24, REPLY, b"")).failed


def test_what_a_request_cannot_have_is_our_own_mistake():
    """A payload of another request, too many descriptors, a length it cannot have."""
    front = session()
    for request, message, fds in (
        (R.SET_FEATURES, None, ()),
        (R.GET_FEATURES, m.U64(1), ()),
        (R.SET_OWNER, None, (1,)),
        (R.SET_MEM_TABLE, m.MemTable((REGION,)), (1,) * 9),
    ):
        with pytest.raises(LocalProtocolError):
            front.send(request, message, fds)
    with pytest.raises(LocalProtocolError):
        front.send(R.SET_FEATURES, m.U64(1), length=16)
    assert front.awaited == 0


@pytest.mark.parametrize("request_", BACKEND_RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("need_reply", [False, True])
def test_each_request_of_the_back_end(request_, need_reply):
    """ "Back-end message types": each comes in, and is answered when it asks or has its own reply."""
    rule = BACKEND_RULES[request_]
    front = session()
    fds = null_fds(rule.fds[-1])
    flags = spec.VERSION | (spec.FLAG_NEED_REPLY if need_reply else 0)
    frame = Frame(request_, flags, wire.encode(SAMPLES[rule.payload]), fds)
    call = front.receive_call(frame)
    assert (call.request, call.message, call.fds) == (request_, SAMPLES[rule.payload], fds)
    reply = front.reply_to_call(call, 5)
    if need_reply or rule.reply is ReplyKind.VALUE:
        assert frame_of(reply) == Frame(request_, REPLY, wire.encode(m.U64(5)))
        assert wire.decode_backend_reply(request_, reply.data[12:]) == m.U64(5)
    else:
        assert reply is None
    frame.close_fds()


def test_a_request_of_the_back_end_needs_its_features():
    """ "This request should be sent only when ... has been successfully negotiated"; descriptors need SEND_FD."""
    for request, rule in BACKEND_RULES.items():
        for features in (P(0), ALL & ~P.BACKEND_REQ, ALL & ~rule.needs):
            frame = Frame(request, 1, wire.encode(SAMPLES[rule.payload]), null_fds(rule.fds[0]))
            with pytest.raises(RemoteProtocolError, match="negotiated"):
                session(features).receive_call(frame)
            frame.close_fds()
    frame = Frame(B.SHMEM_MAP, 1, wire.encode(SAMPLES[m.ShmemMap]), null_fds(1))
    with pytest.raises(RemoteProtocolError, match="BACKEND_SEND_FD"):
        session(ALL & ~P.BACKEND_SEND_FD).receive_call(frame)
    frame.close_fds()


@given(request=st.integers(0, 12), flags=st.integers(0, 31), payload=st.binary(max_size=50))
def test_random_frames_on_the_channel(request, flags, payload):
    """Whatever comes on the channel is a call or the peer's error."""
    try:
        call = session().receive_call(Frame(request, flags, payload))
    except RemoteProtocolError:
        return
    assert call.request == request


@given(request=st.integers(0, 50), flags=st.integers(0, 31), payload=st.binary(max_size=50))
def test_random_replies(request, flags, payload):
    """Whatever comes as a reply is an answer or the peer's error."""
    front = session()
    front.send(R.GET_FEATURES)
    try:
        answer = front.receive(Frame(request, flags, payload))
    except RemoteProtocolError as error:
        assert error.fatal
        return
    assert answer.request == request == R.GET_FEATURES
