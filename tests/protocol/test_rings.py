"""Rings: notifications, sizes, indexes, start and stop, memory that changes, queues beside each other."""

import contextlib
import os
import time

import pytest

from tests.protocol.conftest import vhostd_only
from vhostd.driver.arena import Arena, Region, adjacent
from vhostd.driver.blk import BlockDriver
from vhostd.driver.frontend import DEVICE_BITS, PROTOCOL_FEATURES, RING_FEATURES, Frontend
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceTimeout
from vhostd.fds import Fd
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import ProtocolFeature
from vhostd.spec.virtio import Feature

ALL = DEVICE_BITS | RING_FEATURES
WITHOUT_SLOTS = PROTOCOL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS
MIB = 1 << 20


def check(driver, image_bytes, count=8):
    """Write, read back and compare, in ones and in a batch."""
    data = os.urandom(4096)
    driver.write(4096, data)
    assert driver.read(4096, 4096) == data
    room = max(1, driver.queue.free // 3)
    flying = [driver.submit(Request.IN, n % 2048, read_len=512, kick=False) for n in range(min(count, room))]
    driver.queue.kick()
    for n, pending in enumerate(flying):
        assert driver.complete(pending).data == image_bytes[n % 2048 * 512 :][:512]


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("poll", [False, True], ids=["event", "poll"])
def test_notifications_direct_and_indirect(disk, image_bytes, event_idx, indirect, poll):
    """2.7.7, 2.7.10, 2.7.5.3: every pairing."""
    features = ALL if event_idx else ALL & ~Feature.EVENT_IDX
    with disk.session(features=features, indirect=indirect) as session:
        assert session.queues[0].event_idx is event_idx
        for _ in range(20):
            check(session.block(poll=poll), image_bytes)


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64, 128, 256, 512, 1024])
def test_every_size_with_direct_chains(disk, image_bytes, size):
    """2.7: powers of two."""
    with disk.session(size=size, indirect=False) as session:
        for _ in range(4):
            check(session.block(), image_bytes, count=300)


@pytest.mark.parametrize("size", [1, 2, 1024])
def test_small_rings_with_indirect_chains(disk, image_bytes, size):
    """2.7.5.3: a chain longer than the ring fits in a ring of one."""
    with disk.session(size=size) as session:
        for _ in range(8):
            check(session.block(), image_bytes)


@vhostd_only("qsd has 1024 entries at most")
@pytest.mark.parametrize("size", [2048, 32768])
def test_the_largest_rings(disk, image_bytes, size):
    """2.7: up to 32768."""
    with disk.session(size=size) as session:
        check(session.block(), image_bytes, count=2000)


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("base", [65535, 65500, 32768, 7])
def test_indexes_begin_anywhere_and_wrap(disk, image_bytes, base, event_idx):
    """2.7.6, 2.7.8: idx runs free; SET_VRING_BASE says where it is."""
    features = ALL if event_idx else ALL & ~Feature.EVENT_IDX
    with disk.session(features=features, base=base, size=16) as session:
        for _ in range(10):
            check(session.block(), image_bytes, count=5)
        assert session.stop() == [session.queues[0].next_avail]


@vhostd_only("qsd refuses legacy drivers")
def test_a_driver_before_1_0(disk, image_bytes):
    """ILLUMOS E.1: no VERSION_1, contiguous rings, no event fields."""
    with disk.session(legacy=True, features=Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC) as session:
        assert not session.frontend.features & Feature.VERSION_1
        check(session.block(), image_bytes)


def test_without_protocol_features_rings_run_at_once(disk, image_bytes):
    """vhost-user, "Ring states": unless bit 30 was negotiated a ring is enabled when it starts."""
    with disk.session(features=Feature.VERSION_1 | DEVICE_BITS) as session:
        assert not session.frontend.protocol_features
        check(session.block(), image_bytes)


def test_stop_and_start_go_on_from_the_base(disk, image_bytes):
    """GET_VRING_BASE: the next entry of the avail ring. `cont` after `stop` is a full start with it."""
    with disk.session(size=16) as session:
        for n in range(5):
            check(session.block(), image_bytes, count=n + 1)
            assert session.stop() == [session.queues[0].next_avail]
            assert session.queues[0].in_flight == 0
            session.start()


@vhostd_only("qsd does not drain")
def test_get_base_returns_when_nothing_is_in_flight(disk):
    """GET_VRING_BASE: whatever was taken is used before the answer, or was not taken."""
    with disk.session(size=256) as session:
        driver = session.block()
        for n in range(200):
            driver.submit(Request.IN, n, read_len=4096, kick=False)
        session.queues[0].kick()
        (base,) = session.stop()
        used = session.queues[0].used_idx
        assert used == base
        time.sleep(0.02)
        assert session.queues[0].used_idx == used
        session.start()
        while session.queues[0].in_flight:
            driver.collect()


