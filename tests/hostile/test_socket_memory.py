"""S61 to S84: guest memory that overlaps, wraps, is too short, goes away, or is cut short under us."""

import contextlib
import fcntl
import os
import threading
import time

import pytest

from tests.hostile.attack import (
    MIB,
    NO_SLOTS,
    OWN_REPLY,
    addr,
    alive,
    attempt,
    closed,
    guest,
    header,
    single,
    table,
)  # fmt: skip
from vhostd.driver.arena import Arena, Region
from vhostd.driver.hotloop import block_load
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError
from vhostd.spec.blk import Request, StatusByte
from vhostd.spec.vhost_user import FrontendRequest

R = FrontendRequest
TOP = 2**64
FREE = 1 << 40  # where no region lies


@contextlib.contextmanager
def memfd(length, *, seals=0):
    number = os.memfd_create("attack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(number, length)
        if seals:
            fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
        yield number
    finally:
        os.close(number)


# (gpa, length, uva, offset) of a region over a file of a MiB.
BAD_REGIONS = {
    "S61-empty": (FREE, 0, FREE, 0),
    "S62-longer-than-its-file": (FREE, MIB + 1, FREE, 0),
    "S62-much-longer": (FREE, 1 << 30, FREE, 0),
    "S62-offset-past-the-end": (FREE, 4096, FREE, MIB),
    "S62-offset-and-length": (FREE, MIB, FREE, 4096),
    "S62-offset-far": (FREE, 4096, FREE, 1 << 50),
    "S63-gpa-wraps": (TOP - 4096, 8192, FREE, 0),
    "S63-uva-wraps": (FREE, 8192, TOP - 4096, 0),
    "S63-offset-wraps": (FREE, 8192, FREE, TOP - 4096),
    "S63-offset-wraps-to-zero": (FREE, MIB, FREE, TOP - MIB),
    "S63-2^62": (FREE, 1 << 62, FREE, 0),
    "S63-2^63": (FREE, 1 << 63, FREE, 0),
    "S63-2^64-1": (0, TOP - 1, 0, 0),
    "S63-signed-offset": (FREE, 4096, FREE, 1 << 63),
}


@pytest.mark.parametrize("slots", [True, False], ids=["slot", "table"])
@pytest.mark.parametrize("name", BAD_REGIONS)
def test_an_impossible_region(target, name, slots):
    """S61 to S63: refused by arithmetic and fstat; the map before stays."""
    place = BAD_REGIONS[name]
    with guest(target) as bad, memfd(MIB) as number:
        request, payload = (R.ADD_MEM_REG, single(*place)) if slots else (R.SET_MEM_TABLE, table(place))
        assert bad.attempt(request, payload, [number]) == "refused"
        assert bad.reads()
        assert bad.attempt(request, payload, [number], ack=False) == "closed"


@pytest.mark.parametrize("length", [1 << 46, 1 << 47, 1 << 56], ids="S63-sparse-{:#x}".format)
def test_a_region_of_a_sparse_file(target, length):
    """S63: a file may be as long as it likes; what we map has a limit, and mapping costs no memory."""
    with guest(target) as bad, memfd(length) as number:
        assert bad.attempt(R.ADD_MEM_REG, single(FREE, length, FREE), [number]) in {"done", "refused"}
        assert bad.reads()


@pytest.mark.parametrize(
    ("gpa", "length", "uva", "offset"),
    [(FREE + 1, 4095, FREE + 7, 3), (FREE + 16, MIB - 4096, FREE + 16, 4080), (FREE, 1, FREE, MIB - 1)],
    ids=["S64-odd", "S64-offset-4080", "S64-last-byte"],
)
def test_a_region_that_is_not_aligned(target, gpa, length, uva, offset):
    """S64: the document asks for no alignment; what lies beside the region in its file is not the guest's to use."""
    with guest(target) as odd, memfd(MIB) as number:
        assert odd.attempt(R.ADD_MEM_REG, single(gpa, length, uva, offset), [number]) == "done"
        assert odd.attempt(R.REM_MEM_REG, single(gpa, length, uva, offset)) == "done"
        assert odd.reads()


OVERLAPS = {
    "S65-gpa": [(FREE, MIB, FREE, 0), (FREE + 4096, MIB, FREE + (1 << 35), 0)],
    "S65-gpa-inside": [(FREE, MIB, FREE, 0), (FREE + 4096, 4096, FREE + (1 << 35), 0)],
    "S65-gpa-last-byte": [(FREE, MIB, FREE, 0), (FREE + MIB - 1, MIB, FREE + (1 << 35), 0)],
    "S66-uva": [(FREE, MIB, FREE, 0), (FREE + (1 << 35), MIB, FREE + 4096, 0)],
    "S66-uva-around": [(FREE, 4096, FREE + 4096, 0), (FREE + (1 << 35), MIB, FREE, 0)],
    "S66-equal": [(FREE, MIB, FREE, 0)] * 8,
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_regions_that_overlap(target, name):
    """S65, S66: in guest addresses or in the front-end's."""
    places = OVERLAPS[name]
    with guest(target, protocol=NO_SLOTS) as bad, memfd(MIB) as number:
        assert bad.attempt(R.SET_MEM_TABLE, table(*places), [number] * len(places)) == "refused"
        assert bad.reads()


@pytest.mark.parametrize("name", ["S65-gpa", "S65-gpa-last-byte", "S66-uva", "S66-uva-around"])
def test_a_slot_that_overlaps(target, name):
    """S65, S66: the second of two slots."""
    first, second = OVERLAPS[name]
    with guest(target) as bad, memfd(MIB) as number:
        assert bad.attempt(R.ADD_MEM_REG, single(*first), [number]) == "done"
        assert bad.attempt(R.ADD_MEM_REG, single(*second), [number]) == "refused"
        assert bad.reads()


def test_one_file_in_two_regions(target):
    """S67: an alias is allowed; a byte read through one is the byte of the other."""
    with Arena.of(4 * MIB) as arena, guest(target, arena=arena) as odd:
        region = arena.regions[0]
        assert odd.attempt(R.ADD_MEM_REG, single(FREE, 4 * MIB, FREE), [arena.fd(region)]) == "done"
        at = arena.alloc(8192)
        arena.write(at, header(Request.IN, 8))
        alias = FREE + at - region.gpa
        odd.queue.add([(alias, 16)], [(alias + 512, 4096), (alias + 5000, 1)])
        odd.queue.kick()
        assert odd.queue.wait()[0].length == 4097
        assert arena.read(at + 512, 4096) == target.content[4096:8192]


@pytest.mark.parametrize(
    ("count", "bytes_", "fds"),
    [
        pytest.param(count, 32 * places, fds, id=f"S70-{count:#x}-of-{places}-with-{fds}")
        for count, places, fds in [
            (0, 0, 0),
            (0, 1, 1),
            (2, 1, 2),
            (9, 8, 8),
            (9, 9, 8),
            (255, 1, 1),
            (0xFFFFFFFF, 1, 1),
            (1, 2, 2),
        ]
    ],
)
def test_a_table_that_lies_about_its_length(target, count, bytes_, fds):
    """S70 to S73: the number of regions, the bytes and the descriptors agree, or it is refused."""
    with guest(target, protocol=NO_SLOTS) as bad, memfd(MIB) as number:
        payload = count.to_bytes(4, "little") + bytes(4) + (table((FREE, MIB, FREE, 0))[8:] * 9)[:bytes_]
        assert bad.attempt(R.SET_MEM_TABLE, payload, [number] * fds) == "refused"
        assert bad.reads()


@pytest.mark.parametrize("places", [2, 8], ids="S71-{}-places".format)
def test_a_table_with_places_left(target, places):
    """S71: places behind the last region are not looked at; User-Mode Linux always sends two."""
    with guest(target, protocol=NO_SLOTS) as odd:
        (region,) = odd.arena.regions
        payload = table((region.gpa, region.length, region.front_uva, 0)) + b"\xff" * 32 * (places - 1)
        assert odd.attempt(R.SET_MEM_TABLE, payload, [odd.arena.fd(region)]) == "done"
        assert odd.reads()


def test_padding_of_a_table(target):
    """S74: is not looked at."""
    with guest(target, "negotiated", protocol=NO_SLOTS) as odd, memfd(MIB) as number:
        payload = table((FREE, MIB, FREE, 0), padding=0xFFFFFFFF)
        assert odd.attempt(R.SET_MEM_TABLE, payload, [number]) == "done"


def loaded(made, seconds):
    """Load on the first ring, in a thread; join it for its counters."""
    result = []
    thread = threading.Thread(
        target=lambda: result.append(
            block_load(made.queue, depth=16, block_len=4096, disk_len=4 * MIB, duration_ns=int(seconds * 1e9))
        )
    )
    thread.start()
    return thread, result


def test_the_same_table_while_rings_run(target):
    """S75: memory hot-plug without slots; no request is lost."""
    with guest(target, protocol=NO_SLOTS, memory_len=16 * MIB) as odd:
        thread, result = loaded(odd, 0.4)
        tables = 0
        while thread.is_alive():
            odd.frontend.set_mem_table(odd.arena)
            tables += 1
        thread.join()
        assert (result[0].errors, result[0].short) == (0, 0)
        assert tables > 20


def test_slots_that_come_and_go_while_rings_run(target):
    """S75, S77, F27."""
    with guest(target, memory_len=16 * MIB) as odd, memfd(MIB) as number:
        thread, result = loaded(odd, 0.4)
        while thread.is_alive():
            assert odd.attempt(R.ADD_MEM_REG, single(FREE, MIB, FREE), [number]) == "done"
            assert odd.attempt(R.REM_MEM_REG, single(FREE, MIB, FREE)) == "done"
        thread.join()
        assert (result[0].errors, result[0].short) == (0, 0)
        assert result[0].ios > 100


@pytest.mark.parametrize("flying", [0, 60], ids="S76-{}-in-flight".format)
def test_a_table_without_the_memory_of_a_ring(target, flying):
    """S76, S77: the ring stops, loudly; what is in flight ends in the old memory first; GET_VRING_BASE answers."""
    with guest(target, protocol=NO_SLOTS, size=256) as bad, memfd(MIB) as number:
        driver = bad.block()
        for n in range(flying):
            driver.submit(Request.IN, n, read_len=4096, kick=False)
        bad.queue.kick()
        assert bad.attempt(R.SET_MEM_TABLE, table((FREE, MIB, FREE, 0)), [number]) == "done"
        assert bad.broke()
        assert bad.frontend.get_base(0) == bad.queue.used_idx
        bad.frontend.share(bad.arena)
        bad.frontend.bases[0] = bad.queue.used_idx
        bad.start_ring()
        assert bad.reads()


def test_a_ring_that_lost_its_memory_is_kicked_on(target):
    """S76: without GET_VRING_BASE it goes on where it stood, not where it was started."""
    with guest(target, protocol=NO_SLOTS) as odd, memfd(MIB) as number:
        for _ in range(3):
            assert odd.reads()
        assert odd.attempt(R.SET_MEM_TABLE, table((FREE, MIB, FREE, 0)), [number]) == "done"
        assert odd.broke()
        odd.frontend.set_mem_table(odd.arena)
        odd.frontend.set_kick(0, odd.queue.kick_fd)
        assert odd.reads()
        assert odd.frontend.get_base(0) == 4


def test_the_region_of_a_ring_is_removed(target):
    """S84: REM_MEM_REG of a live ring's region: the ring stops, loudly; twice is refused; a descriptor is closed."""
    with guest(target) as bad:
        region = bad.arena.regions[0]
        place = (region.gpa, region.length, region.front_uva)
        assert bad.attempt(R.REM_MEM_REG, single(*place), [bad.arena.fd(region)]) == "done"
        assert bad.broke()
        assert bad.attempt(R.REM_MEM_REG, single(*place)) == "refused"
        assert bad.frontend.get_base(0) == 0
        bad.frontend.regions.clear()
        bad.frontend.share(bad.arena)
        bad.start_ring()
        assert bad.reads()


@pytest.mark.parametrize("which", ["unknown", "length", "uva", "gpa"], ids="S84-{}".format)
def test_a_region_that_is_not_there_is_removed(target, which):
    """S84: it must be the same in all three."""
    with guest(target) as bad:
        region = bad.arena.regions[0]
        place = {"gpa": region.gpa, "length": region.length, "uva": region.front_uva}
        if which == "unknown":
            place["gpa"] = place["uva"] = FREE
        else:
            place[which] += 4096
        assert bad.attempt(R.REM_MEM_REG, single(place["gpa"], place["length"], place["uva"])) == "refused"
        assert bad.reads()
        assert bad.attempt(R.REM_MEM_REG, single(FREE, MIB, FREE), ack=False) == "closed"


def test_all_slots_and_one_more(target):
    """S83: 509 slots; the next is refused, one that is there already takes none, one that overlaps is refused."""
    with guest(target) as bad, memfd(4096) as number:
        slots = bad.frontend.mem_slots
        for n in range(slots - 1):
            assert bad.attempt(R.ADD_MEM_REG, single(FREE + n * 4096, 4096, FREE + n * 4096), [number]) == "done"
        assert bad.attempt(R.ADD_MEM_REG, single(1 << 50, 4096, 1 << 50), [number]) == "refused"
        assert bad.reads()
        assert bad.attempt(R.REM_MEM_REG, single(FREE, 4096, FREE)) == "done"
        assert bad.attempt(R.ADD_MEM_REG, single(FREE + 4096, 4096, FREE + 4096), [number]) == "done"
        assert bad.attempt(R.ADD_MEM_REG, single(FREE + 4096, 4095, FREE + 4096), [number]) == "refused"
        assert bad.attempt(R.ADD_MEM_REG, single(1 << 50, 4096, 1 << 50), [number]) == "done"
        assert bad.reads()


def test_memory_that_is_not_sealed(target):
    """S82: is accepted."""
    with Arena([Region(0, 4 * MIB)], seal=False) as arena, guest(target, arena=arena) as odd:
        assert odd.reads()


def test_memory_sealed_against_writing_by_others(target):
    """S82: F_SEAL_FUTURE_WRITE makes a file that we cannot map for writing."""
    with guest(target) as bad, memfd(MIB, seals=0x10) as number:
        assert bad.attempt(R.ADD_MEM_REG, single(FREE, MIB, FREE), [number]) == "refused"
        assert bad.reads()


# Memory that vanishes: the front-end cuts the file behind a region that we have mapped.

RINGS = Region(0x1000_0000, 4 * MIB)
BUFFERS = Region(0x4000_0000, 4 * MIB)


@contextlib.contextmanager
def cuttable(target, **options):
    """A guest whose rings and buffers lie in files of their own, neither sealed."""
    with Arena([RINGS, BUFFERS], seal=False) as arena, guest(target, arena=arena, **options) as bad:
        yield bad


def gone(bad, *, verr=True):
    """The connection is closed, and the ring's error eventfd has been written before."""
    assert closed(bad.frontend, 5.0)
    if verr:
        assert bad.queue.take_err()


@pytest.mark.parametrize("length", [0, 4096], ids="S78-{}".format)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "load"])
def test_the_memory_of_a_ring_is_cut(target, length, busy):
    """S78: the next touch is a SIGBUS: the ring is broken, loudly, and the connection closed; the daemon lives."""
    with cuttable(target, size=256) as bad:
        assert bad.reads()
        if busy:
            driver = bad.block()
            for n in range(60):
                driver.submit(Request.IN, n, read_len=4096, kick=False)
            bad.queue.kick(force=True)
        bad.arena.truncate(RINGS, length)
        os.eventfd_write(bad.queue.kick_fd.number, 1)
        gone(bad)


