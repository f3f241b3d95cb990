"""QEMU, of which two generations differ in what they wait for and in how they stop."""

from vhostd.driver.frontend import DEVICE_BITS, RING_FEATURES
from vhostd.driver.profiles.steps import Base, ConfigRead, Each, Order, Over, Profile, Step, Steps
from vhostd.spec import net
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature, Status

R = FrontendRequest
P = ProtocolFeature

# What is marked "traced" was seen between this version and a back-end, SeaBIOS or iPXE being the driver.
TRACED_7 = "traced: QEMU 7.2.22 (Debian)"
TRACED_11 = "traced: QEMU 11.1.3 (Debian)"
VHOST = "qemu/qemu hw/virtio/vhost.c"
USER = "qemu/qemu hw/virtio/vhost-user.c"
BLK = "qemu/qemu hw/block/vhost-user-blk.c"
NET = "qemu/qemu net/vhost-user.c, hw/net/vhost_net.c"


def _hello(where: str, *, first: bool = True) -> Steps:
    """vhost_user_backend_init: of a disk once, of a card for each pair, the first of which says more."""
    init = f"{where}; {USER} vhost_user_backend_init"
    only_first = (
        Step(R.GET_QUEUE_NUM, init, needs=P.MQ),
        Step(R.GET_MAX_MEM_SLOTS, init, needs=P.CONFIGURE_MEM_SLOTS),
        Step(R.SET_BACKEND_REQ_FD, f"{where}; {USER} vhost_setup_backend_channel", ack=True, needs=P.BACKEND_REQ),
        Step(R.SET_OWNER, f"{where}; {VHOST} vhost_dev_init"),
    )
    further = (Step(R.GET_MAX_MEM_SLOTS, init, needs=P.CONFIGURE_MEM_SLOTS),)
    return (
        Step(R.GET_FEATURES, init),
        Step(R.GET_PROTOCOL_FEATURES, init),
        Step(R.SET_PROTOCOL_FEATURES, init),
        *(only_first if first else further),
        Step(R.GET_FEATURES, f"{where}; {VHOST} vhost_dev_init"),
    )


def _notifiers(where: str, over: Over, *, ack: bool) -> Each:
    source = f"{where}; {VHOST} vhost_virtqueue_init"
    return Each(over, (Step(R.SET_VRING_CALL, source, ack=ack), Step(R.SET_VRING_ERR, source, ack=ack)))


def _features(where: str, *, status: bool = True) -> Steps:
    source = f"{where}; {USER} vhost_user_set_features"
    told = (Step(R.SET_STATUS, source, Status.FEATURES_OK, needs=P.STATUS),) if status else ()
    return (Step(R.SET_FEATURES, source), Step(R.GET_STATUS, source, needs=P.STATUS), *told)


def _memory(where: str, *, again: bool) -> Steps:
    """With slots, what was told stays; a table is told at each start."""
    source = f"{where}; {USER} vhost_user_set_mem_table"
    slots = Each(Over.REGIONS, (Step(R.ADD_MEM_REG, source, ack=True, needs=P.CONFIGURE_MEM_SLOTS),))
    table = Step(R.SET_MEM_TABLE, source, ack=True, lacks=P.CONFIGURE_MEM_SLOTS)
    return (table,) if again else (slots, table)


def _ring(where: str, base: Base, *, ack: bool) -> Steps:
    source = f"{where}; {VHOST} vhost_virtqueue_start"
    return (
        Step(R.SET_VRING_NUM, source),
        Step(R.SET_VRING_BASE, source, base),
        Step(R.SET_VRING_ADDR, source),
        Step(R.SET_VRING_KICK, source, ack=ack),
    )


def _running(where: str) -> Steps:
    source = f"{where}; {USER} vhost_user_dev_start"
    return (
        Step(R.GET_STATUS, source, needs=P.STATUS),
        Step(R.SET_STATUS, source, Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK, needs=P.STATUS),
    )


def _enable(where: str, over: Over, value: int, *, ack: bool) -> Each:
    return Each(over, (Step(R.SET_VRING_ENABLE, f"{where}; {USER} vhost_user_set_vring_enable", value, ack=ack),))


def _bases(where: str) -> Each:
    return Each(Over.RINGS, (Step(R.GET_VRING_BASE, f"{where}; {VHOST} vhost_virtqueue_stop"),))


def _status_0(where: str) -> Steps:
    return (Step(R.SET_STATUS, f"{where}; {USER} vhost_user_set_status", 0, needs=P.STATUS),)


def _reset_device(where: str, times: int = 1) -> Steps:
    return (Step(R.RESET_DEVICE, f"{where}; {USER} vhost_user_reset_device", needs=P.RESET_DEVICE),) * times


def _block_start(
    where: str, *, ack: bool, base: Base = Base.RETURNED, again: bool = False, lost: bool = False
) -> Steps:
    """vhost_user_blk_start. `lost`: on a new connection, whose in-flight buffer is the old one."""
    inflight = f"{where}; {BLK} vhost_user_blk_start"
    asked = () if lost else (Step(R.GET_INFLIGHT_FD, inflight, needs=P.INFLIGHT_SHMFD, once=True),)
    return (
        *_features(where),
        *asked,
        Step(R.SET_INFLIGHT_FD, inflight, needs=P.INFLIGHT_SHMFD),
        Each(Over.ALL, (Step(R.SET_VRING_CALL, f"{where}; {BLK} vhost_user_blk_start", ack=ack),)),
        *_features(where, status=False),
        *_memory(where, again=again),
        Each(Over.RINGS, _ring(where, base, ack=ack)),
        _enable(where, Over.ALL, 1, ack=ack),
        *_running(where),
    )


