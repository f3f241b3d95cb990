"""proxy/conversation: numbers, replies, and what is odd."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.proxy import Kept
from vhostd.proxy.conversation import WAITING_MAX, Conversation
from vhostd.proxy.detect import by_features
from vhostd.proxy.faults import Faults
from vhostd.proxy.record import Channel, Side
from vhostd.proxy.summary import Summary
from vhostd.spec import blk, net, virtio
from vhostd.spec.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import DeviceId

R = FrontendRequest
VERSION, REPLY, NEED_REPLY = 1, 5, 9


class Talk:
    """Both ends of a conversation."""

    def __init__(self):
        self.kept = Kept()
        self.talk = Conversation(1, self.kept, Faults())

    def say(self, sender, code, payload=b"", flags=VERSION, channel=Channel.MAIN):
        begun = self.talk.begin(channel, sender, int(code), flags)
        self.talk.end(begun, payload, ())
        return self.kept.records[-1]

    def front(self, code, payload=b"", flags=VERSION, **where):
        return self.say(Side.FRONT_END, code, payload, flags, **where)

    def back(self, code, payload=b"", flags=REPLY, **where):
        return self.say(Side.BACK_END, code, payload, flags, **where)


def u64(value):
    return struct.pack("<Q", value)


def test_a_reply_has_the_number_of_its_request_and_the_time_it_took():
    talk = Talk()
    first, second = talk.front(R.GET_FEATURES), talk.front(R.GET_PROTOCOL_FEATURES)
    assert (first.number, second.number) == (1, 2)
    late, early = talk.back(R.GET_PROTOCOL_FEATURES, u64(1)), talk.back(R.GET_FEATURES, u64(0))
    assert (late.number, early.number) == (2, 1)
    assert 0 < late.took_ns < early.took_ns
    assert not late.notes
    assert not talk.talk.unanswered()


def test_what_is_odd_is_said():
    talk = Talk()
    assert talk.back(R.GET_FEATURES, u64(0)).notes == ("answers no request",)
    assert talk.front(R.GET_FEATURES, flags=REPLY).notes == ("a request with the REPLY flag",)
    assert talk.back(R.GET_FEATURES, u64(0), flags=VERSION).notes == ("without the REPLY flag",)
    assert talk.front(R.SET_OWNER, flags=2).notes == ("version 2, which is not 1",)
    assert talk.front(77).problem.startswith("request 77: there is no such request")


def test_only_what_awaits_a_reply_is_unanswered():
    """ "REPLY_ACK": need_reply asks for a reply once that was negotiated, and not before."""
    talk = Talk()
    talk.front(R.SET_OWNER, flags=NEED_REPLY)
    assert not talk.talk.unanswered()
    talk.front(R.SET_PROTOCOL_FEATURES, u64(ProtocolFeature.REPLY_ACK))
    talk.front(R.SET_OWNER)
    talk.front(R.SET_OWNER, flags=NEED_REPLY)
    talk.front(R.GET_CONFIG, struct.pack("<III", 0, 0, 0))
    assert talk.talk.unanswered() == ["#4 SET_OWNER", "#5 GET_CONFIG"]
    assert talk.back(R.SET_OWNER, u64(1)).fields == {"result": "failed (0x1)"}
    assert talk.talk.unanswered() == ["#5 GET_CONFIG"]


def test_the_back_end_asks_on_its_channel():
    """ "Back-end communication": there the back-end sends requests, and numbers are its own."""
    talk = Talk()
    talk.front(R.SET_PROTOCOL_FEATURES, u64(ProtocolFeature.REPLY_ACK))
    there = Channel.BACKEND
    asked = talk.back(BackendRequest.CONFIG_CHANGE_MSG, flags=NEED_REPLY, channel=there)
    assert (asked.number, asked.is_reply, asked.request) == (1, False, "BACKEND_CONFIG_CHANGE_MSG")
    answer = talk.front(BackendRequest.CONFIG_CHANGE_MSG, u64(0), flags=REPLY, channel=there)
    assert (answer.number, answer.is_reply, answer.fields) == (1, True, {"result": "ok"})


def test_a_peer_cannot_make_it_grow():
    """Requests that are never answered, and numbers that name nothing."""
    talk = Talk()
    summary = Summary()
    for code in range(3 * WAITING_MAX):
        talk.front(R.GET_FEATURES)
        summary.seen(talk.front(1000 + code))
        talk.kept.records.clear()
    assert len(talk.talk.unanswered()) == WAITING_MAX
    assert len(summary.requests) == 1


BLOCK = st.sets(st.sampled_from(list(blk.Feature)), min_size=1)
NET = st.sets(st.sampled_from(list(net.Feature)), min_size=1)
BOTH = st.sets(st.sampled_from(list(virtio.Feature))).map(sum)


@settings(max_examples=200)
@given(block=BLOCK, others=BOTH)
def test_a_disk_is_never_taken_for_a_network_card(block, others):
    assert by_features(sum(block) | others) in {None, DeviceId.BLOCK}


def test_what_back_ends_offer_gives_the_device_away():
    """As traced: qemu-storage-daemon's disk; a tap with offloads; the least that a network card has."""
    assert by_features(0x175007E44) is DeviceId.BLOCK
    tap = net.Feature.CSUM | net.Feature.MRG_RXBUF | net.Feature.MTU | net.Feature.MQ
    assert by_features(tap | virtio.Feature.VERSION_1) is DeviceId.NET
    assert by_features(net.Feature.MRG_RXBUF | net.Feature.GUEST_ANNOUNCE) is DeviceId.NET
    assert by_features(virtio.Feature.VERSION_1) is None


def test_the_device_names_the_features_from_its_first_reply_on():
    talk = Talk()
    talk.front(R.GET_FEATURES)
    assert talk.back(R.GET_FEATURES, u64(blk.Feature.FLUSH | blk.Feature.SEG_MAX)).fields == {
        "features": "SEG_MAX|FLUSH"
    }
    assert [event.text.split(",")[0] for event in talk.kept.events] == ["taken for a block device"]
