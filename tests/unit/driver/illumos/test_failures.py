"""illumos_E8: what would panic, hang or corrupt the guest is raised, with its row. The device is played by hand."""

import time

import pytest

from tests.support.net import frame
from tests.support.paper import Paper, card_config, disk_config, serves_id, use
from vhostd.driver.illumos import (
    GuestCorrupted,
    GuestHangs,
    GuestPanics,
    IllumosGuest,
    IoError,
    Layout,
    attach,
)
from vhostd.driver.illumos import net as driver_net
from vhostd.driver.illumos.control import Control
from vhostd.driver.illumos.memory import Zone
from vhostd.driver.illumos.ring import Ring
from vhostd.spec.blk import Request


@pytest.fixture
def disk():
    paper = Paper(config=disk_config())
    serves_id(b"id".ljust(20, b"\0"))(paper)
    return attach(IllumosGuest("block", 2026, "modern", timeout=0.05, size=8), paper, paper.memory)


def asked(disk, kind=Request.IN, length=512):
    page = disk.memory.buffer(Zone.DATA, 4096)
    return disk.disk.submit(kind, 0, [(page.pieces[0][0], length)])


def answer(disk, job, status=0):
    disk.memory.arena.write(job.slot.status, bytes([status]))


def test_illumos_E8_an_unknown_id(disk):
    job = asked(disk)
    use(disk.rings[0], 5, 1)
    with pytest.raises(GuestPanics, match="names no chain"):
        disk.disk.wait(job)


def test_illumos_E8_a_repeated_id(disk):
    job = asked(disk)
    use(disk.rings[0], 0, 513)
    use(disk.rings[0], 0, 513)
    with pytest.raises(GuestPanics, match="names no chain"):
        disk.disk.wait(job)


@pytest.mark.parametrize("number", [8, 9, 65535, 2**32 - 1])
def test_illumos_E8_an_id_outside_the_ring(disk, number):
    job = asked(disk)
    use(disk.rings[0], number, 1)
    with pytest.raises(GuestPanics, match="of a ring of 8"):
        disk.disk.wait(job)


@pytest.mark.parametrize("status", [3, 4, 0xFF])
def test_illumos_R2_12_a_status_there_is_not(disk, status):
    job = asked(disk)
    answer(disk, job, status)
    use(disk.rings[0], 0, 513)
    with pytest.raises(GuestCorrupted, match=r"R2\.12"):
        disk.disk.wait(job)


@pytest.mark.parametrize(("status", "errno"), [(1, "EIO"), (2, "ENOTTY")])
def test_illumos_R2_12_errors_go_up(disk, status, errno):
    job = asked(disk)
    answer(disk, job, status)
    use(disk.rings[0], 0, 1)
    with pytest.raises(IoError) as caught:
        disk.disk.wait(job)
    assert caught.value.errno == errno


@pytest.mark.parametrize("length", [0, 1, 512, 514])
def test_illumos_R2_25_a_wrong_used_length(disk, length):
    job = asked(disk)
    use(disk.rings[0], 0, length)
    with pytest.raises(GuestCorrupted, match=r"R2\.25"):
        disk.disk.wait(job)


def test_illumos_E4_used_without_an_interrupt(disk):
    """E.4: the handler is called by the interrupt alone."""
    job = asked(disk)
    use(disk.rings[0], 0, 513, call=False)
    with pytest.raises(GuestHangs, match="though used"):
        disk.disk.wait(job)


def test_illumos_E4_a_dump_polls(disk):
    """E.4: a panicking kernel takes no interrupt: what is used is seen; older requests come back in between."""
    older = asked(disk)
    ring, real = disk.rings[0], disk.rings[0].flush

    def flush():
        real()
        for head, chain in list(ring.in_flight.items()):
            use(ring, head, chain.token.used_len, call=False)

    ring.flush = flush
    disk.disk.dump(0, bytes(8192))
    assert older.status == 0
    assert not ring.interrupted(0)


def test_illumos_E4_a_dump_without_answer(disk):
    with pytest.raises(GuestHangs, match="illumos_E4"):
        disk.disk.dump(0, bytes(512))


def test_illumos_R2_40_memory_that_changes_after_the_reset(disk, monkeypatch):
    """R2.40: a byte of a ring, a table, a header."""
    disk.reset(0)
    for gpa in (disk.rings[0].used_gpa + 2, Zone.TABLES.value[0], Zone.HEADERS.value[0] + 16):
        with monkeypatch.context() as patched:
            # The device writes once more while the guest already uses the memory.
            patched.setattr(time, "sleep", lambda _seconds, gpa=gpa: disk.memory.arena.write(gpa, b"\1"))
            with pytest.raises(GuestCorrupted, match=r"R2\.40"):
                disk.reset(0)
    disk.reset(0)


def card(generation=2019, transport="modern", **knobs):
    paper = Paper(config=card_config())
    guest = IllumosGuest("net", generation, transport, size=8, timeout=0.05, **{"layout": Layout.SCATTERED} | knobs)
    attached = attach(guest, paper, paper.memory)
    attached.card.start()
    return attached


def deliver(attached, head, data, *, header=None, length=None):
    """Fill a receive buffer as a device would."""
    ring, card = attached.rings[0], attached.card.card
    first = header if header is not None else bytes(10) + b"\1\0" * (card.header_len == 12)
    buffer = ring.in_flight[head].token.buffer
    attached.memory.write(buffer.cut(0, card.header_len), first)
    attached.memory.write(buffer.cut(14, len(data)), data)
    use(ring, head, len(first) + len(data) if length is None else length)


