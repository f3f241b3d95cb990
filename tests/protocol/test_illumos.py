"""The imitated illumos guest on running back-ends: nothing that would panic, hang or corrupt it.

What qemu-storage-daemon does to it is stated by row in test_illumos_rows.py.
"""

import contextlib
import os
import time

import pytest

from tests.protocol.conftest import PATTERN_LEN, pattern
from tests.support.backends import STARTERS
from tests.support.net import GUEST, HOST, frame, tcp_segment
from vhostd.driver.illumos import GuestHangs, IllumosGuest, IoError, Layout, Offload, boot
from vhostd.driver.illumos.memory import Zone
from vhostd.driver.illumos.startup import BUFFERS_MAX
from vhostd.errors import LocalProtocolError
from vhostd.spec.blk import Request

AXES = pytest.mark.parametrize(
    ("generation", "transport", "indirect"),
    [
        pytest.param(generation, transport, indirect, id=f"{generation}-{transport}-{form}")
        for generation in (2019, 2026)
        for transport in ("legacy", "modern")
        for form, indirect in (("indirect", True), ("direct", False))
    ],
)
VHOSTD = pytest.mark.parametrize("maker", ["vhostd"], indirect=True)


@AXES
def test_illumos_E4_a_disk(disk, maker, generation, transport, indirect):
    """E.1 to E.4: attach, every request in every page layout, panic dump, reset."""
    guest = IllumosGuest("block", generation, transport, indirect)
    if maker == "qemu-storage-daemon" and transport == "legacy":
        return  # illumos_E1 is a finding
    with boot(disk.socket, guest) as attached:
        driver = attached.disk
        assert driver.serial
        sector = PATTERN_LEN // 512
        for layout in Layout:
            for length in (512, 4096, 8192, 65536 + 1536):
                assert driver.read(7, length, layout=layout) == pattern(7 * 512, length)
                data = os.urandom(length)
                driver.write(sector, data, layout=layout)
                driver.flush()
                assert driver.read(sector, length, layout=layout) == data
                assert disk.on_disk(sector * 512, length) == data
            assert driver.read(3, 2048, offset=512, layout=layout) == pattern(3 * 512, 2048)
        assert (driver.disk.discard is not None) is (generation == 2026)
        if driver.disk.discard is not None:
            driver.discard((sector + 8, 8), (sector + 24, 16))
            assert driver.read(sector + 24, 8192) == bytes(8192)
        driver.dump(sector, b"panic" * 4096)
        assert disk.on_disk(sector * 512, 20480) == b"panic" * 4096
        attached.reset()


