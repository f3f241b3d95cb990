"""R51, R60 to R63, R70 to R77: a second vCPU rewrites what we read, storms of kicks, calls that cannot be made."""

import fcntl
import os
import struct
import threading
import time

import pytest

from tests.hostile.attack import ALL_FEATURES, MIB, alive, guest, hang, header, writing
from tests.hostile.test_rings import Ring
from vhostd.driver.conformance.hostile.attacks import DATA_LEN, NEXT, SIZE, WRITE
from vhostd.driver.hammer import Hammer
from vhostd.driver.hotloop import block_load
from vhostd.spec.blk import Request, StatusByte
from vhostd.spec.virtio import Feature

SECONDS = 0.4
SAME_WORKER = 2  # rings 0 and 2 are of one worker where there are two


def entry(addr, length, flags=0, following=0):
    return struct.pack("<QIHH", addr, length, flags, following)


@pytest.fixture
def ring(target):
    with guest(target, queues=4, size=SIZE) as made:
        yield Ring(made, 0)


def attempts(ring, heads=(0,), seconds=SECONDS):
    """Offer a request again and again; whether each came back, the ring having been started anew where it broke."""
    until = time.monotonic() + seconds
    queue, made = ring.queue, ring.made
    while time.monotonic() < until:
        ring.arena.fill(ring.status, 1, 0xFF)
        before = queue.used_idx
        ring.offer(*heads)
        for _ in range(2000):
            if queue.used_idx != before:
                queue.raw_pop()
                yield True
                break
            if queue.take_err():
                made.frontend.get_base(0)
                made.frontend.bases.clear()
                queue.reset()
                made.start_ring(0)
                yield False
                break
            time.sleep(0.001)
        else:
            pytest.fail("a request neither came back nor broke the ring")


def status(ring):
    return ring.arena.read(ring.status, 1)[0]


def test_more_becomes_available_at_every_look(ring):
    """R51: a ring that is full for ever does not keep its worker from other rings, from mail, from its own end."""
    queue = ring.queue
    heads = 16  # of three descriptors each; the ring is as many long as they fit into it a whole number of times
    for n in range(heads):
        ring.good(first=3 * n)
    slots = ring.arena.view(queue.avail_gpa + 4, 2 * SIZE)
    for n in range(SIZE):
        slots[2 * n : 2 * n + 2] = struct.pack("<H", 3 * (n % heads))
    avail, used = ring.arena.view(queue.avail_gpa + 2, 2), ring.arena.view(queue.used_gpa + 2, 2)
    with Hammer.refill(avail, used, heads):
        os.eventfd_write(queue.kick_fd.number, 1)
        began = time.monotonic()
        for _ in range(20):
            assert ring.made.reads(SAME_WORKER)
            assert ring.made.reads(1)
            ring.made.frontend.enable(0)
        assert time.monotonic() - began < 5
        assert queue.used_idx
        ring.made.frontend.get_base(0)
        assert ring.made.reads(SAME_WORKER)
    for view in (slots, avail, used):
        view.release()


def test_the_index_runs_away(ring):
    """R51: raised without an end it is soon further ahead than the ring is long."""
    ring.good()
    view = ring.arena.view(ring.queue.avail_gpa + 2, 2)
    with Hammer.flip(view, [struct.pack("<H", n) for n in range(0, 65536, 3)]):
        for _ in range(50):
            os.eventfd_write(ring.queue.kick_fd.number, 1)
            if ring.made.broke(timeout=0.05):
                break
        else:
            pytest.fail("the ring did not break")
    view.release()
    assert ring.made.reads(SAME_WORKER)


