"""User-Mode Linux, and a front-end from before there were protocol features."""

from vhostd.driver.frontend import DEVICE_BITS, RING_FEATURES
from vhostd.driver.profiles.steps import Base, ConfigRead, Each, Order, Over, Profile, Step
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

R = FrontendRequest
P = ProtocolFeature

UML = "torvalds/linux arch/um/drivers/virtio_uml.c"
DOCUMENT = 'vhost-user, "Ring states", "Message Specification"'


def _uml(*reads: int) -> Order:
    """Rings are told as the guest's driver makes them and freed after ENABLE 0; nobody asks where they stand."""
    hello = f"{UML} vhost_user_init"
    ring = f"{UML} vu_setup_vq"
    up = f"{UML} vu_find_vqs"
    down = f"{UML} vu_del_vqs"
    stop = (
        Each(Over.RINGS_DOWN, (Step(R.SET_VRING_ENABLE, down, 0, ack=True),)),
        Step(R.GET_FEATURES, down),
    )
    return Order(
        connect=(
            Step(R.SET_OWNER, hello),
            Step(R.GET_FEATURES, hello),
            Step(R.GET_PROTOCOL_FEATURES, hello),
            Step(R.SET_PROTOCOL_FEATURES, hello, ack=True),  # on the message that agrees to it
            Step(R.SET_BACKEND_REQ_FD, f"{UML} vhost_user_init_slave_req", ack=True, needs=P.BACKEND_REQ),
        ),
        start=(
            Step(R.SET_FEATURES, f"{UML} vu_finalize_features", ack=True),
            # A field is read by asking for all up to its end.
            *(Step(R.GET_CONFIG, f"{UML} vhost_user_get_config", ConfigRead(n), needs=P.CONFIG) for n in reads),
            Step(R.SET_MEM_TABLE, f"{UML} vhost_user_set_mem_table", ack=True),
            Each(
                Over.RINGS,
                (
                    Step(R.SET_VRING_CALL, f"{UML} vu_setup_vq_call_fd", ack=True),
                    Step(R.SET_VRING_NUM, ring, ack=True),
                    Step(R.SET_VRING_BASE, ring, Base.ZERO, ack=True),
                    Step(R.SET_VRING_ADDR, ring, ack=True),
                ),
            ),
            Each(
                Over.RINGS,
                (Step(R.SET_VRING_KICK, up, ack=True), Step(R.SET_VRING_ENABLE, up, 1, ack=True)),
            ),
        ),
        stop=stop,
        reset=stop,
    )


UML_KERNEL = Profile(
    name="uml",
    orders={"block": _uml(8, 16, 24), "net": _uml(6)},
    features={"block": DEVICE_BITS | RING_FEATURES, "net": DEVICE_BITS | RING_FEATURES},
    protocol_features=dict.fromkeys(("block", "net"), P.BACKEND_REQ | P.CONFIG | P.REPLY_ACK),
    size=256,
    align=4096,
    flat=True,
    pipes=True,
    table_places=2,
    log_gpa=(1 << 64) - 1,
)


def _plain() -> Order:
    return Order(
        connect=(Step(R.SET_OWNER, DOCUMENT), Step(R.GET_FEATURES, DOCUMENT)),
        start=(
            Step(R.SET_FEATURES, DOCUMENT),
            Step(R.SET_MEM_TABLE, DOCUMENT),
            Each(
                Over.RINGS,
                (
                    Step(R.SET_VRING_NUM, DOCUMENT),
                    Step(R.SET_VRING_BASE, DOCUMENT, Base.RETURNED),
                    Step(R.SET_VRING_ADDR, DOCUMENT),
                    Step(R.SET_VRING_ERR, DOCUMENT),
                    Step(R.SET_VRING_KICK, DOCUMENT),
                    Step(R.SET_VRING_CALL, DOCUMENT),
                ),
            ),
        ),
        stop=(Each(Over.RINGS, (Step(R.GET_VRING_BASE, DOCUMENT),)),),
        restart=(
            Step(R.SET_MEM_TABLE, DOCUMENT),
            Each(
                Over.RINGS,
                (
                    Step(R.SET_VRING_BASE, DOCUMENT, Base.RETURNED),
                    Step(R.SET_VRING_ADDR, DOCUMENT),
                    Step(R.SET_VRING_CALL, DOCUMENT),  # a stop may have cost the ring its descriptors
                    Step(R.SET_VRING_KICK, DOCUMENT),
                ),
            ),
        ),
    )


_PLAIN_FEATURES = (DEVICE_BITS | int(RING_FEATURES)) & ~int(Feature.PROTOCOL_FEATURES)
PLAIN = Profile(
    name="plain",
    orders={"block": _plain(), "net": _plain()},
    features={"block": _PLAIN_FEATURES, "net": _PLAIN_FEATURES},
    protocol_features=dict.fromkeys(("block", "net"), P(0)),
    size=256,
    log_gpa=None,
)
