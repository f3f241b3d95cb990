"""Rings that no driver makes: heads, links, tables, addresses and indexes (HOSTILE R1 to R55, B20 to B27).

A chain that cannot be trusted stops its ring, and the back-end says so: by VRING_ERR, which tells which ring it was, or
by DEVICE_NEEDS_RESET. One that says nothing leaves a guest waiting for ever, and its operator without a word; one that
ends the connection instead takes every other ring of the device away.
"""

import os
import select
import struct
import time
from collections.abc import Callable

from vhostd.driver.conformance.case import BLOCK, Mark, RingFeature, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check, Guest
from vhostd.driver.conformance.hostile.attacks import (
    ANY_RING,
    DATA_LEN,
    DISK,
    ERRORS,
    ODD_TABLES,
    ORDERS,
    SIZE,
    TABLES,
    Attack,
    RawRing,
    tabled,
)
from vhostd.driver.conformance.verdict import Fault
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceGone
from vhostd.spec.blk import Request, StatusByte
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Status

HOSTILE = [Mark.HOSTILE]
OF_ERR, OF_RESET, OF_END = "VRING_ERR", "DEVICE_NEEDS_RESET", "the end of the connection"


def header_of(check: Check) -> bytes:
    """Return what a good request of the target's kind begins with."""
    return struct.pack("<IIQ", Request.IN, 0, check.scratch.first) if check.is_block else bytes(12)


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


def how_told(guest: Guest, queue: Virtqueue, used: Callable[[], bool]) -> str:
    """Return how the back-end says that a ring is broken; nothing when it does not in time, or uses something."""
    frontend = guest.frontend
    deadline = time.monotonic() + guest.check.timeout
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([queue.err_fd.number, frontend.fileno()], [], [], 0.02)
            if queue.err_fd.number in ready and queue.take_err():
                return OF_ERR
            if frontend.fileno() in ready and frontend.closed_by_peer(0.2):
                return OF_END
            if used():
                return ""
        if frontend.protocol_features & ProtocolFeature.STATUS:
            status = frontend.ask_u64(FrontendRequest.GET_STATUS)
            return OF_RESET if status & Status.DEVICE_NEEDS_RESET else ""
    except DeviceGone:
        return OF_END
    return ""


def held_to_telling(check: Check, said: str, otherwise: str = "") -> None:
    """Hold the back-end to having said that a ring is broken, as `how_told` has it."""
    check.expect(
        said in {OF_ERR, OF_RESET},
        f"{otherwise}{otherwise and ', or '}VRING_ERR or DEVICE_NEEDS_RESET (virtio 2.1.2)",
        "only that the connection ended" if said else f"nothing in {check.timeout:g} s, and no used element",
        Fault.SILENT_RING_ERROR,
    )


def broken(check: Check, attack: Attack, features: int = ALL_FEATURES) -> None:
    """Hold the back-end to stopping the ring and saying so: nothing is published for a chain that cannot be."""
    with check.guest(size=SIZE, features=features) as guest:
        ring = Ring(check, guest)
        attack(ring)
        said = ring.said()
        check.expect(not ring.used(), "nothing to be published for it", f"{ring.used()} used elements")
        ring.told(said)


def served_or_told(check: Check, attack: Attack, features: int = ALL_FEATURES) -> None:
    """Hold the back-end to using the chain in some way, or to saying that its ring is broken."""
    with check.guest(size=SIZE, features=features) as guest:
        ring = Ring(check, guest)
        attack(ring)
        said = ring.said()
        if not ring.used():
            ring.told(said, "a used element")


@case("HOST-RING", "virtio 2.7.5, 2.7.6", marks=HOSTILE, rows=ANY_RING)
def a_chain_that_cannot_be(check: Check, attack: Attack) -> None:
    """A head, a link or an index that the table does not have breaks the ring, which is said, and nothing else."""
    broken(check, attack)


@case("HOST-TABLE", "virtio 2.7.5.3", marks=HOSTILE, features=int(RingFeature.INDIRECT_DESC), rows=TABLES)
def an_indirect_table_that_cannot_be(check: Check, attack: Attack) -> None:
    """An indirect table is whole descriptors in guest memory that lead to each other and to no other table."""
    broken(check, attack)


@case(
    "HOST-ODD", "virtio 2.7.5.3.1", kinds=BLOCK, marks=HOSTILE, features=int(RingFeature.INDIRECT_DESC), rows=ODD_TABLES
)
def an_indirect_table_that_no_driver_may_make(check: Check, attack: Attack) -> None:
    """A table in a table, or one beside a next, is served, an error, or a loud ring."""
    served_or_told(check, attack)


@case("HOST-R25", "virtio 2.7.5.3.1", kinds=BLOCK, marks=HOSTILE)
def an_indirect_table_without_the_feature(check: Check) -> None:
    """INDIRECT without INDIRECT_DESC, which no driver may set, is served, an error, or a loud ring."""
    served_or_told(check, tabled(RawRing.entries), ALL_FEATURES & ~int(RingFeature.INDIRECT_DESC))


@case("HOST-CHAIN", "virtio 2.7.4.2, 5.2.6", kinds=BLOCK, marks=HOSTILE, rows=DISK)
def a_chain_that_cannot_be_answered(check: Check, attack: Attack) -> None:
    """A request without a place for its status cannot be answered: the ring is broken, and that is said."""
    broken(check, attack)


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


@case("HOST-R77", "virtio 2.7.7", marks=HOSTILE, kinds=BLOCK)
def a_call_descriptor_that_is_full(check: Check) -> None:
    """Signalling never blocks: a driver that does not read its calls is served as ever."""
    with check.guest() as guest:
        guest.queue.take_call()  # a back-end may have called already: the write below is not to wait
        os.eventfd_write(guest.queue.call_fd.number, 2**64 - 2)
        os.set_blocking(guest.queue.call_fd.number, True)
        time.sleep(0.005)  # a back-end may look at the mode now and then, rather than at each call
        driver = guest.block(check.target.work_ring, poll=True)
        for _ in range(3):
            guest.queue.arm()
            driver.read(check.scratch.first, 512)
