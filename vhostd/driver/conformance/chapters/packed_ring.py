"""The packed ring (virtio 2.8), on a disk's request queue or a card's transmit queue."""

import contextlib
import os
import time

from vhostd.driver.conformance.case import BLOCK, Level, RingFeature, Row, case
from vhostd.driver.conformance.check import ALL_FEATURES, QUIET, Check, Guest
from vhostd.spec.blk import SECTOR_LEN

F = RingFeature
PACKED = int(F.RING_PACKED)
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2  # RING_EVENT_FLAGS_* (2.8.14)
BASE = 'vhost-user, "Front-end message types", VHOST_USER_GET_VRING_BASE'
MODES = {
    "flags-direct": Row(ALL_FEATURES & ~int(F.EVENT_IDX | F.INDIRECT_DESC)),
    "flags-indirect": Row(ALL_FEATURES & ~int(F.EVENT_IDX), features=int(F.INDIRECT_DESC)),
    "event-idx-direct": Row(ALL_FEATURES & ~int(F.INDIRECT_DESC), features=int(F.EVENT_IDX)),
    "event-idx-indirect": Row(ALL_FEATURES, features=int(F.EVENT_IDX | F.INDIRECT_DESC)),
}
SIZES = {str(n): n for n in (4, 7, 8, 31, 64, 100, 256, 1024)}


def _batch(guest: Guest, count: int) -> None:
    work = guest.work()
    items = [work.submit(number, kick=False) for number in range(count)]
    guest.queue.kick()
    for item in items:
        work.finish(item)


