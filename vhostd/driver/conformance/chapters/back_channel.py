"""The back-end's own channel (vhost-user, "Back-end communication")."""

import select

from vhostd.driver.conformance.case import BLOCK, BlkFeature, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.spec.vhost_user import BackendRequest, ProtocolFeature

P = ProtocolFeature
CHANNEL = 'vhost-user, "Front-end message types", VHOST_USER_SET_BACKEND_REQ_FD'
BACK = 'vhost-user, "Back-end communication"'


@case("VU-CHAN-01", CHANNEL, protocol=P.BACKEND_REQ)
def taken(check: Check) -> None:
    """With BACKEND_REQ the back-end takes a socket for requests of its own, and works with it."""
    with check.guest() as guest:
        check.expect(guest.frontend.channel is not None, "a channel", "none")
        guest.works(2)


@case("VU-CHAN-02", CHANNEL, protocol=P.BACKEND_REQ)
def not_given(check: Check) -> None:
    """Without BACKEND_REQ negotiated the back-end works without a channel."""
    with check.guest(protocol_features=PROTOCOL_FEATURES & ~P.BACKEND_REQ) as guest:
        guest.works(2)


@case("VU-CHAN-03", BACK, protocol=P.BACKEND_REQ)
def only_what_was_negotiated(check: Check) -> None:
    """The back-end sends no request of a feature that was not negotiated: a device at work sends none."""
    with check.guest(protocol_features=P.BACKEND_REQ | P.REPLY_ACK | P.MQ) as guest:
        guest.works(4)
        channel = guest.frontend.channel
        assert channel is not None
        check.expect(not select.select([channel], [], [], 0.1)[0], "silence on the channel", "a request")


@case("VU-CHAN-04", CHANNEL, protocol=P.BACKEND_REQ)
def replaced(check: Check) -> None:
    """A second SET_BACKEND_REQ_FD replaces the channel."""
    with check.guest() as guest:
        guest.works(1)
        guest.frontend.open_channel()
        guest.works(1)


@case("VU-CHAN-05", BACK, protocol=P.BACKEND_REQ)
def closed_by_the_front_end(check: Check) -> None:
    """A channel that the front-end closes ends no device."""
    with check.guest() as guest:
        channel = guest.frontend.channel
        assert channel is not None
        channel.close()
        check.answers(guest.frontend)
        guest.works(2)


@case(
    "VU-CHAN-06",
    f"{BACK}, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG",
    kinds=BLOCK,
    protocol=P.BACKEND_REQ | P.CONFIG,
    features=int(BlkFeature.CONFIG_WCE),
)
def no_echo_of_our_own_change(check: Check) -> None:
    """CONFIG_CHANGE tells changes that the device makes: at most that, and a GET_CONFIG that follows is answered."""
    with check.guest() as guest:
        before = guest.frontend.config(0, 33)[32:]
        guest.frontend.set_config(32, before)
        channel = guest.frontend.channel
        assert channel is not None
        if select.select([channel], [], [], 0.05)[0]:
            check.equal(guest.frontend.backend_request(1)[0], BackendRequest.CONFIG_CHANGE_MSG, "request")
        check.equal(guest.frontend.config(0, 33)[32:], before, "writeback")