@AXES
@VHOSTD
def test_illumos_E4_many_at_once(disk, generation, transport, indirect):
    """E.4: up to min(q, 256) requests in flight, any order back, ENOMEM inside the guest when there is no room."""
    guest = IllumosGuest("block", generation, transport, indirect, size=64)
    with boot(disk.socket, guest) as attached:
        driver = attached.disk
        jobs, pages = [], []
        for n in range(100):
            page = attached.memory.buffer(Zone.DATA, 4096)
            try:
                jobs.append((n, driver.submit(Request.IN, 8 * n, list(page.pieces))))
            except IoError as error:
                assert error.errno == "ENOMEM"
                break
            pages.append(page)
        assert len(jobs) == (64 if indirect else 64 // 3)
        for n, job in jobs:
            driver.wait(job)
            assert attached.memory.read(pages[n].pieces) == pattern(4096 * n, 4096)
        for n in range(200):  # heads wrap, over and over
            assert driver.read(n, 512) == pattern(512 * n, 512)
        attached.reset()


@VHOSTD
@pytest.mark.parametrize("offered", [True, False], ids=["offered", "not-offered"])
@pytest.mark.parametrize("transport", ["legacy", "modern"])
@pytest.mark.parametrize("size", [64, 256])
def test_illumos_D9_the_largest_transfer(start, transport, offered, size):
    """D9, R2.14: SEG_MAX times SIZE_MAX in 32 bits is a multiple of the block; chains of SEG_MAX + 2 are taken."""
    disk = start()
    guest = IllumosGuest("block", 2026, transport, seg_max=offered, size=size)
    with boot(disk.socket, guest) as attached:
        driver = attached.disk
        most = driver.disk.transfer_max
        assert driver.disk.seg_max == (126 if offered else 128)
        assert most == driver.disk.seg_max * 4096
        # Scattered pages: each is a segment, so that one chain has all of SEG_MAX, the header and the status.
        longest = most // 512 * 512
        assert driver.read(0, longest, layout=Layout.SCATTERED) == pattern(0, longest)
        assert driver.read(0, PATTERN_LEN) == pattern(0, PATTERN_LEN)


@VHOSTD
@AXES
def test_illumos_R2_12_a_status_is_written(disk, generation, transport, indirect):
    """R2.12, F9: the driver does not poison the status byte; here it does, and every request writes 0, 1 or 2."""
    guest = IllumosGuest("block", generation, transport, indirect, poison=True)
    with boot(disk.socket, guest) as attached:
        driver = attached.disk
        assert driver.read(0, 4096) == pattern(0, 4096)
        with pytest.raises(IoError, match="EIO"):
            driver.read(driver.disk.capacity - 1, 1024)
        with pytest.raises(IoError, match="ENOTTY"):
            driver.wait(driver.submit(Request.SCSI_CMD))
        driver.flush()


@VHOSTD
def test_illumos_R2_16_a_read_only_disk(start):
    """R2.16, R2.13: writes and discards are EIO, reads, flushes and GET_ID go on."""
    disk = start(read_only=True, serial="cd-1")
    before = disk.digest()
    with boot(disk.socket, IllumosGuest("block", 2026, "modern")) as attached:
        driver = attached.disk
        assert driver.disk.read_only
        assert driver.serial == b"cd-1"
        assert driver.read(0, 4096) == pattern(0, 4096)
        with pytest.raises(IoError, match="EIO"):
            driver.write(0, bytes(512))
        driver.flush()
    assert disk.digest() == before


@contextlib.contextmanager
def served(maker, folder, name="disk", **options):
    """A back-end with an image of its own."""
    image = folder / f"{name}.raw"
    if not image.exists():
        image.write_bytes(pattern(0, 1 << 20))
    backend = STARTERS[maker](image, folder / f"{name}.sock", **options)
    try:
        yield backend.socket
        assert backend.alive
    finally:
        backend.stop()


@pytest.mark.parametrize("serial", ["a", "-_", "ABCDEFGHIJ0123456789", "disk_0-x"])
def test_illumos_10012_the_serial_number_is_the_one_configured(tmp_path, serial):
    """10012: 1 to 20 characters, zero-padded, the same after a restart, through either form of chain."""
    for indirect in (True, False):
        with served("vhostd", tmp_path, options=[f"--serial={serial}"]) as path:
            for transport in ("legacy", "modern"):
                with boot(path, IllumosGuest("block", 2026, transport, indirect)) as attached:
                    assert attached.disk.serial == serial.encode()
                    assert attached.disk.serial_raw == serial.encode().ljust(20, b"\0")


def test_illumos_10012_two_disks_are_not_one(maker, tmp_path):
    """10012: a file system above knows disks by their serial number; it stays through a restart and a rename."""

    def serial_of(name):
        with served(maker, tmp_path, name) as path, boot(path, IllumosGuest("block", 2019, "modern")) as attached:
            return attached.disk.serial

    one, other = serial_of("one"), serial_of("other")
    (tmp_path / "one.raw").rename(tmp_path / "renamed.raw")
    if maker == "qemu-storage-daemon":
        assert (one, other) == (b"vhost_user_blk",) * 2, f"the row illumos_10012 has changed: {one}, {other}"
    else:
        assert one != other
        assert serial_of("renamed") == one
        assert len(one) == 20


@VHOSTD
@pytest.mark.parametrize("poll", ["0", "1000", "10000"], ids="poll-{}us".format)
def test_illumos_R2_60_without_a_fence(start, poll):
    """R2.60: the index becomes visible after the flag was read, so the kick is missing; the request is served."""
    disk = start(options=["--poll-us", poll])
    deadline = time.monotonic() + 60
    with boot(disk.socket, IllumosGuest("block", 2026, "modern", fence=False)) as attached:
        driver, ring = attached.disk, attached.rings[0]
        served = 0
        # The worker polls, and so wants no kick, only where requests come within the time it may poll: on a busy
        # machine not the first hundred need do so.
        while served < 100 or (poll != "0" and ring.kicks_withheld < 3):
            assert time.monotonic() < deadline, f"of {served} kicks {ring.kicks_withheld} were missing"
            assert driver.read(served % 2048, 512) == pattern(512 * (served % 2048), 512)
            served += 1
            if served % 2:
                # A kick for what has been served already wakes the worker as soon as it sleeps: that is no late look.
                os.eventfd_write(ring.kick_fd.number, 1)


@VHOSTD
def test_illumos_E7_an_interrupt_before_there_is_a_vector(disk):
    """E.7.1: the call descriptor is replaced while the ring runs; what was used before is signalled once."""
    with boot(disk.socket, IllumosGuest("block", 2026, "modern")) as attached:
        driver, ring = attached.disk, attached.rings[0]
        page = attached.memory.buffer(Zone.DATA, 4096)
        job = driver.submit(Request.IN, 0, list(page.pieces))
        deadline = time.monotonic() + 5
        while ring.used_idx == 1:
            assert time.monotonic() < deadline
        ring.interrupted(0.05)
        attached.platform.vectors(attached.rings)
        driver.wait(job)
        assert attached.memory.read(page.pieces) == pattern(0, 4096)


@VHOSTD
def test_illumos_E7_a_failed_attach(disk):
    """E.7.5: a ring that was set up and never used; its memory is someone else's after the reset."""
    with boot(disk.socket, IllumosGuest("block", 2019, "legacy")) as attached:
        attached.reset(0.1)
    with boot(disk.socket, IllumosGuest("block", 2026, "modern")) as attached:
        assert attached.disk.read(0, 512) == pattern(0, 512)


@VHOSTD
def test_illumos_R2_40_a_reset_with_requests_in_flight(disk):
    """R2.40: after the answer nothing is written to the guest's memory."""
    for _ in range(20):
        with boot(disk.socket, IllumosGuest("block", 2026, "modern")) as attached:
            for n in range(100):
                page = attached.memory.buffer(Zone.DATA, 65536)
                attached.disk.submit(Request.IN, 8 * n, list(page.pieces))
            attached.reset(0.01)


FRONT_ENDS = ["qemu-7.2", "qemu-11", "cloud-hypervisor", "firecracker", "crosvm", "uml", "plain"]


@VHOSTD
@pytest.mark.parametrize("generation", [2019, 2026])
@pytest.mark.parametrize("name", [name for name in FRONT_ENDS if name != "plain"])
def test_illumos_E7_a_disk_behind_each_front_end(disk, name, generation):
    """E.7: whichever front-end speaks for it, the guest attaches, reads, writes, and its memory is its own again."""
    guest = IllumosGuest("block", generation, "modern")
    with boot(disk.socket, guest, name) as attached:
        driver = attached.disk
        assert driver.serial
        for n in range(10):
            assert driver.read(8 * n, 8192) == pattern(4096 * n, 8192)
        driver.write(PATTERN_LEN // 512, b"front-end" * 512 + bytes(512))
        driver.flush()
        assert disk.on_disk(PATTERN_LEN, 9) == b"front-end"
        if name not in {"firecracker", "uml"}:  # which do not wait for a ring to stop
            attached.reset()


@pytest.mark.parametrize(
    ("device", "name", "why"),
    [
        ("block", "spdk", "there is no guest in it"),
        ("block", "plain", "cannot read a disk's configuration"),
        ("block", "xen", "no profile"),
        ("net", "firecracker", "no profile"),
    ],
)
def test_illumos_E7_a_front_end_that_has_no_such_guest(tmp_path, device, name, why):
    guest = IllumosGuest(device, 2026, "modern")
    with pytest.raises(LocalProtocolError, match=why), boot(tmp_path, guest, name):
        pass


# Network. Needs root.


def card_of(running, guest):
    return boot(running.backend.socket, guest)


@pytest.mark.root
@AXES
def test_illumos_E5_E6_a_card(card, generation, transport, indirect):
    """E.5, E.6: frames of every length both ways, copied and loaned; stop, start, reset."""
    running = card()
    host = running.wire()
    guest = IllumosGuest("net", generation, transport, indirect, layout=Layout.RANDOM)
    with card_of(running, guest) as attached:
        net = attached.card
        rx, tx = net.rx[0], net.tx[0]
        net.start()
        for length in (60, 100, 299, 300, 700, 1514):
            for n in range(5):
                data = frame(bytes([n]), length=length)
                host.send(data)
                (got,) = rx.wait()
                assert got.data == data
                rx.free(got)
                data = frame(bytes([n]) + os.urandom(8), to=HOST, source=GUEST, length=length)
                assert tx.send(data)
                assert host.receive() == data
        tx.drain()
        assert rx.counters.loans > 0
        net.stop()
        attached.reset()
    if not indirect:
        assert rx.counters.refill_short > 0


@pytest.mark.root
@pytest.mark.parametrize("generation", [2019, 2026])
def test_illumos_7366_the_application_keeps_every_frame(card, generation):
    """7366 (a): half of the pool goes on loan, the rest is copied; traffic goes on."""
    running = card()
    host = running.wire()
    with card_of(running, IllumosGuest("net", generation, "modern")) as attached:
        rx = attached.card.rx[0]
        attached.card.start()
        kept = []
        for n in range(500):
            host.send(frame(n.to_bytes(2), length=600))
            kept += rx.wait()
        assert [item.data[14:16] for item in kept] == [n.to_bytes(2) for n in range(500)]
        assert rx.loaned == BUFFERS_MAX // 2
        assert rx.counters.loan_limit_copies == 500 - BUFFERS_MAX // 2


@pytest.mark.root
def test_illumos_7366_few_buffers_and_no_refill(card):
    """7366 (b), R2.21: what has no buffer is dropped; the first frame after a refill comes."""
    running = card()
    host = running.wire()
    with card_of(running, IllumosGuest("net", 2019, "modern", loan_ratio=1.0, size=4)) as attached:
        rx = attached.card.rx[0]
        attached.card.start()
        kept = []
        for n in range(4):
            host.send(frame(bytes([n]), length=400))
            kept += rx.wait()
        before = running.backend.cpu_ns()
        for _ in range(2000):
            host.send(frame(b"\xff", length=400))
        assert running.backend.cpu_ns() - before < 50_000_000
        for item in kept:
            rx.free(item)
        assert rx.refill() == 4
        with contextlib.suppress(GuestHangs):
            while True:  # what the tap kept meanwhile comes first
                for item in rx.wait(0.2):
                    assert item.data[14] == 0xFF
                    rx.free(item)
                rx.refill()
        host.send(frame(b"\x77", length=400))
        assert rx.wait()[0].data[14] == 0x77


@pytest.mark.root
@pytest.mark.parametrize(("generation", "transport"), [(2019, "legacy"), (2019, "modern"), (2026, "modern")])
def test_illumos_D2_checksums_and_segments(card, generation, transport):
    """D2, 12465: partial checksums are finished, segments cross with hdr_len 0 and with hdr_len set."""
    running = card()
    host = running.wire(vnet=True)
    with card_of(running, IllumosGuest("net", generation, transport)) as attached:
        net = attached.card
        net.start()
        assert net.card.csum
        assert net.card.tso4
        for length in (500, 1448):
            _, data = tcp_segment(length, to=HOST, source=GUEST)
            net.tx[0].send(data, Offload())
            got = host.receive()
            assert got[10:] == data
            assert got[0] & 1
        _, data = tcp_segment(20000, to=HOST, source=GUEST)
        net.tx[0].send(data, Offload(mss=1448, hdr_len=0 if generation == 2019 else 54))
        got = host.receive()
        assert got[10:] == data
        assert got[1] & 0x7F == 1
        net.tx[0].drain()


@pytest.mark.root
def test_illumos_E6_pieces_of_a_frame(card):
    """E.6: pieces start anywhere, the Ethernet header may be split, and there are up to 63 of them."""
    running = card()
    host = running.wire()
    with card_of(running, IllumosGuest("net", 2026, "modern")) as attached:
        tx = attached.card.tx[0]
        attached.card.start()
        for cuts in ([6, 8, 1], [1] * 62, [13, 1, 1, 1, 700]):
            data = frame(os.urandom(8), to=HOST, source=GUEST, length=1200)
            at, blocks, gpa = 0, [], 0x3200_0001
            for cut in [*cuts, len(data) - sum(cuts)]:
                attached.memory.arena.write(gpa, data[at : at + cut])
                blocks.append((gpa, cut))
                at += cut
                gpa += cut + 5
            assert tx.send(data, None, blocks)
            assert host.receive() == data
            tx.drain()


@pytest.mark.root
def test_illumos_R2_31_frames_come_back_when_nobody_listens(card):
    """R2.31: a peer that does not read keeps no frame of the guest; the queue corks and goes on."""
    running = card()
    with card_of(running, IllumosGuest("net", 2019, "modern", size=16)) as attached:
        tx = attached.card.tx[0]
        attached.card.start()
        corked = 0
        for n in range(3000):
            data = frame(n.to_bytes(2), to=HOST, source=GUEST, length=1000)
            while not tx.send(data):
                corked += 1
                assert tx.ring.avail_flags == 0
                tx.ring.interrupted(0.2)  # the interrupt, or the timer of 200 ms
                tx.reclaim()
        tx.drain()
        assert tx.ring.avail_flags == 1 or tx.corked


@pytest.mark.root
@pytest.mark.parametrize("offered", [True, False], ids=["mac", "no-mac"])
def test_illumos_E1_the_address(card, offered):
    """E.1 step 9, F7: with MAC six bytes are read; without, a random address whose local bit is in the wrong byte."""
    running = card()
    host = running.wire()
    mac = b"\x02\x11\x22\x33\x44\x55" if offered else None
    with card_of(running, IllumosGuest("net", 2026, "legacy", mac=mac)) as attached:
        told = attached.card.card.mac
        assert told == mac if offered else (told[0] & 1, told[1] & 2) == (0, 2)
        attached.card.start()
        data = frame(b"x", to=told, length=80)
        host.send(data)
        assert attached.card.rx[0].wait()[0].data == data


@pytest.mark.root
def test_illumos_D11_two_pairs(card):
    """D11: 2026 drives as many pairs as it likes; the rings of the others are never set up."""
    running = card(queues=4)
    host = running.wire()
    with card_of(running, IllumosGuest("net", 2026, "modern", pairs=2)) as attached:
        net = attached.card
        assert len(net.tx) == 2
        assert attached.control is not None
        net.start()
        for n, tx in enumerate(net.tx):
            data = frame(bytes([n]), to=HOST, source=GUEST, length=100)
            assert tx.send(data)
            assert host.receive() == data
        net.stop()
        attached.reset()


@pytest.mark.root
@pytest.mark.parametrize("generation", [2019, 2026])
def test_illumos_F10_frames_that_came_while_it_was_down(card, generation):
    """E.5, F10: the buffers stay with the device at a stop; 2019 delivers what came then, 2026 discards it."""
    running = card()
    host = running.wire()
    with card_of(running, IllumosGuest("net", generation, "modern")) as attached:
        net = attached.card
        net.start()
        net.stop()
        host.send(frame(b"old", length=100))
        deadline = time.monotonic() + 5
        while net.rx[0].ring.used_idx == 0:
            assert time.monotonic() < deadline
        net.start()
        host.send(frame(b"new", length=100))
        got = net.rx[0].wait()
        while len(got) < (2 if generation == 2019 else 1):
            got += net.rx[0].wait()
        assert [item.data[14:17] for item in got] == ([b"old", b"new"] if generation == 2019 else [b"new"])


@pytest.mark.root
def test_illumos_E5_a_short_frame_is_padded(card):
    """E.5: a frame shorter than 60 bytes reaches the guest zero-padded."""
    running = card()
    host = running.wire()
    with card_of(running, IllumosGuest("net", 2026, "modern")) as attached:
        attached.card.start()
        data = frame(b"arp", length=42)
        host.send(data)
        assert attached.card.rx[0].wait()[0].data == data.ljust(60, b"\0")


@pytest.mark.root
@pytest.mark.parametrize("name", [name for name in FRONT_ENDS if name != "firecracker"])
def test_illumos_E7_a_card_behind_each_front_end(card, name):
    """E.7: frames both ways, whichever front-end speaks for the guest."""
    running = card()
    host = running.wire()
    with boot(running.backend.socket, IllumosGuest("net", 2026, "modern"), name) as attached:
        net = attached.card
        net.start()
        for length in (60, 1514):
            data = frame(os.urandom(8), length=length)
            host.send(data)
            (got,) = net.rx[0].wait()
            assert got.data == data
            data = frame(os.urandom(8), to=HOST, source=GUEST, length=length)
            net.tx[0].send(data)
            assert host.receive() == data
        net.stop()