def offer(bad, header_at, data_at, status_at, length=4096, indirect=None):
    """Put a read request with its parts anywhere."""
    bad.queue.add([(header_at, 16)], [(data_at, length), (status_at, 1)], indirect=indirect)


@pytest.mark.parametrize("part", ["header", "data", "status", "table"], ids="S79-{}".format)
def test_a_part_of_a_request_is_cut(target, part):
    """S79, S80: a vanished header, status or indirect table breaks the device, vanished data is the request's error."""
    with cuttable(target) as bad:
        good = bad.arena.alloc(8192, 4096, RINGS)
        places = {"header": good, "data": good + 64, "status": good + 8000}
        bad.arena.write(good, header(Request.IN, 0))
        bad.arena.fill(good + 8000, 1, 0xFF)
        lost = BUFFERS.gpa + 2 * MIB
        if part == "table":
            bad.queue.raw_desc(0, lost, 48, 4)
            bad.queue.raw_push(0)
        else:
            places[part] = lost
            if part == "header":
                bad.arena.write(lost, header(Request.IN, 0))
            offer(bad, places["header"], places["data"], places["status"])
        bad.arena.truncate(BUFFERS, MIB)
        bad.queue.kick()
        if part == "data":
            assert bad.queue.wait()[0].length < 4096
            assert bad.arena.read(places["status"], 1) == bytes([StatusByte.IOERR])
            bad.block().poll = False
        else:
            gone(bad)


