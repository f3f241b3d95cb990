"""Every request in every state, and random walks through all of them."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostd.errors import LocalProtocolError, RemoteProtocolError
from vhostd.protocol import actions as act
from vhostd.protocol import messages as m
from vhostd.protocol import vring as vr
from vhostd.protocol import wire
from vhostd.protocol.backend_session import BackendSession
from vhostd.protocol.framing import Frame
from vhostd.protocol.rules import RULES, SERVED, ReplyKind
from vhostd.spec import vhost_user as spec
from vhostd.spec.vhost_user import FrontendRequest as R
from vhostd.spec.vhost_user import ProtocolFeature as P

from .peer import ALL_PROTOCOL, FEATURES, REGION, REGION2, STATES, UVA, F, Peer, addr, null_fds, offer

SAMPLES = {
    R.GET_FEATURES: (m.Empty(), 0),
    R.SET_FEATURES: (m.U64(FEATURES | F.PROTOCOL_FEATURES), 0),
    R.SET_OWNER: (m.Empty(), 0),
    R.RESET_OWNER: (m.Empty(), 0),
    R.SET_MEM_TABLE: (m.MemTable((REGION, REGION2)), 2),
    R.SET_LOG_BASE: (m.Log(4096, 0), 1),
    R.SET_LOG_FD: (m.Empty(), 1),
    R.SET_VRING_NUM: (m.VringState(0, 128), 0),
    R.SET_VRING_ADDR: (addr(0, desc=UVA, avail=UVA + 0x8000, used=UVA + 0x10000), 0),
    R.SET_VRING_BASE: (m.VringState(0, 5), 0),
    R.GET_VRING_BASE: (m.VringState(0, 0), 0),
    R.SET_VRING_KICK: (m.VringFd(0), 1),
    R.SET_VRING_CALL: (m.VringFd(0), 1),
    R.SET_VRING_ERR: (m.VringFd(0), 1),
    R.GET_PROTOCOL_FEATURES: (m.Empty(), 0),
    R.SET_PROTOCOL_FEATURES: (m.U64(ALL_PROTOCOL), 0),
    R.GET_QUEUE_NUM: (m.Empty(), 0),
    R.SET_VRING_ENABLE: (m.VringState(0, 1), 0),
    R.SEND_RARP: (m.U64(0x0000_5634_1200_5452), 0),
    R.NET_SET_MTU: (m.U64(1500), 0),
    R.SET_BACKEND_REQ_FD: (m.Empty(), 1),
    R.IOTLB_MSG: (m.Iotlb(0, 4096, UVA, 3, 2), 0),
    R.SET_VRING_ENDIAN: (m.VringState(0, 0), 0),
    R.GET_CONFIG: (m.Config(0, 60, 0, bytes(60)), 0),
    R.SET_CONFIG: (m.Config(32, 1, 0, b"\1"), 0),
    R.CREATE_CRYPTO_SESSION: (m.Opaque(bytes(632)), 0),
    R.CLOSE_CRYPTO_SESSION: (m.U64(1), 0),
    R.POSTCOPY_ADVISE: (m.Empty(), 0),
    R.POSTCOPY_LISTEN: (m.Empty(), 0),
    R.POSTCOPY_END: (m.Empty(), 0),
    R.GET_INFLIGHT_FD: (m.Inflight(0, 0, 4, 128), 0),
    R.SET_INFLIGHT_FD: (m.Inflight(4096, 0, 4, 128), 1),
    R.GPU_SET_SOCKET: (m.Empty(), 1),
    R.RESET_DEVICE: (m.Empty(), 0),
    R.VRING_KICK: (m.VringState(0, 0), 0),
    R.GET_MAX_MEM_SLOTS: (m.Empty(), 0),
    R.ADD_MEM_REG: (m.SingleRegion(REGION2), 1),
    R.REM_MEM_REG: (m.SingleRegion(REGION), 0),
    R.SET_STATUS: (m.U64(0xF), 0),
    R.GET_STATUS: (m.Empty(), 0),
    R.GET_SHARED_OBJECT: (m.SharedObject(bytes(16)), 0),
    R.SET_DEVICE_STATE_FD: (m.DeviceStateTransfer(0, 0), 1),
    R.CHECK_DEVICE_STATE: (m.Empty(), 0),
    R.GET_SHMEM_CONFIG: (m.Empty(), 0),
}

ORDER = list(STATES)
# From which state on a good request of the table above is done; those that are not here never are.
DONE_FROM = {
    R.GET_FEATURES: "fresh",
    R.SET_FEATURES: "fresh",
    R.SET_OWNER: "fresh",
    R.RESET_OWNER: "fresh",
    R.SET_MEM_TABLE: "fresh",
    R.SET_VRING_NUM: "fresh",
    R.SET_VRING_ADDR: "configured",
    R.SET_VRING_BASE: "fresh",
    R.GET_VRING_BASE: "fresh",
    R.SET_VRING_KICK: "configured",
    R.SET_VRING_CALL: "fresh",
    R.SET_VRING_ERR: "fresh",
    R.GET_PROTOCOL_FEATURES: "fresh",
    R.SET_PROTOCOL_FEATURES: "fresh",
    R.GET_QUEUE_NUM: "fresh",
    R.SET_VRING_ENABLE: "fresh",
    R.SEND_RARP: "fresh",
    R.NET_SET_MTU: "fresh",
    R.SET_BACKEND_REQ_FD: "fresh",
    R.GET_CONFIG: "negotiated",
    R.SET_CONFIG: "negotiated",
    R.RESET_DEVICE: "fresh",
    R.GET_MAX_MEM_SLOTS: "negotiated",
    R.ADD_MEM_REG: "negotiated",
    R.REM_MEM_REG: "configured",
    R.SET_STATUS: "negotiated",
    R.GET_STATUS: "negotiated",
}
FROZEN_WHEN_STARTED = {R.SET_VRING_NUM, R.SET_VRING_BASE}


def expected(state, request, *, need_reply):
    """The table: "done", "refused" (an answer says no), or "closed"."""
    at = ORDER.index(state)
    started = at >= ORDER.index("started")
    first = DONE_FROM.get(request)
    if first is not None and at >= ORDER.index(first) and not (started and request in FROZEN_WHEN_STARTED):
        return "done"
    acks = need_reply and at >= ORDER.index("negotiated")
    return "refused" if acks and RULES[request].reply is not ReplyKind.VALUE else "closed"


def test_the_table_has_every_request():
    """All of 1 to 44 have a sample; all that is served is done somewhere, and nothing else is."""
    assert set(SAMPLES) == set(R)
    assert set(DONE_FROM) == {request for request, rule in RULES.items() if rule.served}
    assert set(BackendSession._handlers) == set(DONE_FROM)


@pytest.mark.parametrize("need_reply", [False, True], ids=["", "need_reply"])
@pytest.mark.parametrize("request_", R, ids=lambda r: r.name)
@pytest.mark.parametrize("state", STATES)
def test_each_request_in_each_state(state, request_, need_reply):
    """Rule 8 of the hostile list: every message is legal or refused in every state; a refused one changes nothing."""
    peer = STATES[state]()
    message, fds = SAMPLES[request_]
    ack = peer.send(request_, message, fds, need_reply=need_reply)
    assert ack.outcome == expected(state, request_, need_reply=need_reply), ack.error
    acks = bool(peer.session.protocol_features & P.REPLY_ACK)
    if ack.outcome == "done":
        own = RULES[request_].reply is ReplyKind.VALUE
        assert (ack.reply is not None) == (own or (need_reply and acks))
        if ack.reply and not own:
            assert ack.value == 0
    else:
        assert str(ack.error).startswith(request_.name)
        assert "(vhost-user" in str(ack.error) or "(virtio" in str(ack.error) or "share=on" in str(ack.error)
    if ack.outcome == "refused":
        assert ack.value != 0
    if ack.reply:
        assert wire.parse_header(ack.reply.data[:12]) == (request_, 0x5, len(ack.payload))


@pytest.mark.parametrize("request_", R, ids=lambda r: r.name)
@pytest.mark.parametrize("state", STATES)
def test_each_wrong_length_and_fd_count_in_each_state(state, request_):
    """S4, S20 to S29: a length or a number of descriptors that is not the request's is never done."""
    message, fds = SAMPLES[request_]
    good = wire.encode(message)
    rule = RULES[request_]
    peer = STATES[state]()
    for payload in (b"", good[:-1], good + b"\0", good + bytes(4), bytes(2056)):
        if len(payload) not in rule.payload.LENGTHS and (rule.older is None or len(payload) not in rule.older.LENGTHS):
            assert peer.send(request_, payload=payload, fds=fds, need_reply=True).outcome != "done"
    for count in {0, 1, 2, 3, 8, 9, 16, 33} - set(rule.fds):
        assert peer.send(request_, message, count, need_reply=True).outcome != "done"