@pytest.mark.parametrize(("generation", "length"), [(2019, 0), (2019, 11), (2026, 11), (2026, 12)])
def test_illumos_E5_a_length_without_a_frame(generation, length):
    attached = card(generation)
    deliver(attached, 0, frame(length=60), length=length)
    with pytest.raises(GuestCorrupted, match="illumos_E5"):
        attached.card.rx[0].wait()


def test_illumos_F10_a_length_beyond_the_buffer():
    """E.5, F10: 2019 has no upper check and reads on behind its buffer."""
    attached = card()
    deliver(attached, 0, frame(length=60), length=70000)
    with pytest.raises(GuestCorrupted, match=r"R2\.25"):
        attached.card.rx[0].wait()


@pytest.mark.parametrize(
    "header", [bytes(12), bytes(10) + b"\2\0", b"\2" + bytes(9) + b"\1\0", b"\0\1" + bytes(8) + b"\1\0"], ids=bytes.hex
)
def test_illumos_E5_a_header_that_says_something(header):
    """E.5, D5: zero but for num_buffers = 1, as no receive offload is ever taken."""
    attached = card()
    deliver(attached, 0, frame(length=60), header=header)
    with pytest.raises(GuestCorrupted, match="no offload taken"):
        attached.card.rx[0].wait()


@pytest.mark.parametrize("length", [59, 1500 + 14 + 5])
def test_illumos_E5_a_frame_too_short_or_long(length):
    attached = card()
    deliver(attached, 0, frame(length=length))
    with pytest.raises(GuestCorrupted, match="illumos_E5"):
        attached.card.rx[0].wait()


def test_illumos_7366_loans_are_bounded():
    """7366: half of the pool, the rest is copied; a buffer that comes back is posted with the next batch."""
    attached = card()
    rx = attached.card.rx[0]
    kept = []
    for n in range(20):
        deliver(attached, next(iter(rx.ring.in_flight)), frame(bytes([n]), length=400))
        kept += rx.wait()
    assert [item.loan is not None for item in kept] == [True] * 4 + [False] * 16
    assert (rx.loaned, rx.counters.loan_limit_copies, len(rx.ring.in_flight)) == (4, 16, 4)
    for item in kept:
        rx.free(item)
    assert rx.refill() == 4
    assert len(rx.ring.in_flight) == 8


def test_illumos_R2_31_a_frame_held_too_long(monkeypatch):
    attached = card()
    tx = attached.card.tx[0]
    monkeypatch.setattr(driver_net, "HELD_MAX", 0.01)
    tx.send(frame(length=100))
    with pytest.raises(GuestHangs, match=r"R2\.31"):
        tx.drain(0.05)


def test_illumos_R2_25_a_sent_frame_with_a_length():
    attached = card()
    attached.card.tx[0].send(frame(length=100))
    use(attached.rings[1], 0, 1)
    with pytest.raises(GuestCorrupted, match=r"R2\.25"):
        attached.card.tx[0].reclaim()


@pytest.mark.parametrize("generation", [2019, 2026])
def test_illumos_E6_the_cork(generation):
    """E.6: avail.flags is 0 only while there is no buffer; 2026 looks again after it has asked."""
    attached = card(generation)
    tx = attached.card.tx[0]
    for _ in range(8):
        assert tx.send(frame(length=400))
        assert tx.ring.avail_flags == 1
    reclaim, late = tx.reclaim, []

    def race():
        """The device returns everything between the reclaim and the cork."""
        if not late:
            late.append(reclaim())
            for head in range(8):
                use(tx.ring, head, 0)
            return 0
        return reclaim()

    tx.reclaim = race
    assert tx.send(frame(length=400)) is (generation == 2026)
    assert tx.corked is (generation == 2019)
    assert tx.ring.avail_flags == (1 if generation == 2026 else 0)
    tx.reclaim()
    assert not tx.corked
    assert tx.ring.avail_flags == 1


@pytest.mark.parametrize("generation", [2019, 2026])
def test_illumos_E6_a_frame_in_too_many_pieces(generation):
    """E.6: 2019 drops it, 2026 copies it together."""
    attached = card(generation)
    tx = attached.card.tx[0]
    blocks = [(0x3200_0000 + 8 * n, 5) for n in range(64)]
    data = frame(length=320)
    for n, (gpa, length) in enumerate(blocks):
        attached.memory.arena.write(gpa, data[5 * n : 5 * n + length])
    assert tx.send(data, None, blocks)
    assert tx.counters.too_many_pieces == 1
    assert len(tx.ring.in_flight) == (0 if generation == 2019 else 1)


def test_illumos_D10_a_control_request_without_its_answer():
    """D10, E.6: the driver presets the answer to OK; here to 0xFF, so that a device that writes none is found."""
    paper = Paper()
    control = Control(paper.memory, Ring(paper.memory, 2, 8, legacy=False, indirect=True), poison=True)
    control.submit(0, 0, b"\1")
    use(control.ring, 0, 1)
    with pytest.raises(GuestCorrupted, match="illumos_D10"):
        control.wait()
    control.submit(0, 0, b"\1")
    use(control.ring, 0, 0)
    with pytest.raises(GuestCorrupted, match=r"R2\.25"):
        control.wait()


def test_illumos_F10_stale_frames():
    """F10: what came while the interface was down is delivered by 2019, discarded by 2026."""
    for generation, want in ((2019, 2), (2026, 1)):
        attached = card(generation)
        rx = attached.card.rx[0]
        rx.stop()
        deliver(attached, 0, frame(b"old", length=80))
        rx.ring.interrupted(0)
        rx.start()
        deliver(attached, next(iter(rx.ring.in_flight)) if generation == 2026 else 1, frame(b"new", length=80))
        got = rx.wait()
        assert len(got) == want
        assert got[-1].data[14:17] == b"new"
