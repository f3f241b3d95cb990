"""A connection's life: status, reset, who comes after whom, what is left behind."""

import os
import time

from vhostd.driver import procfs
from vhostd.driver.arena import Region
from vhostd.driver.conformance.case import BLOCK, Level, Mark, RingFeature, Row, case
from vhostd.driver.conformance.check import Check
from vhostd.driver.conformance.verdict import Fault
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.fds import Fd
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Status

R = FrontendRequest
P = ProtocolFeature
TYPES = 'vhost-user, "Front-end message types"'
GET_STATUS, SET_STATUS = f"{TYPES}, VHOST_USER_GET_STATUS", f"{TYPES}, VHOST_USER_SET_STATUS"
RESET = f"{TYPES}, VHOST_USER_RESET_DEVICE"
STARTED = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
COMMUNICATION = 'vhost-user, "Communication"'

STEPS = {
    "acknowledge": Status.ACKNOWLEDGE,
    "driver": Status.ACKNOWLEDGE | Status.DRIVER,
    "features-ok": Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK,
    "driver-ok": STARTED,
}


@case("VU-STAT-01", GET_STATUS, protocol=P.STATUS)
def begins_at_0(check: Check) -> None:
    """The device status of a new connection is 0."""
    check.equal(check.negotiated().status(), 0, "status")


@case("VU-STAT-02", f"{SET_STATUS}; virtio 2.1", protocol=P.STATUS, rows=STEPS)
def read_back(check: Check, status: Status) -> None:
    """GET_STATUS returns the status that SET_STATUS set."""
    frontend = check.negotiated()
    frontend.set_features()
    frontend.set_status(status)
    check.equal(frontend.status(), int(status), "status")


@case("VU-STAT-03", f"{SET_STATUS}; virtio 2.1, 2.4", protocol=P.STATUS)
def zero_resets(check: Check) -> None:
    """Status 0 resets the device: it is stopped, and the next driver starts from nothing."""
    with check.guest() as guest:
        check.equal(guest.frontend.status() & STARTED, int(STARTED), "status")
        guest.works(2)
        guest.frontend.set_status(0)
        check.equal(guest.frontend.status(), 0, "status")
        guest.work().submit(kick=False)
        guest.queue.kick(force=True)
        check.expect(check.quiet(guest.queue), "nothing to be used after the reset", "a chain was used")
        guest.frontend.bases.clear()
        for queue in guest.queues:
            queue.reset()
        guest.session.start()
        guest.works(2)


@case("VU-STAT-04", "virtio 2.1.2, 2.1", protocol=P.STATUS)
def no_need_of_reset(check: Check) -> None:
    """DEVICE_NEEDS_RESET is set only after an error the device cannot recover from."""
    with check.guest() as guest:
        guest.works(4)
        check.expect(not guest.frontend.status() & Status.DEVICE_NEEDS_RESET, "the bit clear", "it is set")


@case("VU-STAT-05", SET_STATUS, lacks_protocol=P.STATUS)
def without_status(check: Check) -> None:
    """A back-end without STATUS is started and stopped by its rings alone."""
    with check.guest() as guest:
        guest.works(2)


@case("VU-RESET-01", RESET, protocol=P.RESET_DEVICE)
def to_the_initial_state(check: Check) -> None:
    """RESET_DEVICE resets the device to its initial state: all rings are disabled and stopped."""
    with check.guest() as guest:
        guest.works(2)
        guest.frontend.reset_device()
        guest.work().submit(kick=False)
        guest.queue.kick(force=True)
        check.expect(check.quiet(guest.queue), "nothing to be used after the reset", "a chain was used")


@case("VU-RESET-02", RESET, protocol=P.RESET_DEVICE, rows={"1": 1, "5": 5})
def and_again(check: Check, times: int) -> None:
    """After RESET_DEVICE the device can be started again on the same connection."""
    with check.guest() as guest:
        for _ in range(times):
            guest.works(2)
            guest.frontend.reset_device()
            for queue in guest.queues:
                queue.reset()
            guest.session.start()
        guest.works(2)


@case("VU-RESET-03", RESET, protocol=P.RESET_DEVICE)
def before_any_start(check: Check) -> None:
    """RESET_DEVICE may come before the device was started, any number of times: QEMU sends it at machine reset."""
    frontend = check.negotiated()
    for _ in range(3):
        frontend.reset_device()
    check.answers(frontend)


@case("VU-RESET-04", RESET, protocol=P.RESET_DEVICE)
def features_are_renegotiated(check: Check) -> None:
    """After RESET_DEVICE a driver may accept other features than the last one."""
    with check.guest(features=int(RingFeature.VERSION_1 | RingFeature.PROTOCOL_FEATURES)) as guest:
        guest.works(1)
        guest.frontend.reset_device()
        for queue in guest.queues:
            queue.reset()
        guest.frontend.features |= check.offered & int(RingFeature.INDIRECT_DESC)
        guest.session.start()
        guest.works(1)


