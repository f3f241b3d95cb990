"""Front-ends without a VM: libblkio, SPDK's virtio initiator, DPDK's virtio-user. Their addresses are their own."""

from vhostd.driver.frontend import RING_FEATURES
from vhostd.driver.profiles.steps import Base, ConfigRead, Each, Order, Over, Profile, Step, Steps
from vhostd.spec import blk, net
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature, Status

R = FrontendRequest
P = ProtocolFeature

# The virtio-driver crate, libblkio's; src/vhost_user.rs in its older versions.
LIBBLKIO = "stefano-garzarella/virtio-driver src/transports/vhost_user.rs"
SPDK = "spdk/spdk lib/virtio/virtio_vhost_user.c"
SPDK_BLK = "spdk/spdk module/bdev/virtio/bdev_virtio_blk.c"
DPDK = "DPDK/dpdk drivers/net/virtio/virtio_user/virtio_user_dev.c"
DPDK_USER = "DPDK/dpdk drivers/net/virtio/virtio_user/vhost_user.c"
DPDK_ETH = "DPDK/dpdk drivers/net/virtio/virtio_user_ethdev.c"


def _libblkio() -> Order:
    """Features before protocol features; the buffers' memory comes when the rings run, and goes before they stop."""
    hello = f"{LIBBLKIO} connect"
    ring = f"{LIBBLKIO} setup_queue"
    return Order(
        connect=(
            Step(R.SET_OWNER, hello),
            Step(R.GET_FEATURES, hello),
            Step(R.SET_FEATURES, hello),
            Step(R.GET_PROTOCOL_FEATURES, hello),
            Step(R.SET_PROTOCOL_FEATURES, hello),
            Step(R.GET_QUEUE_NUM, hello, ack=True, needs=P.MQ),
            Step(R.GET_MAX_MEM_SLOTS, hello, ack=True),
            Step(R.GET_CONFIG, f"{LIBBLKIO} get_config", ConfigRead(60), ack=True),
        ),
        start=(
            Each(Over.FIRST_REGION, (Step(R.ADD_MEM_REG, f"{LIBBLKIO} alloc_queue_mem", ack=True),)),
            Each(
                Over.RINGS,
                (
                    Step(R.SET_VRING_NUM, ring, ack=True),
                    Step(R.SET_VRING_BASE, ring, Base.ZERO, ack=True),
                    Step(R.SET_VRING_ADDR, ring, ack=True),
                    Step(R.SET_VRING_KICK, ring, ack=True),
                    Step(R.SET_VRING_CALL, ring, ack=True),
                    Step(R.SET_VRING_ENABLE, ring, 1, ack=True),
                ),
            ),
            Each(Over.FURTHER_REGIONS, (Step(R.ADD_MEM_REG, f"{LIBBLKIO} map_mem_region", ack=True),)),
        ),
        # Then it closes the socket, with the rings running.
        stop=(Each(Over.FURTHER_REGIONS, (Step(R.REM_MEM_REG, f"{LIBBLKIO} unmap_mem_region", ack=True),)),),
    )


LIBBLKIO_DRIVER = Profile(
    name="libblkio",
    orders={"block": _libblkio()},
    features={
        "block": RING_FEATURES
        | blk.Feature.RO
        | blk.Feature.FLUSH
        | blk.Feature.SIZE_MAX
        | blk.Feature.SEG_MAX
        | blk.Feature.BLK_SIZE
        | blk.Feature.TOPOLOGY
        | blk.Feature.MQ
        | blk.Feature.DISCARD
        | blk.Feature.WRITE_ZEROES
    },
    protocol_features={"block": P.REPLY_ACK | P.CONFIG | P.CONFIGURE_MEM_SLOTS | P.MQ},
    size=256,
    flat=True,
    ring_region=True,
)


def _spdk() -> Order:
    """ENABLE comes before there is anything to enable; GET_QUEUE_NUM comes with or without MQ."""
    features = f"{SPDK} virtio_user_set_features"
    config = f"{SPDK} virtio_user_read_dev_config, for {SPDK_BLK}"
    start = f"{SPDK} virtio_user_start_device"
    memory = f"{SPDK} virtio_user_map_notify"
    ring = f"{SPDK} virtio_user_kick_queue"
    return Order(
        connect=(
            Step(R.SET_OWNER, f"{SPDK} virtio_user_dev_init"),
            Step(R.GET_FEATURES, f"{SPDK} virtio_user_get_features"),
            Step(R.SET_FEATURES, features),
            Step(R.GET_PROTOCOL_FEATURES, features),
            Step(R.SET_PROTOCOL_FEATURES, features),
            Step(R.GET_CONFIG, config, ConfigRead(256), needs=P.CONFIG),  # the whole, for each field it reads
            Step(R.GET_CONFIG, config, ConfigRead(256), needs=P.CONFIG),
        ),
        start=(
            Each(Over.RINGS, (Step(R.SET_VRING_ENABLE, f"{SPDK} virtio_user_setup_queue", 1),)),
            Step(R.GET_QUEUE_NUM, start),
            Each(Over.RINGS, (Step(R.SET_VRING_CALL, f"{SPDK} virtio_user_create_queue"),)),
            Step(R.SET_MEM_TABLE, memory),
            Step(R.GET_FEATURES, memory),
            Each(
                Over.RINGS,
                (
                    Step(R.SET_VRING_NUM, ring),
                    Step(R.SET_VRING_BASE, ring, Base.ZERO),
                    Step(R.SET_VRING_ADDR, ring),
                    Step(R.SET_VRING_KICK, ring),
                ),
            ),
        ),
        stop=(
            Each(Over.RINGS, (Step(R.GET_VRING_BASE, f"{SPDK} virtio_user_stop_queue"),)),
            Step(R.SET_MEM_TABLE, memory),
            Step(R.GET_FEATURES, memory),
        ),
    )


