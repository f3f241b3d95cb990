"""Started and stopped, enabled and disabled (vhost-user, "Ring states"), and where a ring stands."""

import os

from vhostd.driver.conformance.case import BLOCK, NET, Level, Mark, RingFeature, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check
from vhostd.driver.frames import GUEST, HOST, frame
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.errors import DeviceTimeout
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

R = FrontendRequest
P = ProtocolFeature
STATES = 'vhost-user, "Ring states"'
BASE = 'vhost-user, "Front-end message types", VHOST_USER_GET_VRING_BASE'
SET_BASE = 'vhost-user, "Front-end message types", VHOST_USER_SET_VRING_BASE'
ENABLE = 'vhost-user, "Front-end message types", VHOST_USER_SET_VRING_ENABLE'
NUM = 'vhost-user, "Front-end message types", VHOST_USER_SET_VRING_NUM'
BIT_30 = int(RingFeature.PROTOCOL_FEATURES)
BASES = {str(n): n for n in (1, 7, 255, 32767, 32768, 65500, 65535)}


@case("VU-RING-01", STATES)
def without_bit_30(check: Check) -> None:
    """If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled state."""
    with check.guest(features=ALL_FEATURES & ~BIT_30) as guest:
        guest.works(4)


@case("VU-RING-02", STATES, features=BIT_30, kinds=BLOCK, queues=2, marks=[Mark.WRITES])
def disabled_has_no_effects(check: Check) -> None:
    """A ring that is started and disabled causes no side effects: a write on it does not reach the disk."""
    with check.guest(queues=2) as guest:
        area = check.scratch
        guest.frontend.enable(1, enabled=False)
        guest.block(1).submit(Request.OUT, area.first, os.urandom(512))
        check.quiet(guest.queues[1])
        check.equal(guest.block(0).read(area.first, 512), area.known[:512], "the sector as it was,")


@case("VU-RING-03", STATES, features=BIT_30, kinds=NET, marks=[Mark.WIRE])
def disabled_transmits_nothing(check: Check) -> None:
    """A transmit ring that is started and disabled causes no side effects: its frames do not reach the wire."""
    wire = check.wire()
    with check.guest() as guest:
        guest.frontend.enable(1, enabled=False)
        data = frame(os.urandom(8), to=HOST, source=GUEST, length=60)
        guest.net().send(data)
        try:
            wire.expect(lambda seen: seen == data, 0.2)
        except DeviceTimeout:
            return
        check.expect(False, "nothing on the wire", "the frame")


@case("VU-RING-04", STATES, features=BIT_30, kinds=NET, marks=[Mark.WIRE])
def disabled_receives_nothing(check: Check) -> None:
    """In the disabled state a networking back-end must not supply any new RX packets."""
    wire = check.wire()
    with check.guest() as guest:
        guest.net().post(4, 2048)
        guest.frontend.enable(0, enabled=False)
        wire.send(frame(b"disabled", length=100))
        check.expect(check.quiet(guest.queues[0]), "no used buffer", "one was used")


@case("VU-RING-05", STATES, features=BIT_30)
def starts_disabled(check: Check) -> None:
    """If VHOST_USER_F_PROTOCOL_FEATURES has been negotiated, the ring is initialized in a disabled state."""
    with check.guest(start=False) as guest:
        guest.frontend.start(guest.arena, guest.queues, enable=0)
        if check.is_block:
            work = guest.work()
            item = work.submit()
            check.expect(check.quiet(guest.queue), "no request to be served", "one was served")
            guest.frontend.enable(check.target.work_ring)
            work.finish(item)
            return
        guest.net().post(4, 2048)
        if check.target.interface is not None:
            check.wire().send(frame(b"disabled", length=100))
        check.expect(check.quiet(guest.queues[0]), "no used buffer", "one was used")