def test_a_stopped_ring_touches_no_memory(disk):
    """GET_VRING_BASE ends all access: a driver uses its memory again at once."""
    with disk.session() as session:
        driver = session.block()
        driver.read(0, 512)
        session.stop()
        queue = session.queues[0]
        pending = driver.submit(Request.IN, 0, read_len=512, kick=False)
        queue.kick(force=True)
        time.sleep(0.05)
        assert queue.used_idx == queue.last_used
        session.start()
        assert driver.complete(pending).ok


@vhostd_only("qsd waits for a kick")
def test_entries_that_were_there_before_the_start_need_no_kick(disk, image_bytes):
    """FEATURES 1.4, quirk 8: look at the ring when it starts."""
    with disk.session(start=False) as session:
        driver = session.block()
        pending = driver.submit(Request.IN, 3, read_len=512, kick=False)
        session.queues[0].publish()
        session.start()
        assert driver.complete(pending).data == image_bytes[3 * 512 :][:512]


@vhostd_only("qsd serves disabled rings")
def test_a_disabled_ring_waits_and_an_enabled_one_goes_on(disk):
    """vhost-user, "Ring states": a block device does not process a ring that is started and disabled."""
    with disk.session() as session:
        driver = session.block()
        driver.read(0, 512)
        for _ in range(3):
            session.frontend.enable(0, enabled=False)
            pending = driver.submit(Request.IN, 0, read_len=512)
            with pytest.raises(DeviceTimeout):
                driver.collect(0.05)
            session.frontend.enable(0)
            assert driver.complete(pending).ok


@vhostd_only("qsd serves disabled rings")
def test_a_ring_that_starts_disabled(disk):
    """vhost-user, "Ring states": with bit 30 a ring starts disabled."""
    with disk.session(start=False) as session:
        session.frontend.start(session.arena, session.queues, enable=0)
        driver = session.block()
        pending = driver.submit(Request.IN, 0, read_len=512)
        with pytest.raises(DeviceTimeout):
            driver.collect(0.05)
        session.frontend.enable(0)
        assert driver.complete(pending).ok


def test_several_queues_beside_each_other(start, image_bytes):
    """5.2.2: requests on any queue."""
    with start(queues=4).session(queues=4, size=64) as session:
        drivers = [session.block(n) for n in range(4)]
        for n, driver in enumerate(drivers):
            driver.write(8192 + n, bytes([n]) * 512)
        for driver in reversed(drivers):
            check(driver, image_bytes)
            for n in range(4):
                assert driver.read(8192 + n, 512) == bytes([n]) * 512
        assert session.stop() == [queue.next_avail for queue in session.queues]


def test_fewer_rings_than_queues_and_all_enabled(start, image_bytes):
    """FEATURES 1.4: firmware starts one queue, QEMU enables all."""
    with start(queues=4).session(queues=1, start=False) as session:
        session.start(enable=4)
        check(session.block(), image_bytes)


def test_one_ring_stops_while_another_runs(start, image_bytes):
    """Ring states are each ring's own."""
    with start(queues=2).session(queues=2) as session:
        check(session.block(1), image_bytes)
        session.frontend.get_base(0)
        check(session.block(1), image_bytes)
        session.frontend.set_call(0, session.queues[0].call_fd)
        session.frontend.start_ring(0, session.queues[0])
        check(session.block(0), image_bytes)


@vhostd_only("qsd signals no call of a replaced descriptor")
def test_a_call_descriptor_replaced_while_running_is_signalled_once(disk, image_bytes):
    """FEATURES 1.4, quirk 7; ILLUMOS E.7.1: a call that went to the old one must not be lost to the guest."""
    with disk.session() as session:
        check(session.block(), image_bytes)
        with Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) as fresh:
            session.frontend.set_call(0, fresh)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                try:
                    assert os.eventfd_read(fresh.number) >= 1
                    break
                except BlockingIOError:
                    time.sleep(0.001)
            else:
                pytest.fail("no signal")
            session.frontend.set_call(0, session.queues[0].call_fd)
            check(session.block(), image_bytes)


@vhostd_only("qsd signals descriptor -1 and drops the connection")
def test_a_driver_that_polls_has_no_call_descriptor(disk, image_bytes):
    """vhost-user, SET_VRING_CALL: bit 8 is "no descriptor"."""
    with disk.session() as session:
        session.frontend.set_call(0, None)
        check(session.block(poll=True), image_bytes)