SPDK_DRIVER = Profile(
    name="spdk",
    orders={"block": _spdk()},
    features={
        "block": blk.Feature.BLK_SIZE
        | blk.Feature.TOPOLOGY
        | blk.Feature.MQ
        | blk.Feature.RO
        | blk.Feature.DISCARD
        | Feature.EVENT_IDX
        | Feature.PROTOCOL_FEATURES
        | Feature.VERSION_1
    },
    protocol_features={"block": P.MQ | P.CONFIG},
    size=256,
    align=4096,
    flat=True,
    polls=True,
)


def _dpdk() -> Order:
    """Call descriptors before features; all receive rings, then all transmit rings; the first pair is enabled."""
    hello = f"{DPDK_USER} vhost_user_get_features"
    call = Step(R.SET_VRING_CALL, f"{DPDK} virtio_user_create_queue")
    status = f"{DPDK_ETH} virtio_user_set_status, {DPDK_USER} vhost_user_set_status"
    kick = f"{DPDK} virtio_user_kick_queue"
    ring: Steps = (
        Step(R.SET_VRING_NUM, kick),
        Step(R.SET_VRING_BASE, kick, Base.ZERO),
        Step(R.SET_VRING_ADDR, kick),
        Step(R.SET_VRING_KICK, kick),
    )
    down = f"{DPDK} virtio_user_stop_device"
    mq = f"{DPDK} virtio_user_handle_mq"
    stop = (
        Each(Over.RINGS, (Step(R.SET_VRING_ENABLE, down, 0),)),
        Each(Over.RINGS, (Step(R.GET_VRING_BASE, down),)),
    )
    features_ok = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
    return Order(
        connect=(
            Step(R.SET_OWNER, f"{DPDK} virtio_user_dev_init"),
            Step(R.GET_FEATURES, hello),
            Step(R.GET_PROTOCOL_FEATURES, hello),
            Step(R.SET_PROTOCOL_FEATURES, hello),
        ),
        start=(
            Each(Over.RX, (call,)),
            Each(Over.TX, (call,)),
            Step(R.SET_FEATURES, f"{DPDK} virtio_user_dev_set_features"),
            Step(R.SET_STATUS, status, features_ok, ack=True, needs=P.STATUS),
            Step(R.GET_STATUS, f"{DPDK_ETH} virtio_user_get_status", needs=P.STATUS),
            Step(R.SET_MEM_TABLE, f"{DPDK_USER} vhost_user_set_memory_table", ack=True),
            Each(Over.RX, ring),
            Each(Over.TX, ring),
            Each(
                Over.FIRST_PAIR,
                (Each(Over.OF_PAIR, (Step(R.SET_VRING_ENABLE, f"{DPDK} virtio_user_start_device", 1),)),),
            ),
            Step(R.SET_STATUS, status, Status.DRIVER_OK, ack=True, needs=P.STATUS),
            Each(Over.FURTHER_PAIRS, (Each(Over.OF_PAIR, (Step(R.SET_VRING_ENABLE, mq, 1),)),)),
        ),
        stop=stop,
        reset=stop,
    )


DPDK_DRIVER = Profile(
    name="dpdk",
    orders={"net": _dpdk()},
    features={
        "net": net.Feature.CSUM
        | net.Feature.HOST_TSO4
        | net.Feature.HOST_TSO6
        | net.Feature.MRG_RXBUF
        | net.Feature.GUEST_CSUM
        | net.Feature.GUEST_TSO4
        | net.Feature.GUEST_TSO6
        | net.Feature.MQ
        | Feature.INDIRECT_DESC
        | Feature.VERSION_1
        | Feature.PROTOCOL_FEATURES
    },
    protocol_features={"net": P.MQ | P.REPLY_ACK | P.STATUS},
    size=256,
    align=4096,
    flat=True,
    polls=True,
)