def values(ring):
    """Pairs of values for each field of the descriptor of the data."""
    good = entry(ring.data, DATA_LEN, NEXT | WRITE, 2)
    return {
        "R60-addr-unmapped": (good, entry(1 << 40, DATA_LEN, NEXT | WRITE, 2)),
        "R60-addr-other": (good, entry(ring.other, DATA_LEN, NEXT | WRITE, 2)),
        "R60-len": (good, entry(ring.data, 0xFFFFFFFF, NEXT | WRITE, 2)),
        "R60-len-0": (good, entry(ring.data, 0, NEXT | WRITE, 2)),
        "R60-len-other": (good, entry(ring.data, 1024, NEXT | WRITE, 2)),
        "R60-readable": (good, entry(ring.data, DATA_LEN, NEXT, 2)),
        "R60-next": (good, entry(ring.data, DATA_LEN, NEXT | WRITE, 60000)),
        "R60-loop": (good, entry(ring.data, DATA_LEN, NEXT | WRITE, 1)),
        "R60-ends": (good, entry(ring.data, DATA_LEN, WRITE, 2)),
        "R60-indirect": (good, entry(ring.data, 48, 4, 0)),
        "R60-all": (good, entry(ring.other, 3, NEXT, 0), entry(2**64 - 1, 0xFFFFFFFF, 0xFFFF, 0xFFFF)),
    }


RACES = [
    "addr-unmapped",
    "addr-other",
    "len",
    "len-0",
    "len-other",
    "readable",
    "next",
    "loop",
    "ends",
    "indirect",
    "all",
]


@pytest.mark.parametrize("name", RACES, ids="R60-{}".format)
def test_a_descriptor_is_rewritten_while_we_read_it(ring, name):
    """R60: every outcome is that of one of the values; what was read is what is used."""
    ring.other = ring.arena.alloc(1024 + 64)
    guard = ring.arena.alloc(4096)
    ring.arena.fill(guard, 4096, 0x5A)
    ring.good()
    view = ring.arena.view(ring.queue.desc_gpa + 16, 16)
    outcomes = set()
    with Hammer.flip(view, values(ring)[f"R60-{name}"]) as hammer:
        for back in attempts(ring):
            outcomes.add(status(ring) if back else "broke")
            if back and status(ring) == StatusByte.OK and name in {"addr-unmapped", "len"}:
                assert ring.arena.read(ring.data, DATA_LEN) == ring.made.target.content[1536:2048]
        assert hammer.turns > 1000
    view.release()
    assert outcomes <= {
        StatusByte.OK,
        StatusByte.IOERR,
        StatusByte.UNSUPP,
        "broke",
        0xFF,
        *ring.made.target.content[1536:3000],
    }
    assert ring.arena.read(guard, 4096) == b"\x5a" * 4096


@pytest.mark.parametrize("name", ["sector", "sector-far", "type"], ids="R61-{}".format)
def test_a_header_is_rewritten_while_we_read_it(ring, name):
    """R61: it is copied once: what is checked is what is done."""
    one = header(Request.IN, 3)
    two = {"sector": header(Request.IN, 5), "sector-far": header(Request.IN, 3 | 1 << 63), "type": header(0x1234, 3)}[
        name
    ]
    good = {ring.made.target.content[1536:2048]}
    if name == "sector":
        good.add(ring.made.target.content[5 * 512 :][:512])
    ring.good()
    view = ring.arena.view(ring.head, 16)
    outcomes = set()
    with Hammer.flip(view, [one, two]):
        for back in attempts(ring):
            assert back
            outcomes.add(status(ring))
            if status(ring) == StatusByte.OK:
                assert ring.arena.read(ring.data, DATA_LEN) in good
    view.release()
    assert outcomes <= {StatusByte.OK, {"sector": 0, "sector-far": 1, "type": 2}[name]}


@pytest.mark.writes
def test_data_is_rewritten_while_it_is_written(ring):
    """R62: each byte on the disk is one of the two; nothing else changes."""
    ring.arena.write(ring.head, header(Request.OUT, 3))
    ring.arena.fill(ring.data, DATA_LEN, 0x11)
    ring.chain((ring.head, 16, 0), (ring.data, DATA_LEN, 0), (ring.status, 1, WRITE))
    view = ring.arena.view(ring.data, DATA_LEN)
    with Hammer.flip(view, [b"\x11" * DATA_LEN, b"\x22" * DATA_LEN]):
        for back in attempts(ring):
            assert back
            assert status(ring) == StatusByte.OK
            image = ring.made.target.image.read_bytes()
            assert set(image[1536:2048]) <= {0x11, 0x22}
            content = ring.made.target.content
            assert image[:1536] + image[2048:] == content[:1536] + content[2048:]
    view.release()