@case("VU-RING-06", ENABLE, features=BIT_30, rows={"1": 1, "5": 5, "30": 30})
def enabled_and_disabled(check: Check, times: int) -> None:
    """A ring is disabled and enabled any number of times, and works when it is enabled."""
    with check.guest() as guest:
        for _ in range(times):
            for ring in range(len(guest.queues)):
                guest.frontend.enable(ring, enabled=False)
            for ring in range(len(guest.queues)):
                guest.frontend.enable(ring)
            guest.works(1)


@case("VU-RING-07", ENABLE, features=BIT_30, kinds=BLOCK)
def what_came_while_disabled(check: Check) -> None:
    """A request that was made available while its ring was disabled is not lost when it is enabled again."""
    with check.guest() as guest:
        work = guest.work()
        for _ in range(3):
            guest.frontend.enable(0, enabled=False)
            item = work.submit()
            check.quiet(guest.queue, 0.05)
            guest.frontend.enable(0)
            work.finish(item)


@case("VU-RING-08", ENABLE, features=BIT_30)
def enable_comes_first(check: Check) -> None:
    """SET_VRING_ENABLE may come before the ring is told, and before SET_FEATURES: QEMU sends it at machine reset."""
    with check.guest(start=False) as guest:
        for ring in range(len(guest.queues)):
            guest.frontend.enable(ring)
        guest.frontend.start(guest.arena, guest.queues, enable=0)
        guest.works(2)


@case("VU-RING-09", ENABLE, features=BIT_30, queues=2)
def enabled_and_never_started(check: Check) -> None:
    """Rings may be enabled that never start: firmware uses one queue of many."""
    with check.guest(start=False) as guest:
        guest.session.start(enable=check.target.rings)
        guest.works(2)


@case("VU-RING-10", STATES)
def stopped_is_not_processed(check: Check) -> None:
    """The back-end must not process a stopped ring at all, kick or no kick."""
    with check.guest() as guest:
        guest.works(1)
        guest.session.stop()
        work = guest.work()
        item = work.submit(kick=False)
        guest.queue.kick(force=True)
        check.expect(check.quiet(guest.queue), "nothing to be used", "a chain of a stopped ring was used")
        guest.session.start()
        work.finish(item)


@case("VU-RING-11", STATES, level=Level.SHOULD)
def what_was_there_before(check: Check) -> None:
    """What was available before the ring started is served when it is kicked: no further kick is promised."""
    with check.guest(start=False) as guest:
        work = guest.work()
        item = work.submit(kick=False)
        guest.queue.publish()
        os.eventfd_write(guest.queue.kick_fd.number, 1)
        guest.session.start()
        work.finish(item)


@case("VU-RING-12", STATES, queues=2)
def states_are_each_rings_own(check: Check) -> None:
    """Stopping and starting one ring leaves the others as they are."""
    with check.guest(queues=2) as guest:
        step = 2 if check.target.kind == "net" else 1
        first, second = check.target.work_ring, check.target.work_ring + step
        guest.works(2, ring=first)
        guest.works(2, ring=second)
        for _ in range(3):
            guest.frontend.get_base(first)
            guest.works(2, ring=second)
            guest.frontend.set_call(first, guest.queues[first].call_fd)
            guest.frontend.start_ring(first, guest.queues[first])
            guest.works(2, ring=first)


@case("VU-RING-13", STATES)
def other_order(check: Check) -> None:
    """Base before address, call after kick: the order of SET_VRING_NUM, BASE, ADDR and CALL is the front-end's."""
    with check.guest(start=False) as guest:
        frontend = guest.frontend
        for ring in range(len(guest.queues)):
            frontend.enable(ring)
        frontend.share(guest.arena)
        frontend.set_features()
        for ring, queue in enumerate(guest.queues):
            frontend.set_base(ring, 0)
            frontend.set_num(ring, queue.size)
            frontend.set_addr(ring, queue)
            frontend.set_kick(ring, queue.kick_fd)
            frontend.set_call(ring, queue.call_fd)
        guest.works(3)