def test_the_vring_table_is_whole():
    """ "Ring states": every event has its outcome in both states; only what freezes geometry is refused."""
    assert set(vr.TABLE) == {(state, event) for state in vr.State for event in vr.Event}
    refused = {key for key, to in vr.TABLE.items() if to is None}
    assert refused == {(vr.State.STARTED, event) for event in (vr.Event.NUM, vr.Event.ADDR, vr.Event.BASE)}


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("state", vr.State)
@pytest.mark.parametrize("event", vr.Event)
def test_each_event_of_a_ring(state, event, enabled):
    """ "Rings have two independent states": no event but a reset and ENABLE touches the second."""
    ring = vr.Vring(0, num=8, addr=addr(), base=3, kick_set=True, enabled=enabled, state=state)
    if not ring.allows(event):
        return
    before = dataclasses.replace(ring)
    ring.move(event)
    if event is vr.Event.RESET:
        assert ring == vr.Vring(0)
    elif event is vr.Event.STOP:
        assert ring == dataclasses.replace(before, state=vr.State.STOPPED, kick_set=False)
    elif event is vr.Event.KICK:
        assert ring == dataclasses.replace(before, state=vr.State.STARTED, kick_set=True, was_enabled=enabled)
    else:
        assert ring == before


INDEX = st.sampled_from([0, 1, 3, 4, 255, 256, 2**32 - 1])
WORD = st.sampled_from([0, 1, 2, 3, 16, 256, 32768, 0xFFFF, 0x10000, 2**32 - 1]) | st.integers(0, 2**32 - 1)
PLACE = st.sampled_from([0, UVA, UVA + 1, UVA + 0x8000, UVA + 0x10000, 2**64 - 16]) | st.integers(0, 2**64 - 1)
SPAN = st.sampled_from([0, 1, 4096, 0x100000, 2**63, 2**64 - 1])
GPA = st.sampled_from([0, 0x1000, 0x200000, 2**64 - 4096])
A_REGION = st.sampled_from([REGION, REGION2]) | st.builds(m.MemRegion, GPA, SPAN, PLACE, PLACE)
FEATURE_SETS = [0, int(FEATURES), int(FEATURES | F.PROTOCOL_FEATURES), int(F.EVENT_IDX), 1 << 63, 2**64 - 1]
ANY = {
    m.Empty: st.just(m.Empty()),
    m.U64: st.builds(m.U64, st.sampled_from([*FEATURE_SETS, int(ALL_PROTOCOL), 8, 15, 64, 1500, 2**64 - 1])),
    m.VringState: st.builds(m.VringState, INDEX, WORD),
    m.VringAddr: st.builds(m.VringAddr, INDEX, st.sampled_from([0, 0, 0, 1, 2]), PLACE, PLACE, PLACE, PLACE),
    m.VringFd: st.builds(m.VringFd, st.sampled_from([0, 1, 3, 4, 255]), st.booleans()),
    m.MemTable: st.builds(m.MemTable, st.lists(A_REGION, max_size=4).map(tuple)),
    m.SingleRegion: st.builds(m.SingleRegion, A_REGION),
    m.Config: st.binary(max_size=70).flatmap(
        lambda b: st.builds(m.Config, WORD, st.just(len(b)), st.sampled_from([0, 1, 2]), st.just(b))
    ),
}
GOOD = st.sampled_from(sorted(SAMPLES)).map(lambda r: (r, *SAMPLES[r], None))
ODD = st.sampled_from(sorted(SAMPLES)).flatmap(
    lambda r: st.tuples(
        st.just(r), ANY.get(RULES[r].payload, st.just(SAMPLES[r][0])), st.integers(0, 3), st.none() | st.integers(0, 31)
    )
)
NOISE = st.tuples(st.integers(0, 2**32 - 1) | st.integers(0, 50), st.binary(max_size=300), st.integers(0, 9), st.none())