@vhostd_only("qsd stops the ring, if it comes to call before the driver has disarmed")
def test_a_call_descriptor_nobody_reads_does_not_stop_the_ring(disk):
    """ILLUMOS E.4, panic dump: signalling never blocks, even on an eventfd that is full."""
    with disk.session() as session:
        session.block().read(0, 512)
        queue = session.queues[0]
        full = False
        while not full:  # a call for the read above may still come
            queue.take_call()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(queue.call_fd.number, 2**64 - 2)
                full = True
        driver = session.block(poll=True)
        queue.arm()
        for _ in range(5):
            pending = driver.submit(Request.IN, 0, read_len=512)
            queue.arm()
            assert driver.complete(pending).ok


@vhostd_only("qsd calls at the end of a batch")
@pytest.mark.parametrize(
    ("count", "length", "calls"), [(64, 512, 8), (7, 512, 1), (4, 65536, 4)], ids=["8-each", "fewer", "64-kib-each"]
)
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_the_driver_is_told_within_a_batch(disk, count, length, calls, event_idx):
    """2.7.14: a call for each 8 used elements, or 64 KiB, so that the driver goes on while we do."""
    features = ALL if event_idx else ALL & ~Feature.EVENT_IDX
    with disk.session(features=features, size=256, arena=Arena.of(8 * MIB), indirect=True) as session:
        queue, driver = session.queues[0], session.block(poll=True)
        driver.read(0, 512)
        time.sleep(0.02)
        queue.take_call()
        for n in range(count):
            driver.submit(Request.IN, n * length // 512, read_len=length, kick=False)
        if event_idx:
            calls = 1  # it asks for one, at the first
        queue.arm()
        queue.kick()
        deadline = time.monotonic() + 5
        while queue.used_idx != queue.next_avail:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.02)
        assert calls <= queue.take_call() <= calls + 1  # a turn may begin before the last of them is there


REGIONS = {
    "three apart": [Region(0, 4 * MIB), Region(16 * MIB, 4 * MIB), Region(1 << 40, 4 * MIB)],
    "three that touch": adjacent(0x10_0000, [MIB, 2 * MIB, 4 * MIB]),
    "offset in the file": [Region(0x4000, 8 * MIB, mmap_offset=2 * MIB)],
    "front-end address 4096": [Region(1 << 32, 8 * MIB, uva=4096)],
    "eight": [Region(n << 30, 2 * MIB) for n in range(8)],
}


@pytest.mark.parametrize("slots", [False, True], ids=["table", "slots"])
@pytest.mark.parametrize("name", REGIONS)
def test_memory_in_any_regions(disk, image_bytes, name, slots):
    """vhost-user, "Memory region description"; the three parts of a ring may lie in different ones."""
    with Arena(REGIONS[name]) as arena:
        last = arena.regions[-1]
        protocol = PROTOCOL_FEATURES if slots else WITHOUT_SLOTS
        with disk.session(arena=arena, start=False, protocol_features=protocol) as session:
            parts = tuple(arena.alloc(4096, 4096, region) for region in (last, arena.regions[0], last))
            with Virtqueue(arena, 64, parts=parts, event_idx=True, indirect=True) as queue:
                session.frontend.start(arena, [queue])
                driver = BlockDriver(queue)
                check(driver, image_bytes)
                for region in arena.regions:
                    at = arena.alloc(4096 + 512, 1, region)
                    queue.add(
                        [(at + 4096, 16)],
                        [(at, 4096), (at + 4400, 1)],
                    )
                    queue.kick()
                    assert [used.length for used in queue.wait()] == [4097]
                    assert arena.read(at, 4096) == image_bytes[:4096]
                session.stop()


@vhostd_only("qsd takes the pieces for a loop")
def test_a_buffer_that_crosses_two_regions_is_one_buffer(disk, image_bytes):
    """vhost-user: regions that touch in guest addresses need not touch in ours; 2.7.5: a descriptor is guest memory."""
    regions = adjacent(0x100_0000, [MIB, MIB])
    with Arena(regions) as arena, disk.session(arena=arena) as session:
        queue = session.queues[0]
        at = arena.reserve(0x100_0000 + MIB - 2000, 4096)
        head = arena.alloc(16)
        status = arena.alloc(1)
        queue.add([(head, 16)], [(at, 4096), (status, 1)])
        queue.kick()
        assert [used.length for used in queue.wait()] == [4097]
        assert arena.read(at, 4096) == image_bytes[:4096]


