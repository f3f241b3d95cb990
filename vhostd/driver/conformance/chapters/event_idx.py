"""EVENT_IDX: used_event and avail_event (virtio 2.7.7, 2.7.10), and IN_ORDER (2.7.9)."""

import contextlib
import os
import time

from vhostd.driver.conformance.case import BLOCK, Level, RingFeature, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check, Guest

F = RingFeature
EVENT = int(F.EVENT_IDX)
USED_EVENT = "virtio 2.7.7.2"
AVAIL_EVENT = "virtio 2.7.10.2"


def _done(check: Check, guest: Guest) -> None:
    check.until(lambda: guest.queue.used_idx == guest.queue.next_avail, "the work to be done", "it is not")


def _called(guest: Guest, seconds: float = 0.1) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(guest.queue.call_fd.number) > 0
        time.sleep(0.002)
    return False


def _one(check: Check, guest: Guest, number: int) -> None:
    guest.work().submit(number)
    _done(check, guest)
    guest.queue.reap()


def _rested(check: Check, guest: Guest) -> None:
    """Have the ring at rest, with no call pending."""
    guest.works(1)
    check.quiet(guest.queue, 0.02)
    guest.queue.take_call()


@case("EVT-01", USED_EVENT, features=EVENT, rows={str(n): n for n in (1, 2, 3, 8)})
def called_at_used_event(check: Check, behind: int) -> None:
    """The device MUST send a notification when the used element at used_event has been written."""
    with check.guest() as guest:
        _rested(check, guest)
        guest.queue.used_event = guest.queue.last_used + behind - 1 & 0xFFFF
        for number in range(behind):
            guest.work().submit(number)
            _done(check, guest)
        check.expect(_called(guest, check.timeout), f"a call at used element {behind}", "none in time")


@case("EVT-02", USED_EVENT, level=Level.SHOULD, features=EVENT, rows={str(n): n for n in (2, 3, 8)})
def not_called_before(check: Check, behind: int) -> None:
    """The device SHOULD NOT send a notification before the used element at used_event is written."""
    with check.guest() as guest:
        _rested(check, guest)
        guest.queue.used_event = guest.queue.last_used + behind - 1 & 0xFFFF
        for number in range(behind - 1):
            guest.work().submit(number)
            _done(check, guest)
        check.expect(not _called(guest), f"no call before used element {behind}", "a call")


@case("EVT-03", USED_EVENT, level=Level.SHOULD, features=EVENT)
def not_called_behind(check: Check) -> None:
    """An event that lies behind what was used is 65535 elements away: no call."""
    with check.guest() as guest:
        _rested(check, guest)
        guest.queue.disarm()
        for number in range(6):
            _one(check, guest, number)
            guest.queue.disarm()
        check.expect(not _called(guest), "no call", "a call")


@case("EVT-04", "virtio 2.7.7.2", features=EVENT)
def avail_flags_are_not_looked_at(check: Check) -> None:
    """With EVENT_IDX the device MUST ignore the flags of the available ring."""
    with check.guest() as guest:
        _rested(check, guest)
        guest.queue.avail_flags = 1
        guest.queue.used_event = guest.queue.last_used
        guest.work().submit()
        check.expect(_called(guest, check.timeout), "a call, whatever the flags say", "none in time")
        guest.queue.avail_flags = 0


@case("EVT-05", AVAIL_EVENT, features=EVENT)
def avail_event_is_kept(check: Check) -> None:
    """An idle device asks for a kick at the next entry: avail_event is the index it waits for."""
    with check.guest() as guest:
        for number in range(12):
            _one(check, guest, number)
            check.until(
                lambda: guest.queue.avail_event == guest.queue.next_avail,
                "avail_event at the next entry, once the device is idle",
                f"{guest.queue.avail_event} instead of {guest.queue.next_avail}",
            )


@case("EVT-06", AVAIL_EVENT, features=EVENT, rows={"65535": 65535, "65530": 65530, "32767": 32767})
def over_the_wrap(check: Check, base: int) -> None:
    """Both events run modulo 65536."""
    with check.guest(base=base, size=16) as guest:
        guest.works(12)
        check.until(lambda: guest.queue.avail_event == guest.queue.next_avail, "avail_event in step", "it is not")


@case("EVT-07", "virtio 2.7.10", features=EVENT, kinds=BLOCK, rows={"20": 20, "80": 80})
def kicks_are_few(check: Check, count: int) -> None:
    """A batch is announced by one kick: the device asks for none of those it will see anyway."""
    with check.guest(size=256) as guest:
        work = guest.work()
        items = [work.submit(number, kick=False) for number in range(count)]
        guest.queue.kick()
        for item in items:
            work.finish(item)
        check.equal(guest.queue.kicks, 1, "kicks")


@case("EVT-08", "virtio 2.7.10, 2.7.7", features=EVENT, timeout=30)
def nothing_is_lost(check: Check) -> None:
    """Sleeping driver and sleeping device never miss each other: chains one by one, each waited for by a call."""
    with check.guest(size=16) as guest:
        guest.works(400)


@case("EVT-09", "virtio 2.7.7, 2.7.10", timeout=30)
def nothing_is_lost_by_flags(check: Check) -> None:
    """Without EVENT_IDX, too: chains one by one, each waited for by a call."""
    with check.guest(size=16, features=ALL_FEATURES & ~EVENT) as guest:
        guest.works(400)


@case("ORD-01", "virtio 2.7.9", features=int(F.IN_ORDER), rows={"8": 8, "32": 32})
def used_in_order(check: Check, count: int) -> None:
    """With IN_ORDER the device uses buffers in the order in which they were made available."""
    with check.guest(features=ALL_FEATURES | int(F.IN_ORDER), size=128) as guest:
        queue = guest.queue
        work = guest.work()
        for number in range(count):
            work.submit(number, kick=False, indirect=False)
        heads = [int.from_bytes(guest.arena.read(queue.avail_gpa + 4 + 2 * n, 2), "little") for n in range(count)]
        queue.kick()
        check.until(lambda: queue.used_idx == count % 65536, "all to be used", f"{queue.used_idx} of {count}")
        last = -1
        for slot in range(count):
            head = int.from_bytes(guest.arena.read(queue.used_gpa + 4 + 8 * slot, 4), "little")
            if head == 0 and slot:  # a batch is told by its last element only
                continue
            at = heads.index(head)
            check.expect(at > last, "used elements in the order of the available ones", f"head {head} too late")
            last = at


@case("ORD-02", "virtio 2.7.9", features=int(F.IN_ORDER))
def in_order_works(check: Check) -> None:
    """With IN_ORDER negotiated the device works."""
    with check.guest(features=ALL_FEATURES | int(F.IN_ORDER)) as guest:
        guest.works(20)
