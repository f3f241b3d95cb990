"""What the document says of each request: a row for each, in its order.

A row is read from left to right: what the request carries, how many descriptors may come with it, what is sent back,
which protocol feature it needs, and whether this back-end performs it. A request that is not here is refused.
Spec: vhost-user, "Front-end message types", "Back-end message types", "VHOST_USER_PROTOCOL_F_REPLY_ACK".
"""

import enum
from dataclasses import dataclass

from vhostd.protocol import messages as m
from vhostd.spec.vhost_user import MEM_REGIONS_MAX, BackendRequest, FrontendRequest, ProtocolFeature

NO_FDS = range(1)
ONE_FD = range(1, 2)
MAYBE_FD = range(2)
NOTHING = ProtocolFeature(0)


class ReplyKind(enum.Enum):
    """What the receiver of a request sends back."""

    VALUE = "its own reply, asked for or not"
    ACK = "a u64, 0 for success, when REPLY_ACK was negotiated and the request has need_reply"
    VALUE_WITH_FEATURE = "its own reply when the feature it needs was negotiated, else as ACK"


@dataclass(frozen=True)
class Rule:
    """One row.

    `answer` is the payload of the message's own reply, `answer_fds` how many descriptors may come with it. `needs`
    must have been negotiated, or only been offered where the document asks no more (`offered` True). `older` is the
    payload in the absence of `needs`.
    """

    payload: type[m.Message] = m.Empty
    fds: range = NO_FDS
    reply: ReplyKind = ReplyKind.ACK
    answer: type[m.Message] = m.U64
    answer_fds: range = NO_FDS
    needs: ProtocolFeature = NOTHING
    offered: bool = False
    older: type[m.Message] | None = None
    served: bool = True


_F = ProtocolFeature
_R = FrontendRequest

RULES: dict[FrontendRequest, Rule] = {
    _R.GET_FEATURES: Rule(reply=ReplyKind.VALUE),
    _R.SET_FEATURES: Rule(m.U64),
    _R.SET_OWNER: Rule(),
    _R.RESET_OWNER: Rule(),
    _R.SET_MEM_TABLE: Rule(m.MemTable, fds=range(MEM_REGIONS_MAX + 1)),
    _R.SET_LOG_BASE: Rule(m.Log, MAYBE_FD, ReplyKind.VALUE_WITH_FEATURE, needs=_F.LOG_SHMFD, older=m.U64, served=False),
    _R.SET_LOG_FD: Rule(fds=ONE_FD, served=False),
    _R.SET_VRING_NUM: Rule(m.VringState),
    _R.SET_VRING_ADDR: Rule(m.VringAddr),
    _R.SET_VRING_BASE: Rule(m.VringState),
    _R.GET_VRING_BASE: Rule(m.VringState, reply=ReplyKind.VALUE, answer=m.VringState),
    _R.SET_VRING_KICK: Rule(m.VringFd, fds=MAYBE_FD),
    _R.SET_VRING_CALL: Rule(m.VringFd, fds=MAYBE_FD),
    _R.SET_VRING_ERR: Rule(m.VringFd, fds=MAYBE_FD),
    _R.GET_PROTOCOL_FEATURES: Rule(reply=ReplyKind.VALUE),
    _R.SET_PROTOCOL_FEATURES: Rule(m.U64),
    _R.GET_QUEUE_NUM: Rule(reply=ReplyKind.VALUE, needs=_F.MQ, offered=True),
    _R.SET_VRING_ENABLE: Rule(m.VringState),
    _R.SEND_RARP: Rule(m.U64, needs=_F.RARP, offered=True),
    _R.NET_SET_MTU: Rule(m.U64, needs=_F.NET_MTU, offered=True),
    _R.SET_BACKEND_REQ_FD: Rule(fds=ONE_FD, needs=_F.BACKEND_REQ, offered=True),
    # IOTLB_MSG hangs on a virtio feature, ACCESS_PLATFORM. Its sender awaits the u64 only after need_reply.
    _R.IOTLB_MSG: Rule(m.Iotlb, served=False),
    _R.SET_VRING_ENDIAN: Rule(m.VringState, needs=_F.CROSS_ENDIAN, served=False),
    _R.GET_CONFIG: Rule(m.Config, reply=ReplyKind.VALUE, answer=m.Config, needs=_F.CONFIG),
    _R.SET_CONFIG: Rule(m.Config, needs=_F.CONFIG),
    _R.CREATE_CRYPTO_SESSION: Rule(
        m.Opaque, reply=ReplyKind.VALUE, answer=m.Opaque, needs=_F.CRYPTO_SESSION, served=False
    ),
    _R.CLOSE_CRYPTO_SESSION: Rule(m.U64, needs=_F.CRYPTO_SESSION, served=False),
    _R.POSTCOPY_ADVISE: Rule(
        reply=ReplyKind.VALUE, answer=m.Empty, answer_fds=MAYBE_FD, needs=_F.PAGEFAULT, served=False
    ),
    _R.POSTCOPY_LISTEN: Rule(needs=_F.PAGEFAULT, served=False),
    _R.POSTCOPY_END: Rule(reply=ReplyKind.VALUE, needs=_F.PAGEFAULT, served=False),
    _R.GET_INFLIGHT_FD: Rule(
        m.Inflight, reply=ReplyKind.VALUE, answer=m.Inflight, answer_fds=MAYBE_FD, needs=_F.INFLIGHT_SHMFD, served=False
    ),
    _R.SET_INFLIGHT_FD: Rule(m.Inflight, fds=ONE_FD, needs=_F.INFLIGHT_SHMFD, served=False),
    _R.GPU_SET_SOCKET: Rule(fds=ONE_FD, served=False),
    _R.RESET_DEVICE: Rule(needs=_F.RESET_DEVICE, offered=True),
    _R.VRING_KICK: Rule(m.VringState, needs=_F.INBAND_NOTIFICATIONS, served=False),
    _R.GET_MAX_MEM_SLOTS: Rule(reply=ReplyKind.VALUE, needs=_F.CONFIGURE_MEM_SLOTS),
    _R.ADD_MEM_REG: Rule(m.SingleRegion, fds=MAYBE_FD, needs=_F.CONFIGURE_MEM_SLOTS),
    _R.REM_MEM_REG: Rule(m.SingleRegion, fds=MAYBE_FD, needs=_F.CONFIGURE_MEM_SLOTS),
    _R.SET_STATUS: Rule(m.U64, needs=_F.STATUS),
    _R.GET_STATUS: Rule(reply=ReplyKind.VALUE, needs=_F.STATUS),
    _R.GET_SHARED_OBJECT: Rule(
        m.SharedObject,
        reply=ReplyKind.VALUE,
        answer=m.Opaque,
        answer_fds=MAYBE_FD,
        needs=_F.SHARED_OBJECT,
        served=False,
    ),
    _R.SET_DEVICE_STATE_FD: Rule(
        m.DeviceStateTransfer, ONE_FD, ReplyKind.VALUE, answer_fds=MAYBE_FD, needs=_F.DEVICE_STATE, served=False
    ),
    _R.CHECK_DEVICE_STATE: Rule(reply=ReplyKind.VALUE, needs=_F.DEVICE_STATE, served=False),
    _R.GET_SHMEM_CONFIG: Rule(reply=ReplyKind.VALUE, answer=m.ShmemConfig, needs=_F.SHMEM_MAP, served=False),
}