@given(start=st.sampled_from(ORDER), walk=st.lists(st.one_of(GOOD, ODD, NOISE) | GOOD, max_size=30), asks=st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_walks(start, walk, asks):
    """S166: any stream of messages is done or refused; what is refused changes nothing; no descriptor is left open."""
    peer = STATES[start]()
    for request, what, fds, flags in walk:
        how = {"payload": what} if isinstance(what, bytes) else {"message": what}
        if flags is not None:
            how["flags"] = flags
        ack = peer.send(request, fds=fds, need_reply=asks, **how)
        if ack.error:
            assert isinstance(ack.error, RemoteProtocolError)
        for ring in peer.session.vrings:
            if ring.started:
                assert ring.configured
                assert ring.kick_set
                assert peer.session.features_set
        assert len(peer.session.regions) <= max(8, peer.session.offer.mem_slots)
        for region in peer.session.regions:
            assert region.length > 0
            assert region.gpa + region.length <= 2**64


def test_only_what_was_asked_for_is_done():
    """`done` takes the action that `receive` returned last, once, with the value it asks for."""
    session = STATES["started"]().session
    with pytest.raises(LocalProtocolError):
        session.done(act.Nothing())
    frame = Frame(R.GET_VRING_BASE, spec.VERSION, wire.encode(m.VringState(0, 0)))
    stop = session.receive(frame)
    assert stop == act.StopRing(0)
    for value in (None, -1, 0x10000, "7"):
        with pytest.raises(LocalProtocolError):
            session.done(stop, value)
    assert session.vrings[0].started
    assert session.done(stop, 9).data[12:] == wire.encode(m.VringState(0, 9))
    with pytest.raises(LocalProtocolError):
        session.done(stop, 9)
    config = session.receive(Frame(R.GET_CONFIG, spec.VERSION, wire.encode(m.Config(0, 4, 0, bytes(4)))))
    with pytest.raises(LocalProtocolError):
        session.done(config, b"abc")
    owner = session.receive(Frame(R.SET_OWNER, spec.VERSION))
    with pytest.raises(LocalProtocolError):
        session.done(owner, 1)


def test_an_error_of_the_host_refuses_as_well():
    """What the host cannot do is refused like a broken rule: acknowledged, or the connection closes."""
    peer = STATES["configured"]()
    error = RemoteProtocolError("the descriptor is no eventfd")
    for need_reply in (True, False):
        flags = spec.VERSION | (spec.FLAG_NEED_REPLY if need_reply else 0)
        frame = Frame(R.SET_VRING_KICK, flags, wire.encode(m.VringFd(0)), null_fds(1))
        peer.session.receive(frame)
        if need_reply:
            assert peer.session.refuse(frame, error).data[12:] != bytes(8)
        else:
            with pytest.raises(RemoteProtocolError):
                peer.session.refuse(frame, error)
        frame.close_fds()
        assert not peer.session.vrings[0].started
    frame = Frame(R.GET_CONFIG, spec.VERSION, wire.encode(m.Config(0, 4, 0, bytes(4))))
    peer.session.receive(frame)
    assert peer.session.refuse(frame, error).data == wire.frame_bytes(R.GET_CONFIG, 5, b"")


@pytest.mark.parametrize("feature", sorted(set(P) - set(SERVED)), ids=lambda f: f.name)
def test_what_is_not_served_cannot_be_offered(feature):
    """QEMU acknowledges INBAND_NOTIFICATIONS and XEN_MMAP without having them; the rest is not built."""
    with pytest.raises(LocalProtocolError, match=feature.name):
        offer(protocol_features=ALL_PROTOCOL | feature)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol_features": P(1 << 30)},
        {"features": int(F.LOG_ALL)},
        {"features": int(F.ACCESS_PLATFORM)},
        {"features": int(F.RING_PACKED)},
        {"rings": 0},
        {"rings": 257},
        {"config_len": 257},
    ],
    ids=repr,
)
def test_an_offer_that_cannot_be_kept(changes):
    """Each check that Offer's docstring lists."""
    with pytest.raises(LocalProtocolError):
        offer(**changes)