@pytest.mark.parametrize("kind", [Request.IN, Request.OUT], ids=lambda k: f"S79-{k.name}")
@pytest.mark.writes
def test_data_is_cut_under_load(target, kind):
    """S79: EFAULT of a transfer is an IOERR, again and again; the ring goes on."""
    with cuttable(target, size=64) as bad:
        for turn in range(30):
            head = bad.arena.alloc(32, 16, RINGS)
            bad.arena.write(head, header(kind, turn))
            lost = BUFFERS.gpa + (turn + 1) * 4096 * 8
            if turn == 3:
                bad.arena.truncate(BUFFERS, 0)
            if kind == Request.IN:
                bad.queue.add([(head, 16)], [(lost, 4096), (head + 16, 1)])
            else:
                bad.queue.add([(head, 16), (lost, 4096)], [(head + 16, 1)])
            bad.queue.kick()
            assert bad.queue.wait()
            status = bad.arena.read(head + 16, 1)[0]
            assert status == (StatusByte.OK if turn < 3 else StatusByte.IOERR)


def test_a_hole_is_punched_into_buffers(target):
    """S80: a hole in a memfd reads as zeroes and faults no one; a header of zeroes is a read of sector 0."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with cuttable(target) as odd:
        at = odd.arena.alloc(8192, 4096, BUFFERS)
        odd.arena.write(at, header(Request.OUT, 7))
        number = odd.arena.fd(BUFFERS)
        punched = libc.fallocate(number, 3, ctypes.c_long(at - BUFFERS.gpa), ctypes.c_long(4096))
        assert punched == 0
        status = odd.arena.alloc(1, 1, RINGS)
        odd.queue.add([(at, 16)], [(at + 4096, 512), (status, 1)])
        odd.queue.kick()
        assert odd.queue.wait()[0].length == 513
        assert odd.arena.read(at + 4096, 512) == target.content[:512]


def test_a_hole_is_punched_into_the_rings(target):
    """S80: the rings read as zeroes: avail.idx has gone back to 0, which breaks the ring; nobody faults."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with cuttable(target) as bad:
        for _ in range(5):
            assert bad.reads()
        assert libc.fallocate(bad.arena.fd(RINGS), 3, ctypes.c_long(0), ctypes.c_long(RINGS.length)) == 0
        os.eventfd_write(bad.queue.kick_fd.number, 1)
        assert bad.broke()
        assert alive(bad.frontend)
        assert bad.frontend.get_base(0) == 5


