"""Kick, call and error descriptors (vhost-user, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR)."""

import contextlib
import os
import time

from vhostd.driver.conformance.case import BLOCK, Level, RingFeature, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check
from vhostd.driver.conformance.verdict import Fault
from vhostd.fds import Fd
from vhostd.protocol.messages import VringFd
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

R = FrontendRequest
TYPES = 'vhost-user, "Front-end message types"'
KICK, CALL, ERR = (f"{TYPES}, VHOST_USER_SET_VRING_{which}" for which in ("KICK", "CALL", "ERR"))
FLAGS = ALL_FEATURES & ~int(RingFeature.EVENT_IDX)


def _eventfd() -> Fd:
    return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def _rings(fd: Fd, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(fd.number) > 0
        time.sleep(0.002)
    return False


@case("VU-CALL-01", CALL)
def a_call_comes(check: Check) -> None:
    """The call descriptor is signalled when buffers were used and the driver wants to know."""
    with check.guest(features=FLAGS) as guest:
        work = guest.work()
        guest.queue.arm()
        work.submit()
        check.expect(_rings(guest.queue.call_fd, check.timeout), "a call", "none in time")


@case("VU-CALL-02", CALL, rows={"1": 1, "10": 10})
def replaced_while_running(check: Check, times: int) -> None:
    """The call descriptor may be replaced while the ring runs: calls go to the new one from then on."""
    with check.guest(features=FLAGS) as guest:
        index = check.target.work_ring
        guest.works(1)
        for _ in range(times):
            with _eventfd() as fresh:
                guest.frontend.set_call(index, fresh)
                check.answers(guest.frontend)
                guest.queue.arm()
                guest.work().submit()
                check.expect(_rings(fresh, check.timeout), "a call at the new descriptor", "none in time")
                guest.frontend.set_call(index, guest.queue.call_fd)
                check.answers(guest.frontend)
                guest.queue.reap()


@case("VU-CALL-03", CALL)
def polling(check: Check) -> None:
    """With the invalid descriptor flag the driver polls: the ring works without a call descriptor."""
    with check.guest() as guest:
        index = check.target.work_ring
        guest.frontend.set_call(index, None)
        check.answers(guest.frontend)
        guest.work().submit(1)
        guest.queue.wait(check.timeout, poll=True)
        check.answers(guest.frontend)


@case("VU-CALL-04", CALL, level=Level.SHOULD)
def a_full_counter(check: Check) -> None:
    """A call descriptor that nobody reads does not stop the ring."""
    with check.guest(features=FLAGS) as guest:
        guest.works(1)
        guest.frontend.set_call(check.target.work_ring, guest.queue.call_fd)
        full = False
        while not full:  # a call for the work above may still come
            guest.queue.take_call()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(guest.queue.call_fd.number, 2**64 - 2)
                full = True
        for number in range(5):
            guest.queue.arm()
            guest.work().submit(number)
            check.until(lambda: guest.queue.used_idx == guest.queue.next_avail, "the work to be done", "it is not")
            guest.queue.reap()


@case("VU-CALL-05", CALL, level=Level.SHOULD)
def before_and_after_kick(check: Check) -> None:
    """A call descriptor that comes after the ring started is as good as one that came before."""
    with check.guest(start=False, features=FLAGS) as guest:
        frontend = guest.frontend
        frontend.set_features()
        frontend.share(guest.arena)
        for ring, queue in enumerate(guest.queues):
            frontend.start_ring(ring, queue)
            frontend.enable(ring)
        work = guest.work()
        guest.queue.arm()
        work.submit(0)
        check.until(lambda: guest.queue.used_idx == guest.queue.next_avail, "the work to be done", "it is not")
        frontend.set_call(check.target.work_ring, guest.queue.call_fd)
        check.answers(frontend)
        guest.queue.reap()
        guest.works(2)


@case("VU-CALL-06", "virtio 2.7.7.2", rows={"1": 1, "20": 20})
def no_call_is_wanted(check: Check, count: int) -> None:
    """If the flags field of the available ring is 1, the device SHOULD NOT send a notification."""
    with check.guest(features=FLAGS) as guest:
        guest.works(1)
        guest.queue.disarm()
        time.sleep(0.02)
        guest.queue.take_call()
        for number in range(count):
            guest.work().submit(number)
            check.until(lambda: guest.queue.used_idx == guest.queue.next_avail, "the work to be done", "it is not")
            guest.queue.reap()
        check.expect(not _rings(guest.queue.call_fd, 0.05), "no call", "a call")


@case("VU-KICK-01", KICK)
def replaced_kick(check: Check) -> None:
    """The kick descriptor of a ring that is stopped and started again may be another one."""
    with check.guest() as guest:
        for _ in range(3):
            guest.works(1)
            guest.session.stop()
            guest.session.start()
        guest.works(1)


@case("VU-KICK-02", KICK, rows={"2": 2, "100": 100, "2-to-the-63": 2**63})
def many_kicks_at_once(check: Check, value: int) -> None:
    """The value in the kick descriptor has no meaning: any number of kicks is a kick."""
    with check.guest() as guest:
        item = guest.work()
        piece = item.submit(kick=False)
        guest.queue.publish()
        os.eventfd_write(guest.queue.kick_fd.number, value)
        item.finish(piece)
        guest.works(2)


@case("VU-KICK-03", KICK)
def kicks_for_nothing(check: Check) -> None:
    """A kick when nothing is available is harmless."""
    with check.guest() as guest:
        for _ in range(50):
            os.eventfd_write(guest.queue.kick_fd.number, 1)
        check.expect(check.quiet(guest.queue, 0.05), "nothing to be used", "something was used")
        guest.works(2)


@case("VU-KICK-04", KICK, level=Level.SHOULD, protocol=ProtocolFeature.REPLY_ACK)
def no_kick_descriptor(check: Check) -> None:
    """With the invalid descriptor flag there is no kick descriptor and the back-end polls: the ring starts."""
    with check.guest(start=False) as guest:
        frontend = guest.frontend
        frontend.set_features()
        frontend.share(guest.arena)
        index = check.target.work_ring
        for ring, queue in enumerate(guest.queues):
            frontend.set_call(ring, queue.call_fd)
            frontend.set_num(ring, queue.size)
            frontend.set_base(ring, 0)
            frontend.set_addr(ring, queue)
        answer = check.acked(frontend, R.SET_VRING_KICK, VringFd(index, no_fd=True))
        check.offers(answer == 0, "polling without a kick descriptor")
        for ring in range(len(guest.queues)):
            frontend.enable(ring)
        work = guest.work()
        work.finish(work.submit())


@case("VU-ERR-01", ERR)
def none_without_an_error(check: Check) -> None:
    """The error descriptor is for errors: a ring that works does not signal it."""
    with check.guest() as guest:
        guest.works(8)
        check.equal(guest.queue.take_err(), 0, "so many signals of the error descriptor,")


@case("VU-ERR-02", ERR)
def without_an_error_descriptor(check: Check) -> None:
    """A ring works without an error descriptor."""
    with check.guest() as guest:
        guest.frontend.set_err(check.target.work_ring, None)
        check.answers(guest.frontend)
        guest.works(4)


@case("VU-ERR-03", f"{ERR}; virtio 2.7.6, 2.1.2", kinds=BLOCK, level=Level.SHOULD, rows={"head": "head", "idx": "idx"})
def an_error_is_signalled(check: Check, which: str) -> None:
    """The error descriptor is signalled when an error occurs in the ring: a head outside it, an idx too far ahead."""
    with check.guest(size=16) as guest:
        guest.works(1)
        queue = guest.queue
        guest.frontend.set_err(0, queue.err_fd)
        if which == "head":
            check.note("available: head 0xffff of a ring of 16")
            queue.raw_push(0xFFFF)
            queue.kick(force=True)
        else:
            check.note("avail.idx: 100 ahead of a ring of 16")
            queue.avail_idx = queue.avail_idx + 100 & 0xFFFF
            os.eventfd_write(queue.kick_fd.number, 1)
        check.expect(
            _rings(queue.err_fd, 1.0), "the error descriptor to be signalled", "silence", Fault.SILENT_RING_ERROR
        )
