"""Payloads to messages and back."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostd.errors import LocalProtocolError, RemoteProtocolError
from vhostd.protocol import messages as m
from vhostd.protocol import wire
from vhostd.protocol.rules import BACKEND_RULES, RULES, Rule
from vhostd.spec import vhost_user as spec

U8 = st.integers(0, 2**8 - 1)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
REGION = st.builds(m.MemRegion, U64, U64, U64, U64)

MESSAGES = {
    m.Empty: st.builds(m.Empty),
    m.U64: st.builds(m.U64, U64),
    m.VringState: st.builds(m.VringState, U32, U32),
    m.VringAddr: st.builds(m.VringAddr, U32, U32, U64, U64, U64, U64),
    m.VringFd: st.builds(m.VringFd, U8, st.booleans()),
    m.MemTable: st.builds(m.MemTable, st.lists(REGION, max_size=8).map(tuple)),
    m.SingleRegion: st.builds(m.SingleRegion, REGION),
    m.Log: st.builds(m.Log, U64, U64),
    m.Iotlb: st.builds(m.Iotlb, U64, U64, U64, U8, U8),
    m.Config: st.binary(max_size=256).flatmap(
        lambda data: st.builds(m.Config, U32, st.just(len(data)), U32, st.just(data))
    ),
    m.VringArea: st.builds(m.VringArea, U64, U64, U64),
    m.Inflight: st.builds(m.Inflight, U64, U64, U16, U16),
    m.SharedObject: st.builds(m.SharedObject, st.binary(min_size=16, max_size=16)),
    m.DeviceStateTransfer: st.builds(m.DeviceStateTransfer, U32, U32),
    m.ShmemConfig: st.builds(m.ShmemConfig, U32, U64.map(lambda size: (size,) * 256)),
    m.ShmemMap: st.builds(m.ShmemMap, U8, U64, U64, U64, U64),
    m.Opaque: st.builds(m.Opaque, st.binary(max_size=2056)),
}


def requests_with(kind):
    """Decoders that lead to a kind of message."""
    found = [
        lambda p, r=r: wire.decode(r, p) for r, rule in RULES.items() if rule.payload is kind or rule.older is kind
    ]
    found += [lambda p, r=r: wire.decode_reply(r, p) for r, rule in RULES.items() if rule.answer is kind]
    found += [lambda p, r=r: wire.decode_backend(r, p) for r, rule in BACKEND_RULES.items() if rule.payload is kind]
    found += [
        lambda p, r=r: wire.decode_backend_reply(r, p) for r, rule in BACKEND_RULES.items() if rule.answer is kind
    ]
    return found


def test_each_message_class_is_tested():
    """A new payload must join the table above."""
    assert set(MESSAGES) == set(m.Message.__subclasses__()) - {m.MemRegion}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda k: k.__name__)
@given(data=st.data())
@settings(max_examples=40)
def test_a_message_survives_the_wire(kind, data):
    """vhost-user, "Payload": each layout, both ways, in every request that has it."""
    message = data.draw(MESSAGES[kind])
    payload = wire.encode(message)
    assert len(payload) in kind.LENGTHS
    decoders = requests_with(kind)
    assert decoders
    for decode in decoders:
        assert decode(payload) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda k: k.__name__)
@given(data=st.data())
@settings(max_examples=40)
def test_a_cut_or_stretched_payload_is_refused_or_padding(kind, data):
    """S4: one byte more or less than a layout is never read as the message, but for the padding of two of them."""
    message = data.draw(MESSAGES[kind])
    payload = wire.encode(message)
    change = data.draw(st.integers(-len(payload), 40).filter(bool))
    changed = payload[:change] if change < 0 else payload + b"\0" * change
    for decode in requests_with(kind):
        try:
            again = decode(changed)
        except RemoteProtocolError as error:
            assert not error.fatal
            continue
        if type(again) is kind and kind not in (m.Opaque, m.Empty):
            assert again == message
            assert 0 < change <= kind.PADDING


@given(request=st.integers(0, 60) | U32, payload=st.binary(max_size=300))
@settings(max_examples=400)
def test_random_bytes_are_a_message_or_the_peers_error(request, payload):
    """S166: whatever a payload holds, nothing but RemoteProtocolError comes out."""
    for decode in (wire.decode, wire.decode_backend):
        try:
            message = decode(request, payload)
        except RemoteProtocolError:
            continue
        assert isinstance(message, m.Message)
    for kind, function in ((spec.FrontendRequest, wire.decode_reply), (spec.BackendRequest, wire.decode_backend_reply)):
        if request in list(kind):
            try:
                function(kind(request), payload)
            except RemoteProtocolError:
                continue


@pytest.mark.parametrize("request_", RULES, ids=lambda r: r.name)
def test_each_length_that_is_not_a_requests_is_refused(request_):
    """S4: {0, -1, +1, +4, max} and all between, of every request."""
    rule = RULES[request_]
    for length in [*range(60), 264, 265, 268, 269, 296, 2055, 2056, 2057]:
        if length not in rule.payload.LENGTHS and (rule.older is None or length not in rule.older.LENGTHS):
            with pytest.raises(RemoteProtocolError, match=request_.name):
                wire.decode(request_, b"\0" * length)


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (5, b"\x02\0\0\0" + b"\0" * 36),
        (5, b"\xff\xff\xff\xff" + b"\0" * 36),
        (5, b"\xff\0\0\0" + b"\0" * 260),
        (24, b"\0" * 4 + b"\xff\xff\xff\xff" + b"\0" * 4),
        (24, b"\0" * 4 + b"\x08\0\0\0" + b"\0" * 11),
        (25, b"\0" * 4 + b"\x01\0\0\0" + b"\0" * 6),
        (12, b"\0\2\0\0\0\0\0\0"),
        (13, b"\0\0\0\0\0\0\0\x80"),
        (14, b"\0\0\0\x10\0\0\0\0"),
    ],
)
def test_a_count_that_contradicts_the_length_is_refused(request_, payload):
    """S70 to S73, S113, S45: the number inside a payload must agree with how long it is."""
    with pytest.raises(RemoteProtocolError):
        wire.decode(request_, payload)


def test_padding_of_a_table_is_not_looked_at():
    """S74: the padding word of a memory table may hold anything."""
    region = m.MemRegion(1, 2, 3, 4)
    payload = bytearray(wire.encode(m.MemTable((region,))))
    payload[4:8] = b"\xff" * 4
    assert wire.decode(5, bytes(payload)) == m.MemTable((region,))


@pytest.mark.parametrize("length", range(20, 25))
def test_an_inflight_description_of_20_to_24_bytes(length):
    """S109: both lengths that are seen on the wire, and the reply is as long as the request."""
    message = m.Inflight(1 << 40, 2, 3, 4)
    payload = wire.encode(message, length)
    assert len(payload) == length
    assert wire.decode(31, payload) == message
    assert wire.decode(32, payload) == message


@pytest.mark.parametrize("length", [26, 27, 32])
def test_an_iotlb_message_of_26_to_32_bytes(length):
    """The compiler's padding is let pass ("An IOTLB message")."""
    message = m.Iotlb(1, 2, 3, 3, 2)
    assert wire.decode(22, wire.encode(message, length)) == message