def test_without_protocol_features_there_are_none_to_ask_for():
    """GET_PROTOCOL_FEATURES: "Only legal if feature bit PROTOCOL_FEATURES is present in GET_FEATURES"."""
    peer = Peer(protocol_features=P(0))
    assert not peer.ok(R.GET_FEATURES).value & F.PROTOCOL_FEATURES
    assert peer.send(R.GET_PROTOCOL_FEATURES).outcome == "closed"
    assert peer.send(R.SET_PROTOCOL_FEATURES, m.U64(0)).outcome == "closed"
    assert peer.send(R.SET_VRING_ENABLE, m.VringState(0, 1)).outcome == "closed"
    assert peer.send(R.SET_FEATURES, m.U64(F.PROTOCOL_FEATURES)).outcome == "closed"


@pytest.mark.parametrize(
    "request_", [r for r, rule in RULES.items() if rule.served and rule.needs], ids=lambda r: r.name
)
def test_a_request_needs_its_protocol_feature(request_):
    """Each row's `needs`: offered where the document asks no more, negotiated elsewhere."""
    message, fds = SAMPLES[request_]
    needs, by_offer = RULES[request_].needs, RULES[request_].offered
    without = Peer(protocol_features=ALL_PROTOCOL & ~needs).negotiate(ALL_PROTOCOL & ~needs).memory()
    refused = without.send(request_, message, fds, need_reply=True)
    assert refused.outcome != "done"
    assert needs.name in str(refused.error)
    offered_only = Peer().negotiate(ALL_PROTOCOL & ~needs).memory()
    assert (offered_only.send(request_, message, fds, need_reply=True).outcome == "done") is by_offer
    assert Peer().negotiate().memory().send(request_, message, fds, need_reply=True).outcome == "done"
