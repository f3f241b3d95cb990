"""VM monitors written in Rust: Cloud Hypervisor and Firecracker, which share a library, and crosvm."""

from vhostd.driver.frontend import DEVICE_BITS, RING_FEATURES
from vhostd.driver.profiles.steps import Base, ConfigRead, Each, Order, Over, Profile, Step, Steps
from vhostd.spec import blk, net
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

R = FrontendRequest
P = ProtocolFeature

CHV = "cloud-hypervisor/cloud-hypervisor virtio-devices/src/vhost_user/vu_common_ctrl.rs"
CHV_BLK = "cloud-hypervisor/cloud-hypervisor virtio-devices/src/vhost_user/blk.rs"
CHV_NET = "cloud-hypervisor/cloud-hypervisor virtio-devices/src/vhost_user/net.rs"
FIRECRACKER = "firecracker-microvm/firecracker src/vmm/src/devices/virtio/vhost_user.rs"
FIRECRACKER_BLK = "firecracker-microvm/firecracker src/vmm/src/devices/virtio/block/vhost_user/device.rs"
CROSVM = "google/crosvm devices/src/virtio/vhost_user_frontend/mod.rs"


def _chv_hello(config: Steps) -> Steps:
    source = f"{CHV} negotiate_features_vhost_user"
    return (
        Step(R.SET_OWNER, source),
        Step(R.GET_FEATURES, source),
        Step(R.GET_PROTOCOL_FEATURES, source),
        Step(R.SET_PROTOCOL_FEATURES, source),
        *config,
    )


def _chv_start(base: Base, *, inflight: Steps) -> Steps:
    """setup_vhost_user; NEED_REPLY is a flag of the connection there, so it is on every message."""
    source = f"{CHV} setup_vhost_user"
    ring = (
        Step(R.SET_VRING_ADDR, source, ack=True),
        Step(R.SET_VRING_BASE, source, base, ack=True),
        Step(R.SET_VRING_CALL, source, ack=True),
        Step(R.SET_VRING_KICK, source, ack=True),
    )
    return (
        Step(R.SET_FEATURES, source, ack=True),
        Step(R.SET_MEM_TABLE, source, ack=True),
        Each(Over.RINGS, (Step(R.SET_VRING_NUM, source, ack=True),)),
        *inflight,
        Each(Over.RINGS, ring),
        Each(Over.RINGS, (Step(R.SET_VRING_ENABLE, f"{CHV} enable_vhost_user_vrings", 1, ack=True),)),
        Step(R.SET_BACKEND_REQ_FD, source, ack=True, needs=P.BACKEND_REQ),
    )


def _chv(config: Steps) -> Order:
    source = f"{CHV} setup_vhost_user"
    down = f"{CHV} reset_vhost_user"
    again = f"{CHV} set_protocol_features_vhost_user"
    got = Step(R.GET_INFLIGHT_FD, source, ack=True, needs=P.INFLIGHT_SHMFD, once=True)
    given = Step(R.SET_INFLIGHT_FD, source, ack=True, needs=P.INFLIGHT_SHMFD)
    stop = (
        Each(
            Over.RINGS,
            (Step(R.SET_VRING_ENABLE, down, 0, ack=True), Step(R.GET_VRING_BASE, down, ack=True)),
        ),
    )
    return Order(
        connect=_chv_hello(config),
        start=_chv_start(Base.AVAIL, inflight=(got, given)),
        stop=stop,
        reset=stop,
        reconnect=(
            Step(R.SET_OWNER, again),
            Step(R.GET_FEATURES, again),
            Step(R.SET_PROTOCOL_FEATURES, again),  # what was agreed before; nobody asks again what is offered
            *_chv_start(Base.AVAIL, inflight=(given,)),
        ),
        pause=(Each(Over.RINGS, (Step(R.SET_VRING_ENABLE, f"{CHV} pause_vhost_user", 0, ack=True),)),),
        resume=(Each(Over.RINGS, (Step(R.SET_VRING_ENABLE, f"{CHV} resume_vhost_user", 1, ack=True),)),),
    )


