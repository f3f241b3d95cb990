"""Rings that no driver makes: heads, links, tables, addresses and indexes (HOSTILE R1 to R55, B20 to B27).

A chain that cannot be trusted stops its ring, and the back-end says so: by VRING_ERR, which tells which ring it was, or
by DEVICE_NEEDS_RESET. One that says nothing leaves a guest waiting for ever, and its operator without a word; one that
ends the connection instead takes every other ring of the device away.
"""

import contextlib
import os
import time

from vhostd.driver.conformance.case import BLOCK, Level, Mark, RingFeature, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check, Guest
from vhostd.driver.conformance.hostile.attacks import (
    DATA_LEN,
    DISK,
    ERRORS,
    LINKS,
    NO_HEADS,
    ODD_TABLES,
    ORDERS,
    SIZE,
    TABLES,
    Attack,
    RawRing,
    tabled,
)
from vhostd.driver.conformance.hostile.tools import header_of, held_to_telling, held_to_undone, how_told
from vhostd.spec.blk import StatusByte

HOSTILE = [Mark.HOSTILE]


class Ring(RawRing):
    """The ring of a case's guest, whose every change is evidence."""

    def __init__(self, check: Check, guest: Guest) -> None:
        self.check = check
        self.guest = guest
        super().__init__(guest.queue, guest.arena, header_of(check))

    def note(self, line: str) -> None:
        """Write down what is done."""
        self.check.note(line)

    def said(self) -> str:
        """Return how the back-end says that the ring is broken, or nothing when it does not in time."""
        return how_told(self.guest, self.queue, lambda: self.used() > 0)

    def told(self, said: str, otherwise: str = "") -> None:
        """Hold the back-end to having said that the ring is broken; `otherwise` is what it might have done instead."""
        held_to_telling(self.check, said, otherwise)


def broken(check: Check, attack: Attack, features: int = ALL_FEATURES) -> None:
    """Hold the back-end to stopping the ring and saying so: nothing is published for a chain that cannot be."""
    with check.guest(size=SIZE, features=features) as guest:
        ring = Ring(check, guest)
        attack(ring)
        said = ring.said()
        check.expect(not ring.used(), "nothing to be published for it", f"{ring.used()} used elements")
        ring.told(said)


def returned_or_told(check: Check, attack: Attack, features: int = ALL_FEATURES) -> None:
    """Hold the back-end to giving the chain back undone, or to saying that its ring is broken.

    Its head is the driver's, so that no document forbids to return it; a disk has then written nothing that says OK.
    """
    with check.guest(size=SIZE, features=features) as guest:
        ring = Ring(check, guest)
        before = ring.arena.read(ring.data, DATA_LEN)
        attack(ring)
        said = ring.said()
        if not ring.used():
            ring.told(said, "the chain to be given back undone")
            return
        check.expect(ring.used() == 1, "one used element", f"{ring.used()}")
        held_to_undone(check, ring, before)


def served_or_told(check: Check, attack: Attack, features: int = ALL_FEATURES) -> None:
    """Hold the back-end to using the chain in some way, or to saying that its ring is broken."""
    with check.guest(size=SIZE, features=features) as guest:
        ring = Ring(check, guest)
        attack(ring)
        said = ring.said()
        if not ring.used():
            ring.told(said, "a used element")


@case("HOST-RING", "virtio 2.7.6", marks=HOSTILE, rows=NO_HEADS)
def a_head_that_cannot_be(check: Check, attack: Attack) -> None:
    """A head or an index that the ring does not have breaks it, which is said: there is nothing to give back."""
    broken(check, attack)


@case("HOST-LINK", "virtio 2.7.5", marks=HOSTILE, rows=LINKS)
def a_chain_that_cannot_be(check: Check, attack: Attack) -> None:
    """A chain without an end, or that leads out of the table, is given back undone, or breaks its ring loudly."""
    returned_or_told(check, attack)


@case("HOST-TABLE", "virtio 2.7.5.3", marks=HOSTILE, features=int(RingFeature.INDIRECT_DESC), rows=TABLES)
def an_indirect_table_that_cannot_be(check: Check, attack: Attack) -> None:
    """A table that is none is given back undone, or breaks its ring loudly."""
    returned_or_told(check, attack)


@case(
    "HOST-ODD",
    "virtio 2.7.5.3.1",
    level=Level.SHOULD,
    kinds=BLOCK,
    marks=HOSTILE,
    features=int(RingFeature.INDIRECT_DESC),
    rows=ODD_TABLES,
)
def an_indirect_table_that_no_driver_may_make(check: Check, attack: Attack) -> None:
    """A table in a table, beside a next, or with a part of an entry is served, an error, or a loud ring."""
    served_or_told(check, attack)