def _block(where: str, *, ack: bool, status_first: bool, resets: bool) -> Order:
    hello = (*_hello(where), _notifiers(where, Over.ALL, ack=ack))
    config = Step(R.GET_CONFIG, f"{where}; {BLK} vhost_user_blk_realize_connect", ConfigRead(57), needs=P.CONFIG)
    halt = (_enable(where, Over.ALL, 0, ack=ack), _bases(where))
    stop = (*_status_0(where), *halt) if status_first else (*halt, *_status_0(where))
    return Order(
        connect=(*hello, config, *(_reset_device(where, 2) if resets else ())),
        start=_block_start(where, ack=ack),
        stop=stop,
        restart=_block_start(where, ack=ack, again=True),
        reset=(*stop, *(_reset_device(where) if resets else ())),
        again=_block_start(where, ack=ack, again=True),
        reconnect=(*hello, *_block_start(where, ack=ack, base=Base.USED, lost=True)),
    )


def _net_start(where: str, *, ack: bool, base: Base = Base.RETURNED, again: bool = False) -> Steps:
    """vhost_net_start: pair by pair, the call descriptor after the kick; at the end what the guest makes of MQ."""
    call = Step(R.SET_VRING_CALL, f"{where}; {VHOST} vhost_virtqueue_mask", ack=ack)
    rings = Each(Over.OF_PAIR, (*_ring(where, base, ack=ack), call))
    return (
        Step(R.NET_SET_MTU, f"{where}; {USER} vhost_user_net_set_mtu", ack=True, needs=P.NET_MTU),
        Each(Over.FIRST_PAIR, (_enable(where, Over.OF_PAIR, 1, ack=ack),)),
        *_features(where),
        *_memory(where, again=again),
        Each(Over.FIRST_PAIR, (rings,)),
        Each(Over.FURTHER_PAIRS, (*_features(where, status=False), rings)),
        *_running(where),
        Each(Over.FURTHER_PAIRS, (_enable(where, Over.OF_PAIR, 1, ack=ack),)),
    )


def _net(where: str, *, ack: bool, status_first: bool, resets: bool) -> Order:
    hello = (
        *_hello(where),
        Each(Over.FIRST_PAIR, (_notifiers(where, Over.OF_PAIR, ack=ack),)),
        Each(Over.FURTHER_PAIRS, (*_hello(where, first=False), _notifiers(where, Over.OF_PAIR, ack=ack))),
    )
    only_first = (
        Each(Over.FIRST_PAIR, (_enable(where, Over.OF_PAIR, 1, ack=ack),)),
        Each(Over.FURTHER_PAIRS, (_enable(where, Over.OF_PAIR, 0, ack=ack),)),
    )
    reset = _reset_device(where) if resets else ()
    stop = (*_status_0(where), _bases(where)) if status_first else (_bases(where), *_status_0(where))
    return Order(
        connect=(*hello, *reset, *only_first, *only_first),
        start=_net_start(where, ack=ack),
        stop=stop,
        restart=_net_start(where, ack=ack, again=True),
        reset=(*stop, *reset, *only_first),
        again=_net_start(where, ack=ack, again=True),
        reconnect=(*hello, *_net_start(where, ack=ack, base=Base.USED)),
    )


# What it passes on that a driver of ours has no use for (packed rings, IOMMU) is left out.
FEATURES = DEVICE_BITS & (1 << 24) - 1 | RING_FEATURES | Feature.NOTIFY_ON_EMPTY
_OF_QEMU = (  # its own to serve, whatever the back-end offers
    net.Feature.CTRL_GUEST_OFFLOADS
    | net.Feature.MAC
    | net.Feature.STATUS
    | net.Feature.CTRL_VQ
    | net.Feature.CTRL_RX
    | net.Feature.CTRL_VLAN
    | net.Feature.CTRL_MAC_ADDR
)
NET_FEATURES = FEATURES & ~_OF_QEMU
PROTOCOL = (
    P.MQ | P.LOG_SHMFD | P.RARP | P.REPLY_ACK | P.NET_MTU | P.BACKEND_REQ | P.CROSS_ENDIAN | P.CRYPTO_SESSION
    | P.PAGEFAULT | P.CONFIG | P.BACKEND_SEND_FD | P.HOST_NOTIFIER | P.INFLIGHT_SHMFD | P.RESET_DEVICE
    | P.INBAND_NOTIFICATIONS | P.CONFIGURE_MEM_SLOTS | P.STATUS
)  # fmt: skip
PROTOCOL_11 = PROTOCOL | P.XEN_MMAP | P.SHARED_OBJECT | P.DEVICE_STATE | P.GPA_ADDRESSES | P.SHMEM_MAP

QEMU_7 = Profile(
    name="qemu-7.2",
    orders={
        "block": _block(TRACED_7, ack=False, status_first=True, resets=False),
        "net": _net(TRACED_7, ack=False, status_first=True, resets=False),
    },
    features={"block": FEATURES, "net": NET_FEATURES},
    protocol_features={"block": PROTOCOL, "net": PROTOCOL & ~P.CONFIG},
    size=128,
    log_gpa=None,
)
QEMU_11 = Profile(
    name="qemu-11",
    orders={
        "block": _block(TRACED_11, ack=True, status_first=False, resets=True),
        "net": _net(TRACED_11, ack=True, status_first=False, resets=True),
    },
    features={"block": FEATURES, "net": NET_FEATURES},
    protocol_features={"block": PROTOCOL_11, "net": PROTOCOL_11 & ~P.CONFIG},
    size=128,
    log_gpa=None,
)