_CHV_BLK_FEATURES = (
    RING_FEATURES
    | blk.Feature.SIZE_MAX
    | blk.Feature.SEG_MAX
    | blk.Feature.GEOMETRY
    | blk.Feature.RO
    | blk.Feature.BLK_SIZE
    | blk.Feature.FLUSH
    | blk.Feature.TOPOLOGY
    | blk.Feature.CONFIG_WCE
    | blk.Feature.MQ
    | blk.Feature.DISCARD
    | blk.Feature.WRITE_ZEROES
)
_CHV_NET_FEATURES = (
    RING_FEATURES
    | net.Feature.CSUM
    | net.Feature.GUEST_CSUM
    | net.Feature.MTU
    | net.Feature.GUEST_TSO4
    | net.Feature.GUEST_TSO6
    | net.Feature.GUEST_ECN
    | net.Feature.GUEST_UFO
    | net.Feature.HOST_TSO4
    | net.Feature.HOST_TSO6
    | net.Feature.HOST_ECN
    | net.Feature.HOST_UFO
    | net.Feature.MRG_RXBUF
    | net.Feature.MQ
)
_CHV_PROTOCOL = P.CONFIG | P.MQ | P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK | P.INFLIGHT_SHMFD | P.LOG_SHMFD
CLOUD_HYPERVISOR = Profile(
    name="cloud-hypervisor",
    orders={
        "block": _chv(
            (
                Step(R.GET_QUEUE_NUM, f"{CHV_BLK} Blk::new", ack=True, needs=P.MQ),
                Step(R.GET_CONFIG, f"{CHV_BLK} Blk::new", ConfigRead(60, 0x100, 1), ack=True, needs=P.CONFIG),
            )
        ),
        "net": _chv((Step(R.GET_QUEUE_NUM, f"{CHV_NET} Net::new", ack=True, needs=P.MQ),)),
    },
    features={"block": _CHV_BLK_FEATURES, "net": _CHV_NET_FEATURES},
    protocol_features={"block": _CHV_PROTOCOL, "net": _CHV_PROTOCOL & ~P.CONFIG},
    size=256,
)


def _firecracker() -> Order:
    hello = f"{FIRECRACKER} negotiate_features"
    source = f"{FIRECRACKER} setup_backend"
    ring = (
        Step(R.SET_VRING_ADDR, source),
        Step(R.SET_VRING_BASE, source, Base.AVAIL),
        Step(R.SET_VRING_CALL, source),
        Step(R.SET_VRING_KICK, source),
        Step(R.SET_VRING_ENABLE, source, 1),
    )
    return Order(
        connect=(
            Step(R.SET_OWNER, f"{FIRECRACKER} new"),
            Step(R.GET_FEATURES, hello),
            Step(R.GET_PROTOCOL_FEATURES, hello),
            Step(R.SET_PROTOCOL_FEATURES, hello),
            Step(R.GET_CONFIG, f"{FIRECRACKER_BLK} new", ConfigRead(60, 0, 1), needs=P.CONFIG),
        ),
        start=(
            Step(R.SET_FEATURES, f"{FIRECRACKER_BLK} activate"),
            Step(R.SET_MEM_TABLE, f"{FIRECRACKER} update_mem_table"),
            Each(Over.RINGS, (Step(R.SET_VRING_NUM, source),)),
            Each(Over.RINGS, ring),
        ),
        stop=(),  # it never stops a device: the socket closes with the machine
    )


FIRECRACKER_VMM = Profile(
    name="firecracker",
    orders={"block": _firecracker()},
    features={
        "block": Feature.VERSION_1 | Feature.EVENT_IDX | Feature.PROTOCOL_FEATURES | blk.Feature.RO | blk.Feature.FLUSH
    },
    protocol_features={"block": P.CONFIG},
    size=256,
)


def _crosvm(read: ConfigRead) -> Order:
    hello = f"{CROSVM} VhostUserFrontend::new"
    source = f"{CROSVM} activate_vring"
    down = f"{CROSVM} deactivate_vring"
    ring = (
        Step(R.SET_VRING_NUM, source),
        Step(R.SET_VRING_ADDR, source),
        Step(R.SET_VRING_BASE, source, Base.RETURNED),
        Step(R.SET_VRING_CALL, source),
        Step(R.SET_VRING_KICK, source),
        Step(R.SET_VRING_ENABLE, source, 1),
    )
    activate = (Step(R.SET_MEM_TABLE, f"{CROSVM} set_mem_table"), Each(Over.RINGS, ring))
    stop = (Each(Over.RINGS, (Step(R.SET_VRING_ENABLE, down, 0), Step(R.GET_VRING_BASE, down))),)
    return Order(
        connect=(
            Step(R.SET_OWNER, hello),
            Step(R.GET_FEATURES, hello),
            Step(R.GET_PROTOCOL_FEATURES, hello),
            Step(R.SET_PROTOCOL_FEATURES, hello),
            Step(R.SET_BACKEND_REQ_FD, hello, needs=P.BACKEND_REQ),
            Step(R.GET_QUEUE_NUM, hello, needs=P.MQ),
            Step(R.GET_CONFIG, f"{CROSVM} read_config", read, needs=P.CONFIG),
        ),
        start=(Step(R.SET_FEATURES, f"{CROSVM} ack_features"), *activate),
        stop=stop,
        restart=activate,
        reset=stop,
    )


_CROSVM_FEATURES = DEVICE_BITS | Feature.VERSION_1 | Feature.EVENT_IDX | Feature.PROTOCOL_FEATURES
_CROSVM_PROTOCOL = P.CONFIG | P.MQ | P.BACKEND_REQ | P.DEVICE_STATE | P.SHMEM_MAP | P.REPLY_ACK
CROSVM_VMM = Profile(
    name="crosvm",
    orders={"block": _crosvm(ConfigRead(8, 0, 1)), "net": _crosvm(ConfigRead(6, 0, 1))},
    features={"block": _CROSVM_FEATURES, "net": _CROSVM_FEATURES},
    protocol_features={"block": _CROSVM_PROTOCOL, "net": _CROSVM_PROTOCOL},
    size=256,
)