def test_memory_is_cut_before_a_ring_starts(target):
    """S78: the control thread touches the used ring when it builds the queue."""
    with Arena([RINGS, BUFFERS], seal=False) as arena, guest(target, "memory", arena=arena) as bad:
        bad.frontend.set_num(0, 64)
        bad.frontend.set_addr(0, bad.queue)
        arena.truncate(RINGS, 0)
        attempt(bad.frontend, R.SET_VRING_KICK, bytes(8), [bad.queue.kick_fd.number])
        gone(bad, verr=False)


@pytest.mark.parametrize("base", [0, 5], ids="S78-base-{}".format)
def test_memory_is_cut_where_only_a_worker_looks(target, base):
    """S78: the used ring is there, the available ring is not: the ring breaks in the moment it starts."""
    with Arena([RINGS, BUFFERS], seal=False) as arena:
        parts = RINGS.gpa, RINGS.gpa + 0x10000, BUFFERS.gpa
        with guest(target, "memory", arena=arena) as bad, Virtqueue(arena, 64, event_idx=True, parts=parts) as queue:
            bad.queues[0] = queue
            desc, avail, used = queue.uvas
            bad.frontend.set_num(0, 64)
            bad.frontend.set_base(0, base)
            assert bad.attempt(R.SET_VRING_ADDR, addr(0, desc, used, avail)) == "done"
            bad.frontend.set_err(0, queue.err_fd)
            bad.frontend.enable(0)
            arena.truncate(RINGS, 0)
            attempt(bad.frontend, R.SET_VRING_KICK, bytes(8), [queue.kick_fd.number])
            gone(bad)


