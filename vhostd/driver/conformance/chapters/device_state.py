"""Device state, RARP and MTU: what a migration and a network card need (vhost-user, "Migrating back-end state")."""

import os

from vhostd.driver.conformance.case import NET, Level, Mark, NetFeature, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.frames import GUEST
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.fds import Fd
from vhostd.protocol.messages import U64, DeviceStateTransfer
from vhostd.protocol.wire import encode
from vhostd.spec.vhost_user import DEVICE_STATE_NO_FD, FrontendRequest, ProtocolFeature, TransferDirection

R = FrontendRequest
P = ProtocolFeature
STATE = 'vhost-user, "Migrating back-end state"'
TYPES = 'vhost-user, "Front-end message types"'
WITH_STATE = PROTOCOL_FEATURES | P.DEVICE_STATE


def _save(check: Check) -> bytes:
    """Fetch the state of a stopped device."""
    frontend = check.negotiated(protocol=WITH_STATE)
    read, write = (check.keep(Fd(fd)) for fd in os.pipe2(os.O_CLOEXEC))
    answer, fds = frontend.ask(
        R.SET_DEVICE_STATE_FD, U64, DeviceStateTransfer(TransferDirection.SAVE, 0), [write.number]
    )
    write.close()
    source = fds[0] if fds else read
    check.expect(answer.value & 0xFF == 0, "an answer of 0 or the no-descriptor flag", f"{answer.value:#x}")
    check.equal(not fds, bool(answer.value & DEVICE_STATE_NO_FD), "bit 8 as long as no descriptor comes,")
    os.set_blocking(source.number, True)
    parts = []
    while part := os.read(source.number, 65536):
        parts.append(part)
    check.equal(frontend.ask_u64(R.CHECK_DEVICE_STATE), 0, "an answer of")
    frontend.close()
    return b"".join(parts)


@case("VU-STATE-01", STATE, protocol=P.DEVICE_STATE)
def saved(check: Check) -> None:
    """The back-end writes its state, closes its end of the pipe, and says by CHECK_DEVICE_STATE that it succeeded."""
    _save(check)


@case("VU-STATE-02", STATE, protocol=P.DEVICE_STATE)
def loaded(check: Check) -> None:
    """A state that was saved can be loaded before the device starts."""
    state = _save(check)
    frontend = check.negotiated(protocol=WITH_STATE)
    read, write = (check.keep(Fd(fd)) for fd in os.pipe2(os.O_CLOEXEC))
    message = DeviceStateTransfer(TransferDirection.LOAD, 0)
    _, fds = frontend.ask(R.SET_DEVICE_STATE_FD, U64, message, [read.number])
    read.close()
    os.write((fds[0] if fds else write).number, state)
    write.close()
    for fd in fds:
        fd.close()
    check.equal(frontend.ask_u64(R.CHECK_DEVICE_STATE), 0, "an answer of")
    frontend.close()
    with check.guest() as guest:
        guest.works(1)


@case("VU-STATE-03", STATE, protocol=P.DEVICE_STATE)
def a_state_that_is_none(check: Check) -> None:
    """CHECK_DEVICE_STATE says that a state that is none could not be loaded."""
    frontend = check.negotiated(protocol=WITH_STATE)
    read, write = (check.keep(Fd(fd)) for fd in os.pipe2(os.O_CLOEXEC))
    message = DeviceStateTransfer(TransferDirection.LOAD, 0)
    _, fds = frontend.ask(R.SET_DEVICE_STATE_FD, U64, message, [read.number])
    read.close()
    os.write((fds[0] if fds else write).number, b"\xff" * 100)
    write.close()
    for fd in fds:
        fd.close()
    check.expect(frontend.ask_u64(R.CHECK_DEVICE_STATE) != 0, "an answer other than 0", "0")


@case("VU-RARP-01", f"{TYPES}, VHOST_USER_SEND_RARP", kinds=NET, protocol=P.RARP)
def rarp_is_taken(check: Check) -> None:
    """SEND_RARP asks the back-end to announce an address; it may come before there are rings."""
    frontend = check.negotiated()
    frontend.tell(R.SEND_RARP, U64(int.from_bytes(GUEST, "little")))
    check.answers(frontend)


@case("VU-RARP-02", f"{TYPES}, VHOST_USER_SEND_RARP", kinds=NET, protocol=P.RARP, marks=[Mark.WIRE])
def rarp_is_sent(check: Check) -> None:
    """SEND_RARP has a RARP broadcast sent that bears the address."""
    wire = check.wire()
    frontend = check.negotiated()
    frontend.tell(R.SEND_RARP, U64(int.from_bytes(GUEST, "little")))
    seen = wire.expect(lambda data: data[12:14] == b"\x80\x35", check.timeout)
    check.equal(seen[:12], b"\xff" * 6 + GUEST, "destination and source")


@case(
    "VU-MTU-01",
    f"{TYPES}, VHOST_USER_NET_SET_MTU",
    kinds=NET,
    protocol=P.NET_MTU,
    rows={"68": 68, "1280": 1280, "1500": 1500},
)
def mtu_is_taken(check: Check, mtu: int) -> None:
    """NET_SET_MTU tells the MTU, 68 to 65535, before the device starts."""
    before = int.from_bytes(check.target.offer.config[10:12], "little")
    with check.guest(start=False) as guest:
        try:
            guest.frontend.tell(R.NET_SET_MTU, U64(mtu))
            guest.session.start()
            guest.works(2)
        finally:
            if before:
                guest.frontend.send(R.NET_SET_MTU, encode(U64(before)))
                guest.frontend.ask_u64(R.GET_FEATURES)


@case(
    "VU-MTU-02",
    f"{TYPES}, VHOST_USER_NET_SET_MTU; virtio 5.1.4",
    kinds=NET,
    level=Level.SHOULD,
    protocol=P.NET_MTU | P.CONFIG,
    features=int(NetFeature.MTU),
)
def mtu_is_told(check: Check) -> None:
    """The MTU that was set is the one that configuration space shows."""
    frontend = check.negotiated()
    before = int.from_bytes(check.target.offer.config[10:12], "little")
    frontend.tell(R.NET_SET_MTU, U64(1300))
    try:
        check.equal(int.from_bytes(frontend.config(0, 12)[10:12], "little"), 1300, "mtu")
    finally:
        if before:
            frontend.send(R.NET_SET_MTU, encode(U64(before)))
            frontend.ask_u64(R.GET_FEATURES)