@case("HOST-R25", "virtio 2.7.5.3.1", level=Level.SHOULD, kinds=BLOCK, marks=HOSTILE)
def an_indirect_table_without_the_feature(check: Check) -> None:
    """INDIRECT without INDIRECT_DESC, which no driver may set, is served, an error, or a loud ring."""
    served_or_told(check, tabled(RawRing.entries), ALL_FEATURES & ~int(RingFeature.INDIRECT_DESC))


@case("HOST-CHAIN", "virtio 2.7.4.2, 5.2.6", kinds=BLOCK, marks=HOSTILE, rows=DISK)
def a_chain_that_cannot_be_answered(check: Check, attack: Attack) -> None:
    """A request without a place for its status is given back undone, or breaks its ring loudly."""
    returned_or_told(check, attack)


@case("HOST-ERROR", "virtio 5.2.6.2", kinds=BLOCK, marks=HOSTILE, rows=ERRORS)
def a_request_that_cannot_be_done(check: Check, attack: Attack) -> None:
    """A request that cannot be done and can be answered ends in IOERR, or breaks its ring loudly."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        before = ring.arena.read(ring.data, DATA_LEN)
        attack(ring)
        said = ring.said()
        if not ring.used():
            ring.told(said, "status IOERR")
            return
        status = ring.arena.read(ring.status, 1)[0]
        check.expect(status in {StatusByte.IOERR, StatusByte.UNSUPP}, "status IOERR", f"status {status:#x}")
        check.equal(ring.arena.read(ring.data, DATA_LEN), before, "the data as it was,")


@case("HOST-ORDER", "virtio 2.7.4.2", kinds=BLOCK, marks=HOSTILE, rows=ORDERS)
def a_chain_out_of_order(check: Check, attack: Attack) -> None:
    """Device-readable behind device-writable buffers, which no driver may make: served, an error, or a loud ring."""
    served_or_told(check, attack)


@case("HOST-R53", "virtio 2.7.13", marks=HOSTILE, kinds=BLOCK)
def a_head_that_is_in_flight(check: Check) -> None:
    """A head offered many times before it comes back is served once for each, or breaks the ring; never a crash."""
    with check.guest(size=SIZE) as guest:
        ring = Ring(check, guest)
        ring.good()
        for _ in range(SIZE):
            ring.queue.raw_push(0)
        ring.queue.kick(force=True)
        check.note(f"head 0 is made available {SIZE} times; kick")
        said = how_told(guest, ring.queue, lambda: ring.used() >= SIZE)
        check.expect(ring.used() <= SIZE, f"at most {SIZE} used elements", f"{ring.used()}")
        if ring.used() < SIZE:
            ring.told(said, f"{SIZE} used elements")


@case("HOST-R55", "virtio 2.7.8", marks=HOSTILE, kinds=BLOCK, rows={"idx": 2, "flags": 0, "elements": 4})
def a_used_ring_that_the_driver_writes(check: Check, offset: int) -> None:
    """What a driver writes into the used ring decides nothing: the device goes on by its own index."""
    with check.guest(size=SIZE) as guest:
        guest.works(1)
        guest.arena.write(guest.queue.used_gpa + offset, b"\xee\xee")
        ring = Ring(check, guest)
        ring.good()
        ring.offer()
        check.until(lambda: ring.arena.read(ring.status, 1) == b"\0", "status OK", "none")


@case("HOST-R72", "virtio 2.7.10", marks=HOSTILE)
def kicks_without_end(check: Check) -> None:
    """Kicks for nothing cost a bounded share of a CPU, and nothing afterwards."""
    with check.guest() as guest:
        for _ in range(20000):
            guest.queue.kick(force=True)
        guest.works(2)


@case("HOST-R77", "virtio 2.7.7", level=Level.SHOULD, marks=HOSTILE)
def a_call_descriptor_that_is_full(check: Check) -> None:
    """Signalling never blocks: a driver that does not read its calls, and has them wait, is served as ever."""
    with check.guest() as guest:
        call = guest.queue.call_fd.number
        full = False
        while not full:  # a call from the start may still come
            guest.queue.take_call()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(call, 2**64 - 2)
                full = True
        os.set_blocking(call, True)
        time.sleep(0.005)  # a back-end may look at the mode now and then, rather than at each call
        work = guest.work()
        for number in range(3):
            guest.queue.arm()
            work.submit(number)
            check.until(lambda: guest.queue.used_idx == guest.queue.next_avail, "the work to be done", "it is not")
            guest.queue.reap()
