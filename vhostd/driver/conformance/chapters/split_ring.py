"""The split ring (virtio 2.7), on a disk's request queue or a card's transmit queue."""

from vhostd.driver.conformance.case import BLOCK, RingFeature, Row, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check, Guest
from vhostd.driver.virtqueue import Virtqueue
from vhostd.spec.virtio import DESC_LEN

F = RingFeature
NEXT, WRITE, INDIRECT = 1, 2, 4
DIRECT = ALL_FEATURES & ~int(F.INDIRECT_DESC)
FLAGS_DIRECT = DIRECT & ~int(F.EVENT_IDX)
SIZES = {str(1 << n): 1 << n for n in range(2, 11)}
MODES = {
    "flags-direct": ALL_FEATURES & ~int(F.EVENT_IDX | F.INDIRECT_DESC),
    "flags-indirect": Row(ALL_FEATURES & ~int(F.EVENT_IDX), features=int(F.INDIRECT_DESC)),
    "event-idx-direct": Row(DIRECT, features=int(F.EVENT_IDX)),
    "event-idx-indirect": Row(ALL_FEATURES, features=int(F.EVENT_IDX | F.INDIRECT_DESC)),
}


def _batch(guest: Guest, count: int) -> None:
    """Have so many pieces of work in flight at once."""
    work = guest.work()
    items = [work.submit(number, kick=False) for number in range(count)]
    guest.queue.kick()
    for item in items:
        work.finish(item)