@pytest.mark.parametrize("name", ["next", "loop", "indirect", "unmapped"], ids="R63-{}".format)
def test_a_table_is_rewritten_during_the_walk(ring, name):
    """R63: as R60, in an indirect table."""
    at = ring.table(*ring.entries())
    good = entry(ring.data, DATA_LEN, NEXT | WRITE, 2)
    bad = {
        "next": entry(ring.data, DATA_LEN, NEXT | WRITE, 3),
        "loop": entry(ring.data, DATA_LEN, NEXT | WRITE, 1),
        "indirect": entry(at, 48, 4, 0),
        "unmapped": entry(1 << 40, DATA_LEN, NEXT | WRITE, 2),
    }[name]
    view = ring.arena.view(at + 16, 16)
    outcomes = set()
    content = ring.made.target.content
    # A loop that is left after some rounds is a chain with the buffer in it as often: the last sector stays in it.
    rounds = 1024 if name == "loop" else 1
    wanted = {content[512 * n :][:512] for n in range(3, 3 + rounds)}
    with Hammer.flip(view, [good, bad]):
        for back in attempts(ring):
            outcomes.add(status(ring) if back else "broke")
            if back and status(ring) == StatusByte.OK:
                assert ring.arena.read(ring.data, DATA_LEN) in wanted
    view.release()
    assert outcomes <= ({StatusByte.OK, StatusByte.IOERR} if name == "unmapped" else {StatusByte.OK, "broke"})


def test_segments_are_rewritten_while_we_read_them(ring):
    """R61: a discard beyond the end is never taken for the one that was checked. The image stays as it was."""
    segment = ring.arena.alloc(16)
    ring.arena.write(ring.head, header(Request.DISCARD))
    ring.chain((ring.head, 16, 0), (segment, 16, 0), (ring.status, 1, WRITE))
    view = ring.arena.view(segment, 16)
    far = struct.pack("<QII", 1 << 40, 8, 0)
    reserved = struct.pack("<QII", 0, 8, 2)
    with Hammer.flip(view, [far, reserved, struct.pack("<QII", 0, 0, 0)]):
        for back in attempts(ring):
            assert back
            assert status(ring) in {StatusByte.OK, StatusByte.IOERR, StatusByte.UNSUPP}
    view.release()


@pytest.mark.parametrize("event_idx", [True, False], ids=["R70-event-idx", "R70-flags"])
def test_a_driver_that_does_not_kick(target, event_idx):
    """R70: nothing happens until a kick comes, and then all of it does."""
    features = ALL_FEATURES if event_idx else ALL_FEATURES & ~Feature.EVENT_IDX
    with guest(target, features=features) as made:
        assert made.reads()
        time.sleep(0.05)
        driver = made.block()
        flying = [driver.submit(Request.IN, n, read_len=512, kick=False) for n in range(10)]
        made.queue.publish()
        time.sleep(0.05)
        assert made.queue.used_idx == 1
        made.queue.kick(force=True)
        for pending in flying:
            assert driver.complete(pending).ok


def test_a_storm_of_kicks(target):
    """R72: the ring that is kicked has nothing; its neighbours are served, and when it is over all is quiet."""
    with guest(target, queues=4) as made:
        with Hammer.kick(made.queue.kick_fd.number) as hammer:
            until, slowest, reads = time.monotonic() + 1, 0, 0
            while time.monotonic() < until:
                began = time.monotonic()
                assert made.reads(SAME_WORKER, length=512)
                slowest = max(slowest, time.monotonic() - began)
                reads += 1
            assert alive(made.frontend)
        assert hammer.turns > 1000
        assert slowest < 1
        assert reads > 20
        assert made.reads(0)
        assert target.idle_cpu_ns() < 10_000_000