def test_memory_is_cut_and_nobody_touches_it(target):
    """S78: a message after that is served, and the end of the session gives it back."""
    with Arena([RINGS, BUFFERS], seal=False) as arena, guest(target, arena=arena) as odd:
        arena.truncate(BUFFERS, 0)
        assert alive(odd.frontend)
        assert odd.attempt(R.GET_FEATURES) == "done"


@pytest.mark.parametrize("turns", [20], ids="S78-{}-times".format)
def test_memory_is_cut_again_and_again(target, turns):
    """S78: under load, at any moment, twenty guests."""
    for turn in range(turns):
        with cuttable(target, size=64) as bad:
            driver = bad.block()
            for n in range(10):
                driver.submit(Request.IN, n, read_len=512, kick=False)
            bad.queue.kick(force=True)
            time.sleep(turn * 0.0001)
            bad.arena.truncate(RINGS, 4096 * (turn % 3))
            os.eventfd_write(bad.queue.kick_fd.number, 1)
            with contextlib.suppress(DeviceError):
                bad.frontend.get_base(0)


def test_every_message_after_memory_was_cut(target):
    """S78, S145: whatever is asked then, the daemon lives."""
    for request in sorted(set(R) - {R.SET_MEM_TABLE}):
        with Arena([RINGS, BUFFERS], seal=False) as arena, guest(target, arena=arena) as bad:
            arena.truncate(RINGS, 0)
            with contextlib.suppress(DeviceError):
                attempt(bad.frontend, request, bytes(8) if request not in OWN_REPLY else b"")


def test_hugetlb_memory(target):
    """S81: where the host has huge pages to give, a file without one behind it faults as a cut one does."""
    pages = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    if not os.access(pages, os.W_OK):
        return
    length = 8 * MIB
    number = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    try:
        os.ftruncate(number, length)
        with guest(target) as odd:
            assert odd.attempt(R.ADD_MEM_REG, single(FREE, length, FREE), [number]) == "done"
            at = odd.arena.alloc(64)
            odd.arena.write(at, header(Request.IN, 0))
            odd.queue.add([(at, 16)], [(FREE, 512), (at + 16, 1)])
            odd.queue.kick()
            odd.queue.wait()
            assert odd.arena.read(at + 16, 1)[0] in {StatusByte.OK, StatusByte.IOERR}
            # A status there is written by us and not by the kernel: without a page it is a SIGBUS.
            odd.queue.add([(at, 16)], [(at + 17, 512), (FREE + 2 * MIB, 1)])
            odd.queue.kick()
            with contextlib.suppress(DeviceError):
                odd.queue.wait(2)
    finally:
        os.close(number)