_B = BackendRequest

BACKEND_RULES: dict[BackendRequest, Rule] = {
    _B.IOTLB_MSG: Rule(m.Iotlb, needs=_F.BACKEND_REQ),
    _B.CONFIG_CHANGE_MSG: Rule(needs=_F.CONFIG),
    _B.VRING_HOST_NOTIFIER_MSG: Rule(m.VringArea, fds=MAYBE_FD, needs=_F.HOST_NOTIFIER),
    _B.VRING_CALL: Rule(m.VringState, needs=_F.INBAND_NOTIFICATIONS),
    _B.VRING_ERR: Rule(m.VringState, needs=_F.INBAND_NOTIFICATIONS),
    _B.SHARED_OBJECT_ADD: Rule(m.SharedObject, needs=_F.SHARED_OBJECT),
    _B.SHARED_OBJECT_REMOVE: Rule(m.SharedObject, needs=_F.SHARED_OBJECT),
    _B.SHARED_OBJECT_LOOKUP: Rule(m.SharedObject, reply=ReplyKind.VALUE, answer_fds=MAYBE_FD, needs=_F.SHARED_OBJECT),
    _B.SHMEM_MAP: Rule(m.ShmemMap, fds=ONE_FD, needs=_F.SHMEM_MAP),
    _B.SHMEM_UNMAP: Rule(m.ShmemMap, needs=_F.SHMEM_MAP),
}

SERVED = (
    _F.MQ
    | _F.RARP
    | _F.REPLY_ACK
    | _F.NET_MTU
    | _F.BACKEND_REQ
    | _F.CONFIG
    | _F.BACKEND_SEND_FD
    | _F.RESET_DEVICE
    | _F.CONFIGURE_MEM_SLOTS
    | _F.STATUS
)
"""The protocol features that a back-end of ours may offer. Two are left out for good: front-ends acknowledge
INBAND_NOTIFICATIONS and XEN_MMAP without having them."""


def name_of(request: int) -> str:
    """Return a front-end request as the document writes it, or its number when it has no name."""
    try:
        return FrontendRequest(request).name
    except ValueError:
        return f"request {request}"


def backend_name_of(request: int) -> str:
    """Return a back-end request as the document writes it, or its number when it has no name."""
    try:
        return f"BACKEND_{BackendRequest(request).name}"
    except ValueError:
        return f"back-end request {request}"