def test_a_storm_of_kicks_on_a_broken_ring(target):
    """R72: a broken ring is kicked for nothing."""
    with guest(target, queues=4) as made:
        made.queue.raw_push(60000)
        made.queue.kick(force=True)
        assert made.broke()
        with Hammer.kick(made.queue.kick_fd.number):
            for _ in range(50):
                assert made.reads(SAME_WORKER, length=512)
        assert made.queue.take_err() == 0
        assert target.idle_cpu_ns() < 10_000_000


def test_no_interrupt_toggled_at_random(target):
    """R73: completions are visible in the ring whether or not a call is made for them."""
    with guest(target, features=ALL_FEATURES & ~Feature.EVENT_IDX) as made:
        view = made.arena.view(made.queue.avail_gpa, 2)
        driver = made.block()
        driver.poll = True
        with Hammer.flip(view, [b"\0\0", b"\1\0"]):
            for n in range(300):
                assert driver.read(n % 64, 512) == target.content[n % 64 * 512 :][:512]
        view.release()


@pytest.mark.parametrize("size", [1, 2, 256, 32768], ids="R76-{}".format)
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
def test_the_indices_wrap(target, size, event_idx):
    """R76: from 65,500 on, past 65,535 and 0."""
    features = ALL_FEATURES if event_idx else ALL_FEATURES & ~Feature.EVENT_IDX
    with guest(target, size=size, base=65500, features=features, memory_len=8 * MIB, indirect=True) as made:
        driver = made.block()
        done = 0
        while done < 120:
            count = min(size, 40)
            flying = [driver.submit(Request.IN, n, read_len=512, kick=False) for n in range(count)]
            made.queue.kick()
            for n, pending in enumerate(flying):
                assert driver.complete(pending).data == target.content[n * 512 :][:512]
            done += count
        assert made.frontend.get_base(0) == (65500 + done) % 65536


def test_seventy_thousand_requests(target):
    """R76: the long way round."""
    with guest(target, size=256, memory_len=16 * MIB) as made:
        ios = 0
        until = time.monotonic() + 20
        while ios < 70_000 and time.monotonic() < until:
            counters = block_load(
                made.queue, depth=64, block_len=512, disk_len=4 * MIB, duration_ns=300_000_000, poll=True
            )
            assert (counters.errors, counters.short) == (0, 0)
            ios += counters.ios
        assert ios >= 70_000


@pytest.mark.parametrize("which", ["call", "err"], ids="R77-{}".format)
@pytest.mark.parametrize("when", ["idle", "busy"])
def test_an_eventfd_that_is_made_to_block(target, which, when):
    """R77: the mode belongs to the open file: the front-end makes it block again and fills it, and our worker hangs in
    the write of a call; that of an error is looked at each time. Messages are answered or the connection ends, and the
    next guest is served, on every ring.
    """
    with guest(target, queues=4) as made:
        queue = made.queue
        if which == "err":
            os.set_blocking(queue.err_fd.number, True)
            os.eventfd_write(queue.err_fd.number, 0xFFFFFFFFFFFFFFFE)
            queue.raw_push(60000)
            queue.kick(force=True)
            time.sleep(0.05)
            assert not writing(target.pid)
        else:
            hang(made)
        if when == "busy":
            assert made.attempt(18, struct.pack("<II", 0, 1)) in {"done", "refused", "closed"}


@pytest.mark.parametrize("request_", [12, 13, 14], ids=["R77-kick", "R77-call", "R77-err"])
def test_an_eventfd_whose_mode_is_toggled(target, request_):
    """R77: whatever mode it has in the moment we look at it, the control thread does not wait for it."""
    with guest(target) as made:
        number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stop = threading.Event()

        def toggle():
            while not stop.is_set():
                fcntl.fcntl(number, fcntl.F_SETFL, os.O_RDWR)
                fcntl.fcntl(number, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)

        toggling = threading.Thread(target=toggle)
        toggling.start()
        try:
            for _ in range(200):
                assert made.attempt(request_, bytes(8), [number]) == "done"
        finally:
            stop.set()
            toggling.join()
            os.eventfd_write(number, 1)
            os.close(number)