@case("VU-RING-14", STATES)
def the_last_message_counts(check: Check) -> None:
    """Before the ring starts, NUM, BASE and ADDR may be told again: the last one counts."""
    with check.guest(start=False) as guest:
        for ring, queue in enumerate(guest.queues):
            guest.frontend.set_num(ring, 4)
            guest.frontend.set_base(ring, 99)
            guest.frontend.set_num(ring, queue.size)
        guest.session.start()
        guest.works(3)


@case("VU-BASE-01", BASE)
def base_after_work(check: Check) -> None:
    """GET_VRING_BASE returns the index of the next available entry."""
    with check.guest() as guest:
        for count in (0, 1, 5):
            guest.works(count)
            guest.session.stop()
            check.equal(guest.frontend.bases[check.target.work_ring], guest.queue.next_avail, "base")
            guest.session.start()


@case("VU-BASE-02", f"{SET_BASE}; virtio 2.7.6", rows=BASES)
def begins_anywhere(check: Check, base: int) -> None:
    """SET_VRING_BASE says at which available entry the ring goes on; the index runs free modulo 65536."""
    with check.guest(base=base, size=16) as guest:
        guest.works(40)
        guest.session.stop()
        check.equal(guest.frontend.bases[check.target.work_ring], (base + 40) % 65536, "base")


@case("VU-BASE-03", BASE, rows={"3": 3, "20": 20})
def stop_and_go(check: Check, times: int) -> None:
    """A ring that was stopped goes on from its base, with nothing lost and nothing done twice."""
    with check.guest(size=16) as guest:
        work = guest.work()
        for _ in range(times):
            guest.session.stop()
            item = work.submit(kick=False)
            guest.queue.publish()
            guest.session.start()
            os.eventfd_write(guest.queue.kick_fd.number, 1)
            work.finish(item)


@case("VU-BASE-04", BASE, kinds=BLOCK)
def nothing_after_the_answer(check: Check) -> None:
    """After the answer to GET_VRING_BASE the back-end touches the ring no more: what was taken is used by then."""
    with check.guest(size=256) as guest:
        work = guest.work()
        items = [work.submit(n, kick=False) for n in range(80)]
        guest.queue.kick()
        guest.session.stop()
        used = guest.queue.used_idx
        check.expect(check.quiet(guest.queue, since=used), "used.idx to stand still after the answer", "it moved")
        base = guest.frontend.bases[0]
        check.equal(used, base, "used.idx equal to the base, nothing being in flight,")
        guest.session.start()
        os.eventfd_write(guest.queue.kick_fd.number, 1)
        for item in items:
            work.finish(item)


@case("VU-BASE-05", BASE)
def of_a_ring_that_never_started(check: Check) -> None:
    """GET_VRING_BASE of a ring that is stopped is answered, with the base that was set."""
    with check.guest(start=False) as guest:
        guest.frontend.set_features()
        guest.frontend.set_num(0, 16)
        guest.frontend.set_base(0, 77)
        check.equal(guest.frontend.get_base(0), 77, "base")


@case("VU-BASE-06", BASE)
def twice(check: Check) -> None:
    """GET_VRING_BASE of a ring that was stopped is answered the same again."""
    with check.guest() as guest:
        guest.works(3)
        first = [guest.frontend.get_base(ring) for ring in range(len(guest.queues))]
        again = [guest.frontend.get_base(ring) for ring in range(len(guest.queues))]
        check.equal(again, first, "the bases")


@case("VU-BASE-07", f"{NUM}; virtio 2.7", rows={str(n): n for n in (16, 64, 128, 512)})
def other_size_after_a_stop(check: Check, size: int) -> None:
    """A ring that was stopped may start again with another size, as the next driver of the device wants it."""
    with check.guest(size=256, protocol_features=PROTOCOL_FEATURES & ~P.CONFIGURE_MEM_SLOTS) as guest:
        guest.works(2)
        guest.session.stop()
        guest.rebuild(size)
        guest.works(4)