@case("VU-LIFE-01", COMMUNICATION, rows={"idle": "idle", "negotiated": "negotiated", "running": "running"})
def the_next_front_end(check: Check, how: str) -> None:
    """When a front-end goes, whatever it was doing, the next one is served from the beginning."""
    for _ in range(4):
        if how == "idle":
            check.connect().close()
        elif how == "negotiated":
            check.negotiated().close()
        else:
            with check.guest() as guest:
                guest.works(1)
    with check.guest() as guest:
        guest.works(2)


@case("VU-LIFE-02", COMMUNICATION, kinds=BLOCK)
def gone_in_full_flight(check: Check) -> None:
    """A front-end that goes with requests in flight leaves a working disk."""
    for _ in range(4):
        with check.guest(size=256) as guest:
            driver = guest.block()
            for n in range(60):
                driver.submit(Request.IN, check.scratch.first + n % 64, read_len=4096, kick=n % 20 == 19)
    with check.guest() as guest:
        guest.works(4)


@case(
    "VU-LIFE-03", COMMUNICATION, rows={"table": PROTOCOL_FEATURES & ~P.CONFIGURE_MEM_SLOTS, "slots": PROTOCOL_FEATURES}
)
def other_rings_and_memory(check: Check, protocol: ProtocolFeature) -> None:
    """A connection starts from nothing: rings and memory of the last one are gone."""
    for size, gpa in ((16, 0), (256, 1 << 32), (64, 1 << 20)):
        with check.guest(size=size, arena=check.arena(Region(gpa, 16 << 20)), protocol_features=protocol) as guest:
            guest.works(3)


def _settled(check: Check, limit: int | None) -> int:
    """Descriptors of the back-end once it had time to close what is gone."""
    deadline = time.monotonic() + 2.0
    while True:
        count = procfs.fd_count(check.target.pid)
        if count is None:
            check.offers(False, "a look at its descriptors in /proc")
            return 0
        if limit is None or count <= limit or time.monotonic() > deadline:
            return count
        time.sleep(0.02)


def _visit(check: Check, what: str) -> None:
    if what == "negotiated":
        check.negotiated().close()
        return
    protocol = PROTOCOL_FEATURES & ~P.CONFIGURE_MEM_SLOTS if what == "table" else PROTOCOL_FEATURES
    with check.guest(protocol_features=protocol) as guest:
        guest.works(1)
        if what == "calls":
            for _ in range(4):
                guest.frontend.set_call(check.target.work_ring, guest.queue.call_fd)
                guest.frontend.set_err(check.target.work_ring, guest.queue.err_fd)
        if what == "stopped":
            guest.session.stop()
            guest.session.start()
            guest.session.stop()
        if what == "reset":
            guest.frontend.reset_device()
        if what == "channels":
            for _ in range(4):
                guest.frontend.open_channel()
        if what == "logs":
            with Fd(os.memfd_create("log")) as log:
                os.ftruncate(log.number, 1 << 20)
                for _ in range(4):
                    guest.frontend.set_log(1 << 20, log)
        if what == "inflight":
            for _ in range(4):
                inflight, fd = guest.frontend.get_inflight(1, 128)
                with fd:
                    guest.frontend.set_inflight(inflight, fd)


VISITS = {
    "negotiated": "negotiated",
    "started": "started",
    "table": "table",
    "calls": "calls",
    "stopped": "stopped",
    "reset": Row("reset", protocol=P.RESET_DEVICE),
    "channels": Row("channels", protocol=P.BACKEND_REQ),
    "logs": Row("logs", protocol=P.LOG_SHMFD),
    "inflight": Row("inflight", protocol=P.INFLIGHT_SHMFD),
}


@case("VU-LIFE-04", 'vhost-user, "Communication", ancillary data', level=Level.SHOULD, marks=[Mark.PROC], rows=VISITS)
def descriptors_go(check: Check, what: str) -> None:
    """Descriptors that came with a connection are closed when it ends: twenty leave no more than one does."""
    for _ in range(2):
        _visit(check, what)
    time.sleep(0.1)
    before = _settled(check, None)
    for _ in range(20):
        _visit(check, what)
    after = _settled(check, before)
    check.expect(after <= before, f"{before} open descriptors", f"{after} after 20 more connections", Fault.FD_LEAK)


@case("VU-LIFE-05", 'vhost-user, "Memory region description"', level=Level.SHOULD, marks=[Mark.PROC])
def mappings_go(check: Check) -> None:
    """Memory that came with a connection is unmapped when it ends."""
    for _ in range(2):
        _visit(check, "started")
    time.sleep(0.1)
    before = procfs.map_count(check.target.pid)
    check.offers(before is not None, "a look at its mappings in /proc")
    assert before is not None
    for _ in range(10):
        _visit(check, "started")
    check.until(
        lambda: (procfs.map_count(check.target.pid) or 0) <= before,
        f"{before} mappings of memory files",
        "more after 10 more connections",
    )