def _room(guest: Guest) -> int:
    each = 1 if guest.queue.indirect else 3 if guest.check.is_block else 2
    return max(1, guest.queue.size // each)


def _quiet(guest: Guest, place: tuple[int, int]) -> bool:
    """Whether the descriptor at a place, slot and wrap counter, is not used for a while."""
    slot, wrap = place
    time.sleep(QUIET)
    return guest.queue.read_packed(slot).flags & (AVAIL | USED) != (AVAIL | USED if wrap else 0)


def _called(guest: Guest, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(guest.queue.call_fd.number) > 0
        time.sleep(0.002)
    return False


@case("PKD-01", "virtio 2.8.10.1", features=PACKED, rows=SIZES)
def every_size(check: Check, size: int) -> None:
    """A packed ring has any number of entries up to 32768, a power of 2 or not."""
    with check.guest(packed=True, size=size, features=ALL_FEATURES & ~int(F.INDIRECT_DESC)) as guest:
        guest.works(size + 3 if size <= 64 else 4)
        for _ in range(2):
            _batch(guest, _room(guest))


@case("PKD-02", "virtio 2.8.7, 2.8.14", features=PACKED, rows=MODES)
def every_mode(check: Check, features: int) -> None:
    """Direct and indirect chains, notifications by flags and by descriptor: each pairing works."""
    with check.guest(packed=True, size=64, features=features) as guest:
        for count in (1, 5, 20, 1):
            _batch(guest, min(count, _room(guest)))


@case("PKD-03", "virtio 2.8.1", features=PACKED, rows=MODES)
def wrap_counters(check: Check, features: int) -> None:
    """Both sides flip their wrap counter at the end of the ring: many rounds of a small ring."""
    with check.guest(packed=True, size=8, features=features) as guest:
        for _ in range(12):
            _batch(guest, min(3, _room(guest)))
        guest.works(20)


@case("PKD-04", "virtio 2.8.1, 2.8.22", features=PACKED)
def used_flags(check: Check) -> None:
    """A used descriptor has AVAIL and USED both equal to the device's wrap counter."""
    with check.guest(packed=True, size=8, features=ALL_FEATURES & ~int(F.INDIRECT_DESC)) as guest:
        for _ in range(9):
            slot, wrap = guest.queue.avail_place
            guest.work().submit()
            want = AVAIL | USED if wrap else 0
            check.until(
                lambda s=slot, w=want: guest.queue.read_packed(s).flags & (AVAIL | USED) == w,  # type: ignore[misc]
                "AVAIL and USED as the wrap counter",
                "they never are",
            )
            guest.queue.reap()


@case("PKD-05", "virtio 2.8.6, 2.8.22", features=PACKED)
def buffer_id_is_echoed(check: Check) -> None:
    """The used descriptor bears the buffer id of the chain that was made available."""
    with check.guest(packed=True, size=64) as guest:
        work = guest.work()
        items = [work.submit(number, kick=False) for number in range(12)]
        guest.queue.kick()
        for item in items:
            work.finish(item)
        check.expect(guest.queue.broken is None, "ids of chains in flight", str(guest.queue.broken))


@case("PKD-06", "virtio 2.8.4", features=PACKED)
def used_length(check: Check) -> None:
    """The used length of a descriptor with the write flag counts what was written."""
    with check.guest(packed=True) as guest:
        work = guest.work()
        item = work.finish(work.submit())
        check.equal(item.used_len, SECTOR_LEN + 1 if check.is_block else 0, "used length")


BASES = {
    name: half * 0x10001
    for name, half in {
        "wrap-1": 0x8000,
        "wrap-0": 0x0000,
        "slot-5": 0x8005,
        "last": 0x800F,
        "last-wrap-0": 0x000F,
    }.items()
}


@case("PKD-07", f"{BASE}; virtio 2.8.1", features=PACKED, rows=BASES)
def begins_anywhere(check: Check, base: int) -> None:
    """SET_VRING_BASE of a packed ring: 15 bits of index and a wrap counter for the available and the used side each."""
    with check.guest(packed=True, size=16, base=base) as guest:
        guest.works(40)


@case("PKD-08", BASE, features=PACKED, rows={"3": 3, "20": 20})
def stop_and_go(check: Check, times: int) -> None:
    """A packed ring that was stopped goes on from the base GET_VRING_BASE returned."""
    with check.guest(packed=True, size=16) as guest:
        for _ in range(times):
            guest.works(3)
            guest.session.stop()
            check.equal(guest.frontend.bases[check.target.work_ring], guest.queue.base, "base")
            guest.session.start()


@case("PKD-09", 'vhost-user, "Ring states"', features=PACKED)
def stopped_is_not_processed(check: Check) -> None:
    """The back-end must not process a stopped ring at all."""
    with check.guest(packed=True, size=16) as guest:
        guest.works(2)
        guest.session.stop()
        work, place = guest.work(), guest.queue.avail_place
        item = work.submit(kick=False)
        guest.queue.kick(force=True)
        check.expect(_quiet(guest, place), "nothing to be used", "a descriptor was used")
        guest.session.start()
        os.eventfd_write(guest.queue.kick_fd.number, 1)
        work.finish(item)


@case("PKD-10", "virtio 2.8.14", level=Level.SHOULD, features=PACKED)
def calls_are_disabled(check: Check) -> None:
    """With RING_EVENT_FLAGS_DISABLE in the driver's structure the device SHOULD NOT notify."""
    with check.guest(packed=True) as guest:
        guest.works(1)
        guest.queue.driver_event = (0, DISABLE)
        time.sleep(0.02)
        guest.queue.take_call()
        slot, wrap = guest.queue.avail_place
        guest.work().submit()
        want = AVAIL | USED if wrap else 0
        check.until(
            lambda: guest.queue.read_packed(slot).flags & (AVAIL | USED) == want, "the work to be done", "it is not"
        )
        check.expect(not _called(guest, 0.05), "no call", "a call")


@case("PKD-11", "virtio 2.8.14", features=PACKED, rows={"enable": ENABLE, "desc": Row(DESC, features=int(F.EVENT_IDX))})
def calls_are_enabled(check: Check, flags: int) -> None:
    """The device MUST notify when the driver's structure asks for it: always, or at a certain descriptor."""
    with check.guest(packed=True, features=ALL_FEATURES) as guest:
        guest.works(1)
        guest.queue.take_call()
        slot, wrap = guest.queue.avail_place
        guest.queue.driver_event = (slot | wrap << 15 if flags == DESC else 0, flags)
        guest.work().submit()
        check.expect(_called(guest, check.timeout), "a call", "none in time")


@case("PKD-12", "virtio 2.8.14", features=PACKED)
def device_event_is_valid(check: Check) -> None:
    """The device's event structure has flags 0 to 2; RING_EVENT_FLAGS_DESC only with EVENT_IDX."""
    with check.guest(packed=True, features=ALL_FEATURES & ~int(F.EVENT_IDX)) as guest:
        for _ in range(10):
            guest.works(1)
            check.expect(guest.queue.device_event[1] in {ENABLE, DISABLE}, "0 or 1", f"{guest.queue.device_event[1]}")


@case("PKD-13", "virtio 2.8.7", features=PACKED | int(F.INDIRECT_DESC), kinds=BLOCK, rows={"1": 1, "2": 2, "4": 4})
def longer_than_the_ring(check: Check, size: int) -> None:
    """With indirect tables a small packed ring carries chains of more buffers than it has entries."""
    with check.guest(packed=True, size=size) as guest:
        guest.works(8)


@case("PKD-14", "virtio 2.8.5, 2.8.6", features=PACKED, rows={"2": [2], "bytes": [1] * 10, "one": []})
def framing(check: Check, pieces: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors."""
    with check.guest(packed=True, size=64) as guest:
        work = guest.work()
        for _ in range(3):
            work.finish(work.submit(pieces=pieces))


@case("PKD-15", "virtio 2.8.10, 2.8.14", features=PACKED, timeout=30)
def nothing_is_lost(check: Check) -> None:
    """Sleeping driver and sleeping device never miss each other on a packed ring."""
    with check.guest(packed=True, size=16) as guest:
        guest.works(300)


@case("PKD-16", "virtio 2.8.8", features=PACKED | int(F.IN_ORDER))
def in_order(check: Check) -> None:
    """With IN_ORDER a packed ring is used in the order in which it was made available."""
    with check.guest(packed=True, size=64, features=ALL_FEATURES | int(F.IN_ORDER)) as guest:
        guest.works(20)


@case("PKD-17", "virtio 2.8", features=PACKED)
def split_is_still_there(check: Check) -> None:
    """A device that offers RING_PACKED serves a driver that takes the split ring."""
    with check.guest() as guest:
        guest.works(4)
