"""The image is mapped, and the ground moves under it: cut short, full, punched, evicted, raced (F10, F14, P3, P4)."""

import ctypes
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.hostile.attack import MIB, guest
from tests.hostile.conftest import IMAGE_LEN
from tests.hostile.fuse import fuse_file
from tests.support.backends import start_vhostd
from vhostd.driver.arena import Arena, Region
from vhostd.driver.session import open_session
from vhostd.errors import Refused
from vhostd.spec.blk import ConfigOffset, Request, StatusByte

CHUNK = 1 << 16
FALLOC_PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def said(target, verb):
    """What `vhostd status` or `vhostd stats` says of the only device."""
    control = str(target.socket).replace(".sock", ".control")
    words = [sys.executable, "-m", "vhostd.cli.main", verb, "--json", "--control", control]
    return json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)[0]


def copied(target):
    return said(target, "stats")["total"]["copied"]


def mapped(target):
    return said(target, "status")["mapped"]


def warm(session, length=IMAGE_LEN):
    """Read everything twice: the first time finds out what may be copied."""
    driver = session.block()
    for _ in range(2):
        for at in range(0, length, CHUNK):
            driver.read(at // 512, CHUNK)
    return driver


def test_what_is_cached_is_copied_both_ways(own):
    """Nearly every request of a warm image, and the bytes are the image's."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        before = copied(target)
        for n in range(64):
            assert driver.read(n * 64, 4096) == target.content[n * 32768 :][:4096]
            driver.write(n * 64 + 8, bytes([n]) * 4096)
        assert copied(target) - before == 128
        driver.flush()
        assert mapped(target)
    data = target.image.read_bytes()
    assert all(data[(n * 64 + 8) * 512 :][:4096] == bytes([n]) * 4096 for n in range(64))
    target.restore()


@pytest.mark.parametrize("options", [("--aio", "io_uring"), ("--aio", "sync"), ("--direct", "--block-size", "4096")])
def test_what_is_not_to_be_mapped_is_not(own, options):
    target = own(queues=1, options=options)
    with guest(target) as session:
        warm(session)
        assert copied(target) == 0
        assert not mapped(target)


def test_durable_writes_are_not_copied(own):
    """5.2.5.2: without a write cache each write is durable before its status."""
    target = own(queues=1, options=("--no-write-cache",))
    with guest(target) as session:
        driver = warm(session)
        before = copied(target)
        for n in range(20):
            driver.write(n, b"d" * 512)
        assert copied(target) == before
        assert driver.read(0, 512) == b"d" * 512
        assert copied(target) == before + 1
    target.restore()


@pytest.mark.parametrize("left", [0, 4096, 3 * CHUNK, 3 * CHUNK + 8192], ids="F14-{}".format)
def test_a_warm_image_is_cut_short(own, left):
    """F14: reads past its end are errors, not zeroes, though all of it was mapped; a write makes it longer again."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        os.truncate(target.image, left)
        for at in (left, left + 4096, 1 << 20, IMAGE_LEN - 4096):
            assert driver.request(Request.IN, at // 512, read_len=4096).status == StatusByte.IOERR
        if left:
            assert driver.read(0, 4096) == target.content[:4096]
        driver.write(5000, b"w" * 512)
        assert driver.read(5000, 512) == b"w" * 512
        assert driver.read(2000, 512) == bytes(512)
        assert not mapped(target)
    assert target.image.read_bytes()[5000 * 512 :][:512] == b"w" * 512


def test_a_store_behind_the_end_is_not_flushed_silently(own):
    """F14, P2: the rest of a page behind the new end swallows stores without a fault; the flush says so."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        os.truncate(target.image, IMAGE_LEN - 1024)
        driver.request(Request.OUT, IMAGE_LEN // 512 - 1, b"x" * 512)
        done = driver.request(Request.FLUSH)
        kept = os.path.getsize(target.image) == IMAGE_LEN and target.image.read_bytes()[-512:] == b"x" * 512
        assert done.status == StatusByte.IOERR or kept
        assert not mapped(target)


@pytest.mark.parametrize("left", [512, 3 * CHUNK + 1024, IMAGE_LEN - 1024], ids="F14-{}".format)
def test_the_rest_of_a_page_is_no_data(own, left):
    """F14: a file that ends within a page leaves zeroes behind its end that fault nobody; they are not the image's."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        os.truncate(target.image, left)
        assert driver.request(Request.IN, left // 512, read_len=512).status == StatusByte.IOERR
        assert driver.read(left // 512 - 1, 512) == target.content[left - 512 : left]
        assert not mapped(target)


def test_a_lost_store_is_told_though_the_file_has_grown_again(own):
    """F14, P2: a later write gives the file its length back, and what it had swallowed meanwhile is zeroes."""
    target = own(queues=1)
    left = (1 << 20) + 512
    with guest(target) as session:
        driver = warm(session)
        os.truncate(target.image, left)
        driver.request(Request.OUT, left // 512 + 1, b"x" * 512)
        driver.write(IMAGE_LEN // 512 - 1, b"y" * 512)
        assert os.path.getsize(target.image) == IMAGE_LEN
        done = driver.request(Request.FLUSH)
        kept = target.image.read_bytes()[left + 512 :][:512] == b"x" * 512
        assert done.status == StatusByte.IOERR or kept


def test_a_lost_store_is_told_though_a_cold_write_made_the_file_grow(own):
    """F14, P2: nor does a write that was never copied hide what the file had swallowed."""
    target = own(queues=1)
    left = (1 << 20) + 512
    with guest(target) as session:
        driver = warm(session, IMAGE_LEN // 2)
        os.truncate(target.image, left)
        driver.request(Request.OUT, left // 512 + 1, b"x" * 512)
        driver.write(IMAGE_LEN // 512 - 1, b"y" * 512)
        done = driver.request(Request.FLUSH)
        kept = target.image.read_bytes()[left + 512 :][:512] == b"x" * 512
        assert done.status == StatusByte.IOERR or kept


def test_the_write_cache_is_not_turned_off_over_a_lost_store(own):
    """5.2.5.2, P2: what completed before is durable when the driver turns the cache off, or it is not turned off."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        os.truncate(target.image, IMAGE_LEN - 1024)
        driver.request(Request.OUT, IMAGE_LEN // 512 - 1, b"x" * 512)
        with pytest.raises(Refused):
            session.frontend.set_config(ConfigOffset.WRITEBACK, b"\0")
        assert said(target, "status")["write_cache"]
        assert said(target, "status")["flush_failed"]


def test_it_is_punched_from_outside(own):
    """A hole under a warm chunk: zeroes are read, and a store is kept."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        with target.image.open("r+b") as file:
            result = ctypes.CDLL(None).fallocate(
                file.fileno(), FALLOC_PUNCH, ctypes.c_long(CHUNK), ctypes.c_long(4 * CHUNK)
            )
        assert result == 0
        assert driver.read(CHUNK // 512, CHUNK) == bytes(CHUNK)
        driver.write(CHUNK // 512 + 8, b"p" * 4096)
        driver.flush()
        assert driver.read(CHUNK // 512 + 8, 4096) == b"p" * 4096
    assert target.image.read_bytes()[CHUNK + 4096 :][:4096] == b"p" * 4096


def test_it_is_written_from_outside(own):
    """The mapping is the page cache: what others write is there at once."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        with target.image.open("r+b") as file:
            file.seek(4096)
            file.write(b"o" * 4096)
        assert driver.read(8, 4096) == b"o" * 4096


def test_its_pages_are_evicted(own):
    """P3: whether the page cache has them or not, the bytes are the same."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        number = os.open(target.image, os.O_RDWR)
        try:
            for n in range(20):
                driver.write(n * 100, bytes([n]) * 512)
                os.fsync(number)
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
                assert driver.read(n * 100, 512) == bytes([n]) * 512
                assert driver.read(n * 100 + 1, 512) == target.content[(n * 100 + 1) * 512 :][:512]
        finally:
            os.close(number)


@pytest.mark.parametrize("kind", [Request.DISCARD, Request.WRITE_ZEROES], ids=lambda kind: kind.name)
def test_the_guest_makes_holes_and_fills_them(own, kind):
    """5.2.6: a range that was discarded or zeroed is written and read again, copied or not."""
    target = own(queues=1)
    with guest(target) as session:
        driver = warm(session)
        for turn in range(6):
            at = turn * 256
            done = (
                driver.discard((at, 128)) if kind == Request.DISCARD else driver.write_zeroes((at, 128), flags=turn & 1)
            )
            assert done.ok
            assert driver.read(at, CHUNK) == bytes(CHUNK)
            driver.write(at + 3, bytes([turn + 1]) * 4096)
            assert driver.read(at + 3, 4096) == bytes([turn + 1]) * 4096
            assert driver.read(at + 11, 512) == bytes(512)
        driver.flush()
    data = target.image.read_bytes()
    for turn in range(6):
        assert data[(turn * 256 + 3) * 512 :][:4096] == bytes([turn + 1]) * 4096


def test_holes_of_one_ring_beside_stores_of_another(own):
    """B50, P4: two workers, one chunk: what is not in the hole is what was stored."""
    target = own(queues=2, options=("--workers", "2"))
    with guest(target, queues=2) as session:
        warm(session)
        stop = threading.Event()
        failures = []

        def make_holes():
            driver = session.block(1)
            while not stop.is_set():
                done = driver.discard((0, 16)), driver.write_zeroes((32, 16), flags=1)
                failures.extend(one for one in done if not one.ok)

        thread = threading.Thread(target=make_holes)
        thread.start()
        try:
            driver = session.block(0)
            for n in range(1500):
                data = n.to_bytes(4) * 1024
                driver.write(64 + n % 8 * 8, data)
                assert driver.read(64 + n % 8 * 8, 4096) == data
        finally:
            stop.set()
            thread.join()
        assert failures == []
    assert target.image.read_bytes()[: 16 * 512] == bytes(16 * 512)


@pytest.fixture(params=["tmpfs", "ext4"])
def small_fs(request, tmp_path):
    """A file system of 3 MiB; ext4 finds its blocks late, at write-back."""
    place = tmp_path / "small"
    place.mkdir()
    if request.param == "tmpfs":
        words = ["-t", "tmpfs", "-o", "size=3m", "none"]
    else:
        disk = tmp_path / "small.ext4"
        disk.touch()
        os.truncate(disk, 3 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(disk)], check=True)
        words = ["-o", "loop", str(disk)]
    subprocess.run(["mount", *words, str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.root
def test_a_file_system_that_is_full(small_fs):
    """F10: what finds no room is an error, never a dead daemon; what was written is there; it works again with room."""
    image = small_fs / "sparse.raw"
    image.touch()
    os.truncate(image, IMAGE_LEN)
    backend = start_vhostd(image, small_fs.parent / "full.sock", queues=1)
    try:
        with open_session(backend.socket) as session:
            driver = session.block()
            every = range(IMAGE_LEN // CHUNK)
            fine = [n for n in every if driver.request(Request.OUT, n * 128, bytes([n + 1]) * CHUNK).ok]
            assert 10 < len(fine) < IMAGE_LEN // CHUNK
            for _ in range(2):  # copied, at least the second time
                for n in fine:
                    assert driver.read(n * 128, CHUNK) == bytes([n + 1]) * CHUNK
            for n in fine:
                assert driver.request(Request.OUT, n * 128, bytes([n + 2]) * 4096).ok
            assert driver.discard((fine[0] * 128, 128)).ok
            last = next(n for n in every if n not in fine)
            driver.write(last * 128, b"r" * 4096)
            assert driver.read(last * 128, 4096) == b"r" * 4096
    finally:
        assert backend.stop() == 0


@pytest.mark.root
def test_an_image_larger_than_an_address_space(tmp_path):
    """`--aio auto` serves what the kernel does not map, as it serves other file systems; `mapped` says why not."""
    place = tmp_path / "wide"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], check=True)
    try:
        image = place / "wide.raw"
        image.touch()
        os.truncate(image, 1 << 48)
        words = [sys.executable, "-m", "vhostd.cli.main", "blk", str(image), "--socket-path", str(tmp_path / "s")]
        done = subprocess.run([*words, "--aio", "mapped"], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "cannot be mapped" in done.stderr
        assert "--aio auto" in done.stderr
        backend = start_vhostd(image, tmp_path / "t.sock", queues=1)
        try:
            with open_session(backend.socket) as session:
                driver = session.block()
                driver.write((1 << 48 >> 9) - 8, b"w" * 4096)
                assert driver.read((1 << 48 >> 9) - 8, 4096) == b"w" * 4096
        finally:
            assert backend.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_guest_memory_vanishes_under_a_copy(own):
    """S79: the request's error; no zeroes reach a warm image that nobody wrote; the ring goes on."""
    target = own(queues=1)
    regions = [Region(0x10_0000, 4 * MIB), Region(0x8000_0000, 4 * MIB)]
    with Arena(regions, seal=False) as arena, guest(target, arena=arena) as session:
        driver = warm(session)
        lost = regions[1].gpa
        arena.write(lost, b"n" * 65536)
        arena.truncate(regions[1], 8192)
        for kind in (Request.OUT, Request.IN, Request.OUT):
            head = arena.alloc(32, 16, regions[0])
            arena.write(head, kind.to_bytes(4, "little") + bytes(4) + (64).to_bytes(8, "little"))
            buffers = [(lost + 4096, 16384)]
            if kind == Request.OUT:
                session.queue.add([(head, 16), *buffers], [(head + 16, 1)])
            else:
                session.queue.add([(head, 16)], [*buffers, (head + 16, 1)])
            session.queue.kick()
            session.queue.wait()
            assert arena.read(head + 16, 1) == bytes([StatusByte.IOERR])
        after = driver.read(64, 16384)
        assert after[:4096] in {b"n" * 4096, target.content[64 * 512 :][:4096]}  # P4: what was there may be written
        assert after[4096:] == target.content[64 * 512 + 4096 :][:12288]


def test_an_image_where_nothing_can_be_mapped(tmp_path):
    """`--aio mapped` says why not; `--aio auto` does what can be done."""
    with fuse_file(tmp_path, bytes(MIB)) as (path, _):
        words = [sys.executable, "-m", "vhostd.cli.main", "blk", str(path), "--socket-path", str(tmp_path / "s")]
        done = subprocess.run([*words, "--aio", "mapped"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 6
        assert "only files on ext4, XFS and tmpfs are mapped" in done.stderr
        backend = start_vhostd(path, tmp_path / "t.sock", queues=1)
        try:
            with open_session(backend.socket) as session:
                assert session.block().read(0, 4096) == bytes(4096)
        finally:
            assert backend.stop() == 0
    image = Path(tmp_path / "i.raw")
    image.write_bytes(bytes(MIB))
    words = [sys.executable, "-m", "vhostd.cli.main", "blk", str(image), "--aio", "mapped", "--direct"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6
    assert "leave --direct away" in done.stderr