@pytest.mark.parametrize("size", [1, 36, 57, 60, 256])
def test_a_config_of_any_length_up_to_256(size):
    """ "Virtio device config space": front-ends ask 36, 57 or 60 bytes and want as many."""
    message = m.Config(0, size, 0, bytes(size))
    assert wire.decode(24, wire.encode(message)) == message
    with pytest.raises(RemoteProtocolError):
        wire.decode(24, b"\0" * 4 + (257).to_bytes(4, "little") + b"\0" * 261)


def test_the_log_has_its_older_form():
    """SET_LOG_BASE has a u64 without LOG_SHMFD, a log description with it."""
    assert wire.decode(6, wire.encode(m.U64(7))) == m.U64(7)
    assert wire.decode(6, wire.encode(m.Log(7, 8))) == m.Log(7, 8)


def test_a_failed_get_config_is_an_empty_reply():
    """GET_CONFIG: "uses zero length of payload to indicate an error"."""
    assert wire.decode_reply(spec.FrontendRequest.GET_CONFIG, b"") == m.Empty()
    with pytest.raises(RemoteProtocolError):
        wire.decode_reply(spec.FrontendRequest.GET_FEATURES, b"")


@pytest.mark.parametrize(
    "message",
    [
        m.U64(-1),
        m.U64(1 << 64),
        m.VringState(1 << 32, 0),
        m.VringFd(256),
        m.Config(0, 4, 0, b"abc"),
        m.Config(0, 300, 0, bytes(300)),
        m.MemTable((m.MemRegion(0, 1, 2, 3),) * 9),
        m.SharedObject(b"short"),
        m.U64("x"),
        m.Opaque(bytes(3000)),
        m.ShmemConfig(1, (4096,)),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_our_own_mistake(message):
    """A message that we made and that has no bytes is LocalProtocolError."""
    with pytest.raises(LocalProtocolError):
        wire.encode(message)


def test_a_length_that_a_message_cannot_have_is_our_own_mistake():
    """`encode` pads within the padding that the layout allows."""
    for message, length in ((m.U64(1), 9), (m.Inflight(1, 2, 3, 4), 25), (m.Inflight(1, 2, 3, 4), 19)):
        with pytest.raises(LocalProtocolError):
            wire.encode(message, length)


@given(request=U32, flags=U32, payload=st.binary(max_size=40))
def test_a_header_survives_the_wire(request, flags, payload):
    """vhost-user, "Header": request, flags, size."""
    frame = wire.frame_bytes(request, flags, payload)
    assert wire.parse_header(frame[:12]) == (request, flags, len(payload))
    assert frame[12:] == payload
    with pytest.raises(LocalProtocolError):
        wire.parse_header(frame[:11])


def test_every_request_has_its_row():
    """All of 1 to 44 and 1 to 10 are in the tables, and each is a Rule with a payload of this module."""
    assert set(RULES) == set(spec.FrontendRequest) == set(range(1, 45))
    assert set(BACKEND_RULES) == set(spec.BackendRequest) == set(range(1, 11))
    for rule in [*RULES.values(), *BACKEND_RULES.values()]:
        assert isinstance(rule, Rule)
        assert issubclass(rule.payload, m.Message)


def test_messages_are_values():
    """Frozen: what a session has kept is not edited behind its back."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.U64(1).value = 2
