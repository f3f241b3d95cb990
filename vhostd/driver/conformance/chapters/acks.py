"""REPLY_ACK (vhost-user, "VHOST_USER_PROTOCOL_F_REPLY_ACK"): who is answered, and who is not."""

from collections.abc import Callable

from vhostd.driver.arena import Region
from vhostd.driver.conformance.case import NET, Row, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.conformance.told import ToldFrontend
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.driver.virtqueue import Virtqueue
from vhostd.protocol.messages import (
    U64,
    Config,
    MemRegion,
    MemTable,
    Message,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.protocol.wire import encode
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature

R = FrontendRequest
P = ProtocolFeature
ACK = 'vhost-user, "VHOST_USER_PROTOCOL_F_REPLY_ACK"'
MAC = int.from_bytes(b"\x02\x00\x00\x00\x00\x02", "little")

Given = tuple[Message, list[int]]
Maker = Callable[[Check, ToldFrontend, Virtqueue], Given]


def _region(check: Check, queue: Virtqueue) -> tuple[MemRegion, int]:
    (region,) = queue.arena.regions
    del check
    return MemRegion(region.gpa, region.length, region.front_uva, 0), queue.arena.fd(region)


def _table(check: Check, frontend: ToldFrontend, queue: Virtqueue) -> Given:
    del frontend
    region, fd = _region(check, queue)
    return MemTable((region,)), [fd]


def _add(check: Check, frontend: ToldFrontend, queue: Virtqueue) -> Given:
    del frontend
    region, fd = _region(check, queue)
    return SingleRegion(region), [fd]


def _remove(check: Check, frontend: ToldFrontend, queue: Virtqueue) -> Given:
    region, fd = _region(check, queue)
    frontend.send(R.ADD_MEM_REG, encode(SingleRegion(region)), [fd])
    return SingleRegion(region), []


def _addr(check: Check, frontend: ToldFrontend, queue: Virtqueue) -> Given:
    region, fd = _region(check, queue)
    frontend.send(R.SET_MEM_TABLE, encode(MemTable((region,))), [fd])
    frontend.send(R.SET_VRING_NUM, encode(VringState(0, queue.size)))
    desc, avail, used = queue.uvas
    return VringAddr(0, 0, desc, used, avail, queue.used_gpa), []


def _kick(check: Check, frontend: ToldFrontend, queue: Virtqueue) -> Given:
    frontend.set_features()
    message, fds = _addr(check, frontend, queue)
    frontend.send(R.SET_VRING_ADDR, encode(message), fds)
    frontend.send(R.SET_VRING_BASE, encode(VringState(0, 0)))
    return VringFd(0), [queue.kick_fd.number]


def _fixed(message: Message) -> Maker:
    return lambda check, frontend, queue: (message, [])


def _fd(which: str) -> Maker:
    return lambda check, frontend, queue: (VringFd(0), [getattr(queue, which).number])


REQUESTS: dict[str, Row] = {
    "set-owner": Row((R.SET_OWNER, None)),
    "set-features": Row((R.SET_FEATURES, lambda c, f, q: (U64(f.features), []))),
    "set-protocol-features": Row((R.SET_PROTOCOL_FEATURES, lambda c, f, q: (U64(int(f.protocol_features)), []))),
    "set-mem-table": Row((R.SET_MEM_TABLE, _table)),
    "set-vring-num": Row((R.SET_VRING_NUM, _fixed(VringState(0, 64)))),
    "set-vring-base": Row((R.SET_VRING_BASE, _fixed(VringState(0, 0)))),
    "set-vring-addr": Row((R.SET_VRING_ADDR, _addr)),
    "set-vring-kick": Row((R.SET_VRING_KICK, _kick)),
    "set-vring-call": Row((R.SET_VRING_CALL, _fd("call_fd"))),
    "set-vring-err": Row((R.SET_VRING_ERR, _fd("err_fd"))),
    "set-vring-call-none": Row((R.SET_VRING_CALL, _fixed(VringFd(0, no_fd=True)))),
    "set-vring-enable": Row((R.SET_VRING_ENABLE, _fixed(VringState(0, 1)))),
    "set-vring-disable": Row((R.SET_VRING_ENABLE, _fixed(VringState(0, 0)))),
    "add-mem-reg": Row((R.ADD_MEM_REG, _add), protocol=P.CONFIGURE_MEM_SLOTS),
    "rem-mem-reg": Row((R.REM_MEM_REG, _remove), protocol=P.CONFIGURE_MEM_SLOTS),
    "reset-device": Row((R.RESET_DEVICE, None), protocol=P.RESET_DEVICE),
    "set-status": Row((R.SET_STATUS, _fixed(U64(3))), protocol=P.STATUS),
}


def _made(check: Check, frontend: ToldFrontend, queue: Virtqueue, maker: Maker | None) -> tuple[bytes, list[int]]:
    if maker is None:
        return b"", []
    message, fds = maker(check, frontend, queue)
    return encode(message), fds


def _queue(check: Check) -> Virtqueue:
    return check.keep(Virtqueue(check.arena(Region(0x1000_0000, 1 << 20)), 64))


@case("VU-ACK-01", ACK, protocol=P.REPLY_ACK, rows=REQUESTS)
def need_reply_is_answered(check: Check, row: tuple[FrontendRequest, Maker | None]) -> None:
    """A request with need_reply and no reply of its own is answered with one u64, 0 for success."""
    request, maker = row
    frontend, queue = check.negotiated(), _queue(check)
    payload, fds = _made(check, frontend, queue, maker)
    check.equal(check.acked(frontend, request, payload, fds), 0, "a u64 of")
    check.answers(frontend)


@case("VU-ACK-02", ACK, protocol=P.REPLY_ACK, rows=REQUESTS)
def no_need_no_reply(check: Check, row: tuple[FrontendRequest, Maker | None]) -> None:
    """Without need_reply a request that has no reply of its own is not answered."""
    request, maker = row
    frontend, queue = check.negotiated(), _queue(check)
    payload, fds = _made(check, frontend, queue, maker)
    frontend.send(request, payload, fds)
    check.answers(frontend)


@case("VU-ACK-03", ACK, rows={name: row for name, row in REQUESTS.items() if name != "set-protocol-features"})
def not_negotiated(check: Check, row: tuple[FrontendRequest, Maker | None]) -> None:
    """Before REPLY_ACK is negotiated need_reply has no meaning: nothing is answered."""
    request, maker = row
    frontend = check.negotiated(protocol=PROTOCOL_FEATURES & ~P.REPLY_ACK)
    queue = _queue(check)
    payload, fds = _made(check, frontend, queue, maker)
    frontend.send(request, payload, fds, flags=VERSION | FLAG_NEED_REPLY)
    check.answers(frontend)


OWN = {
    "get-features": Row((R.GET_FEATURES, b"")),
    "get-protocol-features": Row((R.GET_PROTOCOL_FEATURES, b"")),
    "get-queue-num": Row((R.GET_QUEUE_NUM, b""), protocol=P.MQ),
    "get-config": Row((R.GET_CONFIG, encode(Config(0, 8, 0, bytes(8)))), protocol=P.CONFIG),
    "get-vring-base": Row((R.GET_VRING_BASE, encode(VringState(0, 0)))),
    "get-max-mem-slots": Row((R.GET_MAX_MEM_SLOTS, b""), protocol=P.CONFIGURE_MEM_SLOTS),
    "get-status": Row((R.GET_STATUS, b""), protocol=P.STATUS),
}


@case("VU-ACK-04", ACK, protocol=P.REPLY_ACK, rows=OWN)
def one_reply_is_enough(check: Check, row: tuple[FrontendRequest, bytes]) -> None:
    """A request that has a reply of its own is answered by that one alone, with need_reply as without."""
    request, payload = row
    frontend = check.negotiated()
    frontend.send(request, payload, flags=VERSION | FLAG_NEED_REPLY)
    frontend.reply(request).close_fds()
    check.answers(frontend)


@case("VU-ACK-05", ACK, protocol=P.REPLY_ACK | P.CONFIGURE_MEM_SLOTS)
def a_region_that_is_not_there(check: Check) -> None:
    """A request that fails is answered with a u64 other than 0: REM_MEM_REG of a region that was never added."""
    frontend = check.negotiated()
    message = SingleRegion(MemRegion(0x7000_0000, 1 << 20, 0x7000_0000, 0))
    answer = check.acked(frontend, R.REM_MEM_REG, message)
    check.expect(answer != 0, "an answer other than 0, or a closed connection", "0: success")


@case(
    "VU-ACK-06",
    f"{ACK}; virtio 5.1.4.1",
    kinds=NET,
    protocol=P.REPLY_ACK | P.NET_MTU,
    rows={"0": 0, "67": 67, "65536": 65536},
)
def an_mtu_that_cannot_be(check: Check, mtu: int) -> None:
    """A request that fails is answered with a u64 other than 0: NET_SET_MTU outside 68 to 65535."""
    frontend = check.negotiated()
    answer = check.acked(frontend, R.NET_SET_MTU, U64(mtu))
    check.expect(answer != 0, "an answer other than 0, or a closed connection", "0: success")


@case("VU-ACK-07", ACK, protocol=P.REPLY_ACK)
def in_order(check: Check) -> None:
    """Answers come in the order of the requests, each with its request's number."""
    frontend = check.negotiated()
    none = encode(VringFd(0, no_fd=True))
    order = [R.SET_VRING_CALL, R.GET_FEATURES, R.SET_VRING_ERR, R.GET_PROTOCOL_FEATURES, R.SET_VRING_CALL]
    for request in order:
        payload = none if request in {R.SET_VRING_CALL, R.SET_VRING_ERR} else b""
        frontend.send(request, payload, flags=VERSION | FLAG_NEED_REPLY)
    for request in order:
        frontend.reply(request)
