"""F9 to F14, F30, F40, F44: front-ends that die, disks that fill, fail and shrink, and every way to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.hostile.attack import MIB, frame, guest, hang, raw
from tests.hostile.conftest import IMAGE_LEN, Target
from tests.hostile.fuse import fuse_file
from tests.support.backends import VHOSTD
from tests.support.bare import propagation
from vhostd.driver.blk import BlockDriver
from vhostd.driver.session import open_session
from vhostd.errors import DeviceTimeout
from vhostd.spec.blk import Request, StatusByte
from vhostd.spec.vhost_user import FrontendRequest

R = FrontendRequest
STOP_S = 5.0  # P8

# F9: a front-end that is killed while it writes. Each block it writes says its own number, in every sector.

WRITER = """
import sys
from vhostd.driver.session import open_session
with open_session(sys.argv[1], size=256, memory_len=16 << 20) as session:
    driver = session.block()
    print("go", flush=True)
    turn = 0
    while True:
        flying = [driver.submit(1, 8 * n, bytes([n, turn % 256]) * 2048, kick=False) for n in range(60)]
        session.queues[0].kick()
        for pending in flying:
            driver.complete(pending)
        turn += 1
"""


@pytest.mark.writes
@pytest.mark.parametrize("after", [0.0, 0.003, 0.01, 0.05], ids="F9-after-{}".format)
def test_a_front_end_is_killed_in_the_middle_of_writes(target, after):
    """F9, P4: no touch of its memory after the end; each sector holds one of the writes or what was there before."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target.socket)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    time.sleep(after)
    process.kill()
    process.wait()
    process.stdout.close()
    with guest(target) as session:
        assert session.block().request(Request.IN, 0, read_len=4096).ok
    image = target.image.read_bytes()
    for sector in range(60 * 8):
        now, before = (data[sector * 512 :][:512] for data in (image, target.content))
        assert now == before or (now == now[:2] * 256 and now[0] == sector // 8), f"sector {sector} is torn"
    assert image[60 * 4096 :] == target.content[60 * 4096 :]


def test_a_front_end_is_killed_while_it_starts(target):
    """F9: at any message."""
    code = "import sys\nfrom vhostd.driver.session import open_session\nprint('go', flush=True)\n"
    code += "while True:\n with open_session(sys.argv[1], queues=4): pass\n"
    for turn in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(target.socket)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"go\n"
        time.sleep(0.005 + turn * 0.0013)
        process.kill()
        process.wait()
        process.stdout.close()


# F10, F11, F14: the disk behind.


class Full(Target):
    """A disk on a tmpfs of 6 MiB in a mount namespace of its own: the image says 16 MiB."""

    def start(self):
        self.starts += 1
        mount = self.folder / "mount"
        mount.mkdir()
        socket = self.folder / "full.sock"
        script = (
            f"mount -t tmpfs -o size=6m none {mount} && truncate -s 16M {mount}/disk.raw && "
            f"exec {' '.join(VHOSTD)} {mount}/disk.raw --socket-path {socket} --queues 1"
        )
        from tests.support.backends import Backend

        log = (self.folder / "full.log").open("wb")
        with log:
            process = subprocess.Popen(
                ["unshare", "-m", "--propagation", propagation(), "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.backend = Backend("vhostd", self.image, socket, process, self.folder / "full.log")


@pytest.mark.parametrize("flags", [0, 1], ids=["F10-write-zeroes", "F10-write-zeroes-unmap"])
def test_the_file_system_is_full(tmp_path, content, flags):
    """F10: IOERR, what is there stays right, and when there is room again all works."""
    full = Full(tmp_path, content)
    full.start()
    try:
        with open_session(full.socket, size=64, memory_len=16 * MIB) as session:
            driver = session.block()
            fine = 0
            while fine < 64:
                done = driver.request(Request.OUT, fine * 512, bytes([fine + 1]) * (256 * 1024))
                if not done.ok:
                    break
                fine += 1
            assert done.status == StatusByte.IOERR
            assert 8 < fine < 64
            for n in range(fine):
                assert driver.read(n * 512, 256 * 1024) == bytes([n + 1]) * (256 * 1024)
            assert driver.request(Request.FLUSH).ok
            assert driver.request(Request.OUT, 60 * 512, b"x" * (256 * 1024)).status == StatusByte.IOERR
            assert driver.write_zeroes((61 * 512, 512), flags=flags).status in {StatusByte.OK, StatusByte.IOERR}
            assert driver.discard((0, 4 * 512)).ok
            driver.write(50 * 512, b"y" * (256 * 1024))
            assert driver.read(50 * 512, 256 * 1024) == b"y" * (256 * 1024)
            assert driver.read(4 * 512, 512) == bytes([5]) * 512
        assert full.backend.stop() == 0
    finally:
        full.backend.stop()


@contextlib.contextmanager
def failing(tmp_path, content, *rules, **options):
    """A disk whose storage fails by rule."""
    with fuse_file(tmp_path, content, rules=[{"event": "none", **rule} for rule in rules]) as (path, _):
        target = Target(tmp_path, content, image=path, **options)
        # No guest is let in before the case, whose rules count requests.
        from tests.support.backends import start_vhostd

        target.backend = start_vhostd(path, tmp_path / "failing.sock", **target.options)
        try:
            yield target
        finally:
            target.stop()


@pytest.mark.parametrize("aio", ["io_uring", "sync"])
@pytest.mark.parametrize("errno", [5, 28, 12, 11], ids=["F11-EIO", "F10-ENOSPC", "F13-ENOMEM", "F13-EAGAIN"])
def test_a_sector_cannot_be_written(tmp_path, content, errno, aio):
    """F10, F11: that request's IOERR; others, and reads of what was there, go on."""
    rule = {"errno": errno, "iotype": "write", "sector": 100}
    with (
        failing(tmp_path, content, rule, options=("--aio", aio)) as target,
        open_session(target.socket) as session,
    ):
        driver = session.block()
        for _ in range(3):
            assert driver.request(Request.OUT, 96, b"x" * 4096).status == StatusByte.IOERR
            driver.write(8, b"y" * 512)
            assert driver.read(8, 512) == b"y" * 512
        assert driver.read(96, 512) in {b"x" * 512, content[96 * 512 :][:512]}
        assert driver.request(Request.FLUSH).ok


@pytest.mark.parametrize("aio", ["io_uring", "sync"])
@pytest.mark.parametrize("once", [True, False], ids=["F11-once", "F11-always"])
def test_a_sector_cannot_be_read(tmp_path, content, once, aio):
    """F11, P3: IOERR, never other bytes; a read that works again is right again."""
    rule = {"errno": 5, "iotype": "read", "sector": 100, "once": once}
    with (  # direct: the page cache reads ahead, and tries by itself again
        failing(tmp_path, content, rule, options=("--aio", aio, "--direct")) as target,
        open_session(target.socket) as session,
    ):
        driver = session.block()
        done = driver.request(Request.IN, 96, read_len=4096)
        assert done.status == StatusByte.IOERR
        again = driver.request(Request.IN, 96, read_len=4096)
        assert again.status == (StatusByte.OK if once else StatusByte.IOERR)
        if once:
            assert again.data == content[96 * 512 :][:4096]
        assert driver.read(0, 4096) == content[:4096]


@pytest.mark.parametrize("aio", ["io_uring", "sync"])
def test_a_flush_fails_once(tmp_path, content, aio):
    """F11: after a failed flush every later one fails, in later sessions too: what it lost is not known (fsyncgate)."""
    rule = {"errno": 5, "iotype": "flush", "once": True}
    with failing(tmp_path, content, rule, options=("--aio", aio)) as target:
        for _ in range(2):
            with open_session(target.socket) as session:
                driver = session.block()
                driver.write(0, b"z" * 512)
                for _ in range(3):
                    assert driver.request(Request.FLUSH).status == StatusByte.IOERR
                assert driver.read(0, 512) == b"z" * 512


def test_a_durable_write_fails(tmp_path, content):
    """F11: without a write cache each write is durable before its status; the error is the write's."""
    rule = {"errno": 5, "iotype": "write", "sector": 100}
    with (
        failing(tmp_path, content, rule, options=("--no-write-cache",)) as target,
        open_session(target.socket) as session,
    ):
        driver = session.block()
        assert driver.request(Request.OUT, 100, b"x" * 512).status == StatusByte.IOERR
        driver.write(0, b"y" * 512)
        assert driver.read(0, 512) == b"y" * 512


@pytest.mark.writes
@pytest.mark.parametrize("left", [0, 4096, 100_000], ids="F14-{}".format)
def test_the_image_is_truncated_under_us(target, left):
    """F14: reads past its end are errors, not zeroes; a write makes it longer again; the capacity stays."""
    with guest(target) as session:
        driver = session.block()
        os.truncate(target.image, left)
        if left:
            assert driver.read(0, 4096) == target.content[:4096]
        done = driver.request(Request.IN, 1000, read_len=4096)
        assert done.status == StatusByte.IOERR
        across = driver.request(Request.IN, left // 512, read_len=4096)
        assert across.status == StatusByte.IOERR
        driver.write(2000, b"w" * 512)
        assert driver.read(2000, 512) == b"w" * 512
        assert driver.read(1000, 512) == bytes(512)
        assert driver.request(Request.IN, IMAGE_LEN // 512, read_len=512).status == StatusByte.IOERR


@pytest.mark.writes
def test_the_image_grows_under_us(target):
    """F14: what lies behind the capacity that was told is not the guest's."""
    with guest(target) as session:
        os.truncate(target.image, 2 * IMAGE_LEN)
        assert session.block().request(Request.IN, IMAGE_LEN // 512, read_len=512).status == StatusByte.IOERR
        assert session.reads()


def test_the_image_is_unlinked_and_replaced(own):
    """F14: the open file is served, whatever its name leads to."""
    target = own()
    with guest(target) as session:
        target.image.unlink()
        target.image.write_bytes(bytes(IMAGE_LEN))
        assert session.reads()
        session.block().write(0, b"q" * 512)
        assert session.block().read(0, 512) == b"q" * 512
    assert target.image.read_bytes() == bytes(IMAGE_LEN)


# F44: stops with everything in flight.


@pytest.mark.parametrize("direct", [False, True], ids=["F44-cached", "F44-direct"])
def test_stop_with_a_full_ring_in_flight(own, direct):
    """F44: 80 times, then again with the connection's end instead."""
    target = own(queues=2, options=("--direct", "--block-size", "4096") if direct else ())
    with guest(target, size=256, memory_len=16 * MIB, indirect=True) as session:
        driver = session.block()
        for _ in range(80):
            flying = [driver.submit(Request.IN, 8 * (n % 500), read_len=4096, kick=False) for n in range(250)]
            session.queue.kick()
            base = session.frontend.get_base(0)
            assert session.queue.used_idx == base
            session.frontend.start_ring(0, session.queue)
            for pending in flying:
                assert driver.complete(pending).ok
    for _ in range(20):
        with guest(target, size=256, memory_len=16 * MIB, indirect=True) as session:
            driver = session.block()
            for n in range(250):
                driver.submit(Request.IN, 8 * (n % 500), read_len=4096, kick=False)
            session.queue.kick()


# F40: SIGTERM in each state.


@contextlib.contextmanager
def listening(target):
    yield


@contextlib.contextmanager
def connected(target):
    with raw(target) as connection:
        yield connection


@contextlib.contextmanager
def half_header(target):
    with raw(target) as connection:
        connection.sendall(frame(R.GET_FEATURES)[:7])
        yield


@contextlib.contextmanager
def half_payload(target):
    with guest(target) as session:
        fds = [session.arena.fd(session.arena.regions[0])]
        session.frontend.send_bytes(frame(R.SET_MEM_TABLE, bytes(8), size=40), fds)
        yield


def in_state(state, **options):
    @contextlib.contextmanager
    def make(target):
        with guest(target, state, queues=4, **options):
            yield

    return make


@contextlib.contextmanager
def disabled(target):
    with guest(target) as session:
        session.frontend.enable(0, enabled=False)
        yield


@contextlib.contextmanager
def broken(target):
    with guest(target) as session:
        session.queue.raw_push(60000)
        session.queue.kick(force=True)
        assert session.broke()
        yield


@contextlib.contextmanager
def in_flight(target):
    with guest(target, size=256, memory_len=16 * MIB) as session:
        driver = session.block()
        for n in range(60):
            driver.submit(Request.IN, n, read_len=65536, kick=False)
        session.queue.kick()
        yield


@contextlib.contextmanager
def unread_replies(target):
    with raw(target) as connection:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                connection.send(frame(R.GET_FEATURES) * 1000)
        yield


@contextlib.contextmanager
def flooded(target):
    import threading

    with raw(target) as connection:
        stop = threading.Event()

        def flood():
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    connection.sendall(frame(R.SET_OWNER) * 1000)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            time.sleep(0.05)
            yield
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def full_for_ever(target):
    """A ring that always has more."""
    from tests.hostile.test_rings import Ring
    from vhostd.driver.hammer import Hammer

    with guest(target, queues=4) as made:
        ring = Ring(made, 0)
        for n in range(16):
            ring.good(first=3 * n)
        for n in range(64):
            ring.arena.write(ring.queue.avail_gpa + 4 + 2 * n, (3 * (n % 16)).to_bytes(2, "little"))
        avail = ring.arena.view(ring.queue.avail_gpa + 2, 2)
        used = ring.arena.view(ring.queue.used_gpa + 2, 2)
        with Hammer.refill(avail, used, 16):
            os.eventfd_write(ring.queue.kick_fd.number, 1)
            yield
        avail.release()
        used.release()


@contextlib.contextmanager
def memory_gone(target):
    from tests.hostile.test_socket_memory import RINGS, cuttable

    with cuttable(target) as bad:
        bad.arena.truncate(RINGS, 0)
        yield


@contextlib.contextmanager
def call_blocks(target):
    """A worker hangs in the write of a call: the front-end made its eventfd block, and filled it."""
    with guest(target) as bad:
        hang(bad)
        yield


STATES = {
    "listening": listening,
    "connected": connected,
    "half-header": half_header,
    "half-payload": half_payload,
    "negotiated": in_state("negotiated"),
    "memory": in_state("memory"),
    "running": in_state("running"),
    "disabled": disabled,
    "broken": broken,
    "in-flight": in_flight,
    "unread-replies": unread_replies,
    "flooded": flooded,
    "full-for-ever": full_for_ever,
    "memory-gone": memory_gone,
    "call-blocks": call_blocks,
}


@pytest.mark.parametrize("state", STATES, ids="F40-{}".format)
def test_sigterm_in_each_state(own, state):
    """F40, P8: exit 0 within five seconds, the socket file gone; the image is as it was."""
    target = own()
    with STATES[state](target):
        began = time.monotonic()
        target.backend.process.send_signal(signal.SIGTERM)
        code = target.backend.process.wait(STOP_S + 5)
        took = time.monotonic() - began
    assert code == 0, target.log()
    assert took < STOP_S
    assert not target.socket.exists()
    assert target.image.read_bytes() == target.content
    assert "Traceback" not in target.log()
    target.backend = None


@pytest.mark.parametrize("name", ["SIGHUP", "SIGPIPE", "SIGCHLD", "SIGURG", "SIGWINCH", "SIGCONT"], ids="F40-{}".format)
def test_signals_that_end_nothing(target, name):
    """F40: the session goes on."""
    with guest(target) as session:
        for _ in range(20):
            target.backend.process.send_signal(signal.Signals[name])
            assert session.reads()


def test_sigint_is_sigterm(own):
    """F40."""
    target = own()
    with guest(target) as session:
        assert session.reads()
        target.backend.process.send_signal(signal.SIGINT)
        assert target.backend.process.wait(STOP_S) == 0
    target.backend = None


def test_stopped_and_continued(target):
    """F8: a daemon that was stopped for a moment does what has come meanwhile, each once."""
    with guest(target) as session:
        driver = session.block()
        target.backend.process.send_signal(signal.SIGSTOP)
        flying = [driver.submit(Request.IN, n, read_len=512) for n in range(20)]
        time.sleep(0.1)
        target.backend.process.send_signal(signal.SIGCONT)
        for n, pending in enumerate(flying):
            assert driver.complete(pending).data == target.content[n * 512 :][:512]
        with pytest.raises(DeviceTimeout):
            session.queue.wait(0.05)
        assert BlockDriver(session.queue).read(0, 512) == target.content[:512]