def _room(guest: Guest) -> int:
    """How many pieces of work the ring has room for."""
    each = 1 if guest.queue.indirect else 3 if guest.check.is_block else 2
    return max(1, guest.queue.size // each)


@case("RING-01", "virtio 2.7", rows=SIZES)
def every_size(check: Check, size: int) -> None:
    """The queue size is a power of 2: each is served, with one chain and with as many as fit."""
    with check.guest(size=size, features=DIRECT) as guest:
        guest.works(size + 3 if size <= 64 else 4)
        for _ in range(2):
            _batch(guest, _room(guest))


@case("RING-02", "virtio 2.7.4.1, 2.7.7, 2.7.10", rows=MODES)
def every_mode(check: Check, features: int) -> None:
    """Direct and indirect chains, notifications by flags and by EVENT_IDX: each pairing works."""
    with check.guest(features=features, size=64) as guest:
        for count in (1, 5, 20, 1):
            _batch(guest, min(count, _room(guest)))


@case("RING-03", "virtio 2.7.6", rows=MODES)
def indexes_wrap(check: Check, features: int) -> None:
    """Idx runs free modulo 65536: rings work over the wrap."""
    with check.guest(features=features, size=16, base=65520) as guest:
        for _ in range(8):
            _batch(guest, _room(guest))


@case("RING-04", "virtio 2.7.8", rows={"one": 1, "eight": 8, "forty": 40})
def each_chain_once(check: Check, count: int) -> None:
    """Each chain that was made available is used once, and used elements name chains by their heads."""
    with check.guest(size=256) as guest:
        before = guest.queue.used_idx
        _batch(guest, count)
        check.equal((guest.queue.used_idx - before) % 65536, count, "used elements,")
        check.expect(check.quiet(guest.queue, 0.05), "no more of them", "a further one")


@case("RING-05", "virtio 2.7.8.2")
def used_length_of_what_was_read(check: Check) -> None:
    """The used length counts what the device wrote: status and data of a read, nothing of a transmitted frame."""
    with check.guest() as guest:
        work = guest.work()
        item = work.finish(work.submit())
        check.equal(item.used_len, 513 if check.is_block else 0, "used length")


@case("RING-06", "virtio 2.7.5.1, 2.7.5.2", kinds=BLOCK)
def the_table_is_the_drivers(check: Check) -> None:
    """A device MUST NOT write to the descriptor table or the available ring."""
    with check.guest(features=DIRECT, size=16) as guest:
        work = guest.work()
        item = work.submit()
        table = guest.arena.read(guest.queue.desc_gpa, 16 * DESC_LEN)
        work.finish(item)
        check.equal(guest.arena.read(guest.queue.desc_gpa, 16 * DESC_LEN), table, "the descriptor table as it was,")


@case("RING-07", "virtio 2.7.4.1", kinds=BLOCK)
def readable_buffers_are_not_written(check: Check) -> None:
    """A device MUST NOT write to a device-readable buffer."""
    with check.guest() as guest:
        at = guest.arena.alloc(64)
        head = bytes(8) + check.scratch.first.to_bytes(8, "little")
        guest.arena.write(at, head)
        data = guest.arena.alloc(513)
        guest.add(guest.queue, [(at, 16)], [(data, 513)])
        guest.queue.wait(check.timeout)
        check.equal(guest.arena.read(at, 16), head, "the request's header as it was,")


PLACES = {
    "backwards": lambda n: 15 - n,
    "apart": lambda n: (5 * n + 3) % 16,
    "forwards": lambda n: n,
}


def _request(check: Check, guest: Guest) -> list[tuple[int, int, int]]:
    """Return (gpa, length, flags) of a read of a sector, or of a frame with its header."""
    at = guest.arena.alloc(1024)
    if check.is_block:
        guest.arena.write(at, bytes(8) + check.scratch.first.to_bytes(8, "little"))
        return [(at, 16, 0), (at + 16, 512, WRITE), (at + 528, 1, WRITE)]
    guest.arena.write(at + 12, b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x88\xb5")
    return [(at, 12, 0), (at + 12, 30, 0), (at + 42, 30, 0)]


def _chain(queue: Virtqueue, parts: list[tuple[int, int, int]], indexes: list[int]) -> None:
    for n, (gpa, length, flags) in enumerate(parts):
        last = n == len(parts) - 1
        queue.raw_desc(indexes[n], gpa, length, flags | (0 if last else NEXT), 0 if last else indexes[n + 1])


@case("RING-08", "virtio 2.7.5", rows=PLACES)
def descriptors_anywhere(check: Check, place: object) -> None:
    """A chain follows `next`, wherever in the table its descriptors lie."""
    assert callable(place)
    with check.guest(features=DIRECT, size=16) as guest:
        parts = _request(check, guest)
        indexes = [place(n) for n in range(len(parts))]
        _chain(guest.queue, parts, indexes)
        check.note(f"a chain of descriptors {indexes}")
        guest.queue.raw_push(indexes[0])
        guest.queue.kick(force=True)
        check.equal(guest.queue.raw_wait(check.timeout)[0], indexes[0], "the used element's id")


@case("RING-09", "virtio 2.7.5", rows={"0xffff": 0xFFFF, "0x8": 8, "0x0": 0})
def next_without_the_flag(check: Check, value: int) -> None:
    """`next` has no meaning in a descriptor without VIRTQ_DESC_F_NEXT."""
    with check.guest(features=DIRECT, size=16) as guest:
        parts = _request(check, guest)
        _chain(guest.queue, parts, [0, 1, 2])
        gpa, length, flags = parts[2]
        guest.queue.raw_desc(2, gpa, length, flags, value)
        guest.queue.raw_push(0)
        guest.queue.kick(force=True)
        check.equal(guest.queue.raw_wait(check.timeout)[0], 0, "the used element's id")


@case("RING-10", "virtio 2.7.6, 2.7.8", rows={"twice": 2, "many": 40})
def a_head_again(check: Check, times: int) -> None:
    """A head that came back may be made available again at once."""
    with check.guest(features=DIRECT, size=16) as guest:
        parts = _request(check, guest)
        _chain(guest.queue, parts, [4, 5, 6])
        for _ in range(times):
            guest.queue.raw_push(4)
            guest.queue.kick(force=True)
            check.equal(guest.queue.raw_wait(check.timeout)[0], 4, "the used element's id")


@case("RING-11", "virtio 2.7.6.1", kinds=BLOCK)
def published_one_by_one(check: Check) -> None:
    """The driver publishes and kicks as it likes: chains that come while others are in flight are served."""
    with check.guest(size=256) as guest:
        work = guest.work()
        items = []
        for number in range(60):
            items.append(work.submit(number, kick=number % 7 == 0))
            if number % 5 == 0:
                guest.queue.publish()
        guest.queue.kick(force=True)
        for item in items:
            work.finish(item)


@case(
    "RING-12",
    "virtio 2.7.10.2",
    features=0,
    rows={"flags": FLAGS_DIRECT, "event-idx": Row(DIRECT, features=int(F.EVENT_IDX))},
)
def used_flags(check: Check, features: int) -> None:
    """The used ring's flags are 0 or 1, and 0 with EVENT_IDX negotiated."""
    allowed = {0} if features & F.EVENT_IDX else {0, 1}
    with check.guest(features=features) as guest:
        for _ in range(20):
            guest.works(1)
            check.expect(guest.queue.used_flags in allowed, f"flags of {allowed}", f"{guest.queue.used_flags:#x}")


@case("RING-13", "virtio 2.7", timeout=30)
def a_long_run(check: Check) -> None:
    """A ring of 32 goes round many times without a chain lost."""
    with check.guest(size=32) as guest:
        for _ in range(150):
            _batch(guest, 8)


@case("RING-14", "virtio 2.7.4.1", rows={"2": [2], "bytes": [1] * 10, "all-but-one": [11], "one": []})
def framing_of_what_is_read(check: Check, pieces: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: header and data in any cut."""
    with check.guest() as guest:
        work = guest.work()
        for _ in range(2):
            work.finish(work.submit(pieces=pieces))