def test_the_memory_table_is_replaced_while_rings_run(disk, image_bytes):
    """FEATURES 1.4: memory hot-plug without slots is a whole table, and rings go on."""
    with Arena([Region(0, 8 * MIB)]) as arena, disk.session(arena=arena, protocol_features=WITHOUT_SLOTS) as session:
        driver = session.block()
        for n in range(4):
            check(driver, image_bytes)
            region = arena.add(Region((n + 1) << 32, 2 * MIB))
            session.frontend.set_mem_table(arena)
            at = arena.alloc(600, 1, region)
            session.queues[0].add([(at, 16)], [(at + 16, 512), (at + 590, 1)])
            session.queues[0].kick()
            assert [used.length for used in session.queues[0].wait()] == [513]
            assert arena.read(at + 16, 512) == image_bytes[:512]
            arena.free(at)
            if n % 2:
                arena.remove(region)
                session.frontend.set_mem_table(arena)


def test_regions_come_and_go_while_rings_run(disk, image_bytes):
    """ADD_MEM_REG, REM_MEM_REG: one region each, the others stay."""
    with Arena([Region(0, 8 * MIB)]) as arena, disk.session(arena=arena) as session:
        assert session.frontend.mem_slots >= 8
        driver = session.block()
        for n in range(40):
            region = arena.add(Region((n + 1) << 32, MIB, uva=(n + 1) << 33))
            session.frontend.add_region(arena, region)
            at = arena.alloc(600, 1, region)
            session.queues[0].add([(at, 16)], [(at + 16, 512), (at + 590, 1)])
            session.queues[0].kick()
            assert [used.length for used in session.queues[0].wait()] == [513]
            assert arena.read(at + 16, 512) == image_bytes[:512]
            arena.free(at)
            session.frontend.remove_region(region)
            arena.remove(region)
        check(driver, image_bytes)


def test_with_slots_the_map_survives_a_stop(disk, image_bytes):
    """FEATURES 1.4, quirk 9: with slots the regions are not sent again after a stop."""
    with disk.session() as session:
        for _ in range(3):
            check(session.block(), image_bytes)
            session.stop()
            assert session.frontend.regions == list(session.arena.regions)
            session.start()
        check(session.block(), image_bytes)


@pytest.mark.parametrize("slots", [False, True], ids=["table", "slots"])
def test_one_guest_after_another(disk, image_bytes, slots):
    """A connection starts from nothing; what the last one left is gone."""
    for n in range(5):
        protocol = PROTOCOL_FEATURES if slots else WITHOUT_SLOTS
        with disk.session(size=16 << n, protocol_features=protocol) as session:
            check(session.block(), image_bytes)
            if n % 2:
                session.stop()


def test_a_guest_that_goes_with_requests_in_flight(disk, image_bytes):
    """FEATURES 1.4, quirk 28: the socket just closes; the next guest finds a working disk."""
    for _ in range(5):
        with disk.session(size=256) as session:
            driver = session.block()
            for n in range(200):
                driver.submit(Request.OUT, 1024 + n, b"x" * 512, kick=n % 50 == 49)
    with disk.session() as session:
        check(session.block(), image_bytes)


def test_the_order_of_other_front_ends(disk, image_bytes):
    """FEATURES 1.4: base before address, call behind kick, memory before features, enable before all."""
    with Arena.of(8 * MIB) as arena, Frontend.connect(disk.socket) as frontend:
        frontend.negotiate()
        with Virtqueue(arena, 64, event_idx=True) as queue:
            frontend.enable(0)
            frontend.share(arena)
            frontend.set_features()
            frontend.set_num(0, 64)
            frontend.set_addr(0, queue)
            frontend.set_base(0, 0)
            frontend.set_kick(0, queue.kick_fd)
            frontend.set_call(0, queue.call_fd)
            frontend.set_err(0, queue.err_fd)
            check(BlockDriver(queue), image_bytes)
            assert frontend.get_base(0) == queue.next_avail


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_calls_and_kicks_are_saved(disk, event_idx):
    """2.7.7, 2.7.10: a batch of requests is far from a kick and a call each."""
    features = ALL if event_idx else ALL & ~Feature.EVENT_IDX
    with disk.session(size=256, features=features) as session:
        driver, queue = session.block(), session.queues[0]
        flying = [driver.submit(Request.IN, n, read_len=512, kick=False) for n in range(80)]
        queue.kick()
        for pending in flying:
            assert driver.complete(pending).ok
        assert queue.kicks == 1
