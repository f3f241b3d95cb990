"""The two ends, each through a framer, against each other."""

import pytest

from vhostd.protocol import messages as m
from vhostd.protocol.framing import Framer
from vhostd.protocol.frontend_session import FrontendSession
from vhostd.spec.vhost_user import FrontendRequest as R

from .peer import ALL_PROTOCOL, STATES, null_fds
from .test_states import DONE_FROM, SAMPLES


def through(framer, data, fds=()):
    """One frame, in pieces of seven bytes."""
    frame = None
    while data:
        n = min(7, framer.wanted)
        frame, data, fds = framer.feed(data[:n], fds), data[n:], ()
    assert frame is not None
    return frame


@pytest.mark.parametrize("need_reply", [None, False], ids=["acks", "silent"])
@pytest.mark.parametrize("request_", sorted(DONE_FROM), ids=lambda r: r.name)
def test_the_front_end_understands_our_reply(request_, need_reply):
    """Every request that is served, done and answered, leaves neither end waiting."""
    peer = STATES["configured"]()
    front = FrontendSession()
    front.send(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL), need_reply=False)
    there, back = Framer(), Framer()
    message, fds = SAMPLES[request_]
    out = front.send(request_, message, tuple(range(fds)), need_reply=need_reply)
    ack = peer.give(through(there, out.data, null_fds(fds)))
    assert ack.outcome == "done"
    assert (ack.reply is not None) == (front.awaited == 1)
    if ack.reply:
        answer = front.receive(through(back, ack.reply.data))
        assert answer.request is request_
        assert not answer.failed
    assert front.awaited == 0


def test_the_front_end_understands_that_we_refuse():
    """ACK != 0, and GET_CONFIG without payload."""
    peer = STATES["started"]()
    front = FrontendSession()
    front.send(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL), need_reply=False)
    for request, message in ((R.SET_VRING_NUM, m.VringState(0, 3)), (R.GET_CONFIG, m.Config(0, 4, 9, bytes(4)))):
        ack = peer.give(through(Framer(), front.send(request, message).data))
        assert ack.outcome == "refused"
        assert front.receive(through(Framer(), ack.reply.data)).failed
