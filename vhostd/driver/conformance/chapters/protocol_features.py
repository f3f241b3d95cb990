"""Protocol features (vhost-user, "Protocol features", "Multiple queue support")."""

from vhostd.driver.conformance.case import Level, RingFeature, Row, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.protocol.messages import U64
from vhostd.protocol.wire import encode
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

R = FrontendRequest
P = ProtocolFeature
BIT_30 = int(RingFeature.PROTOCOL_FEATURES)
KNOWN = sum(int(feature) for feature in P)


@case("VU-PROTO-01", 'vhost-user, "Front-end message types", VHOST_USER_GET_PROTOCOL_FEATURES', features=BIT_30)
def before_set_features(check: Check) -> None:
    """A back-end that offers VHOST_USER_F_PROTOCOL_FEATURES must support GET_PROTOCOL_FEATURES before SET_FEATURES."""
    frontend = check.connect()
    frontend.ask_u64(R.GET_FEATURES)
    check.equal(frontend.ask_u64(R.GET_PROTOCOL_FEATURES), int(check.target.offer.protocol), "protocol features")


@case("VU-PROTO-02", 'vhost-user, "Front-end message types", VHOST_USER_SET_PROTOCOL_FEATURES', features=BIT_30)
def set_before_set_features(check: Check) -> None:
    """A back-end that offers VHOST_USER_F_PROTOCOL_FEATURES must support SET_PROTOCOL_FEATURES before SET_FEATURES."""
    frontend = check.connect()
    frontend.send(R.SET_PROTOCOL_FEATURES, encode(U64(0)))
    check.answers(frontend)


@case("VU-PROTO-03", 'vhost-user, "Protocol features"', features=BIT_30)
def the_same_each_time(check: Check) -> None:
    """GET_PROTOCOL_FEATURES is answered the same each time, also after SET_PROTOCOL_FEATURES."""
    frontend = check.negotiated()
    for _ in range(3):
        check.equal(frontend.ask_u64(R.GET_PROTOCOL_FEATURES), int(check.target.offer.protocol), "protocol features")


@case("VU-PROTO-04", 'vhost-user, "Protocol features"', features=BIT_30)
def known_bits(check: Check) -> None:
    """Only protocol features that the document has are offered."""
    unknown = int(check.target.offer.protocol) & ~KNOWN
    check.expect(not unknown, "no other bits", f"{unknown:#x}")


@case("VU-PROTO-05", 'vhost-user, "Multiple queue support"', level=Level.SHOULD, features=BIT_30)
def mq_is_offered(check: Check) -> None:
    """Back-ends should always implement VHOST_USER_PROTOCOL_F_MQ."""
    check.expect(check.target.offer.protocol & P.MQ, "MQ to be offered", "it is not")


NEEDED = {
    "backend-send-fd": (P.BACKEND_SEND_FD, P.BACKEND_REQ),
    "host-notifier": (P.HOST_NOTIFIER, P.BACKEND_REQ),
    "shmem-map": (P.SHMEM_MAP, P.BACKEND_REQ),
    "shared-object": (P.SHARED_OBJECT, P.BACKEND_REQ),
    "base-inflight": (P.GET_VRING_BASE_INFLIGHT, P.INFLIGHT_SHMFD),
}


@case(
    "VU-PROTO-06",
    'vhost-user, "Protocol features", "Back-end communication", "Inflight I/O tracking"',
    features=BIT_30,
    rows={name: Row(need, protocol=offer) for name, (offer, need) in NEEDED.items()},
)
def needed_together(check: Check, need: ProtocolFeature) -> None:
    """A protocol feature that works by another one's messages is offered together with it."""
    check.expect(check.target.offer.protocol & need, f"{need.name} to be offered as well", "it is not")


_EACH = {f.name.lower().replace("_", "-"): Row(f, protocol=f) for f in P if f.name and f & PROTOCOL_FEATURES}


@case("VU-PROTO-07", 'vhost-user, "Protocol features"', features=BIT_30, rows=_EACH)
def one_alone(check: Check, feature: ProtocolFeature) -> None:
    """Each protocol feature may be negotiated without the others."""
    with check.guest(protocol_features=feature) as guest:
        guest.works(2)
        check.equal(guest.session.stop()[check.target.work_ring], 2, "base")


@case("VU-PROTO-08", 'vhost-user, "Protocol features"', features=BIT_30, rows=_EACH)
def all_but_one(check: Check, feature: ProtocolFeature) -> None:
    """Each protocol feature may be left out."""
    with check.guest(protocol_features=PROTOCOL_FEATURES & ~feature) as guest:
        guest.works(2)
        check.equal(guest.session.stop()[check.target.work_ring], 2, "base")


@case("VU-PROTO-09", 'vhost-user, "Protocol features"', features=BIT_30)
def none_at_all(check: Check) -> None:
    """A front-end may negotiate no protocol feature."""
    with check.guest(protocol_features=P(0)) as guest:
        guest.works(4)


@case("VU-PROTO-10", 'vhost-user, "Multiple queue support"', protocol=P.MQ)
def queue_num(check: Check) -> None:
    """GET_QUEUE_NUM returns the most queues that the back-end supports, at least one."""
    frontend = check.negotiated()
    count = frontend.ask_u64(R.GET_QUEUE_NUM)
    check.expect(1 <= count <= 256, "1 to 256", str(count))
    check.equal(frontend.ask_u64(R.GET_QUEUE_NUM), count, "the same again,")


@case("VU-PROTO-11", 'vhost-user, "Multiple queue support"', protocol=P.MQ, timeout=60)
def all_queues(check: Check) -> None:
    """As many queues as GET_QUEUE_NUM says can be started, enabled and used."""
    count = min(check.target.offer.queues, 16)
    with check.guest(queues=count, size=64) as guest:
        step = 2 if check.target.kind == "net" else 1
        for queue in range(count):
            guest.works(1, ring=queue * step + check.target.work_ring)
