"""S14, S150 to S163: time, crowds, and the socket's own path."""

import contextlib
import os
import resource
import signal
import socket
import struct
import threading
import time

import pytest

from tests.hostile.attack import MIB, alive, closed, connect, ended, frame, guest, header, raw, table
from tests.support.backends import VHOSTD
from vhostd.errors import DeviceGone, DeviceTimeout
from vhostd.spec.vhost_user import FrontendRequest

R = FrontendRequest
GET = frame(R.GET_FEATURES)
SLOW_S = 5.0  # what half a message and an unread reply are given


class Slow:
    """A daemon for each case that takes as long as the device's patience: they are all waited for at once."""

    def __init__(self, make):
        self.make = make
        self.targets = {}
        self.threads = {}
        self.took = {}

    def begin(self, name, attack):
        target = self.targets[name] = self.make(name)

        def run():
            began = time.monotonic()
            try:
                attack(target)
            except Exception as error:  # noqa: BLE001 - the case raises it again
                self.took[name] = error
            else:
                self.took[name] = time.monotonic() - began

        self.threads[name] = threading.Thread(target=run)
        self.threads[name].start()

    def end(self, name):
        self.threads[name].join()
        if isinstance(self.took[name], Exception):
            raise self.took[name]
        self.targets[name].check(name)
        return self.took[name]


def half_header(target):
    with raw(target) as connection:
        connection.sendall(GET[:5])
        assert ended(connection, 9)


def header_only(target):
    with raw(target) as connection:
        connection.sendall(frame(R.SET_FEATURES, size=8))
        assert ended(connection, 9)


def slow_loris(target):
    """A byte a second: the time counts from the first."""
    with raw(target) as connection, contextlib.suppress(OSError):
        for byte in frame(R.SET_FEATURES, bytes(8)):
            connection.sendall(bytes([byte]))
            if ended(connection, 1):
                return
        pytest.fail("a whole message was waited for")


def half_with_fds(target):
    """Half a table with eight descriptors, in the middle of I/O, which goes on."""
    with guest(target) as bad:
        fds = [bad.arena.fd(bad.arena.regions[0])] * 8
        bad.frontend.send_bytes(frame(R.SET_MEM_TABLE, bytes(100), size=264), fds)
        assert bad.reads()
        assert closed(bad.frontend, 9)


def unread_replies(target):
    """Replies that nobody reads: a bounded number waits, then we stop reading, then we close."""
    with raw(target) as connection:
        sent = 0
        with contextlib.suppress(OSError):
            connection.settimeout(9)
            for _ in range(200):
                connection.sendall(GET * 1000)
                sent += 1000
        assert sent < 200_000
        assert ended(connection, 9)


ATTACKS = {
    "S6-half-header": half_header,
    "S150-header-only": header_only,
    "S150-a-byte-a-second": slow_loris,
    "S150-half-with-fds": half_with_fds,
    "S14-unread-replies": unread_replies,
}


@pytest.fixture(scope="module")
def slow(tmp_path_factory, content):
    from tests.hostile.conftest import Target

    def make(name):
        target = Target(tmp_path_factory.mktemp("slow"), content)
        target.start()
        return target

    patience = Slow(make)
    for name, attack in ATTACKS.items():
        patience.begin(name, attack)
    yield patience
    for name, thread in patience.threads.items():
        thread.join()
        patience.targets[name].stop()


@pytest.mark.parametrize("name", ATTACKS)
def test_patience_ends(slow, name):
    """S6, S14, S150: five seconds, then the connection closes and the next front-end is served."""
    took = slow.end(name)
    assert SLOW_S - 0.5 < took < SLOW_S + 4


def test_connect_and_send_nothing(target):
    """S151: idle is allowed, and costs no time."""
    with raw(target) as connection:
        time.sleep(0.05)
        assert target.idle_cpu_ns() < 10_000_000
        connection.sendall(GET)
        assert connection.recv(100)


def test_a_second_front_end(target):
    """S160: it is turned away at once, and the first does not notice."""
    with guest(target) as first:
        for _ in range(50):
            with raw(target) as second:
                assert ended(second)
            assert first.reads()


def test_a_second_front_end_that_talks_at_once(target):
    """S160: whatever it sends with its connect, descriptors too."""
    with guest(target) as first:
        for _ in range(20):
            with raw(target) as second:
                with contextlib.suppress(OSError):
                    payload = frame(R.SET_MEM_TABLE, table((0, MIB, 0, 0)))
                    socket.send_fds(second, [payload], [first.arena.fd(first.arena.regions[0])])
                assert ended(second)
        assert first.reads()


@pytest.mark.parametrize("turns", [50], ids="S160-{}".format)
def test_a_new_front_end_takes_over_from_one_that_has_gone(target, turns):
    """S160: a VM that is restarted connects while the old connection's end is not seen yet, or has unread messages."""
    for turn in range(turns):
        old = raw(target)
        old.sendall(GET * (turn % 5) * 100)
        old.close()
        with raw(target) as new:
            new.sendall(GET)
            assert len(new.recv(20)) == 20


def test_a_new_front_end_takes_over_from_one_that_went_with_requests(target):
    """S160, F9: the same with rings that run and requests in flight."""
    for _ in range(10):
        with guest(target, size=256) as old:
            driver = old.block()
            for n in range(60):
                driver.submit(0, n, read_len=4096, kick=False)
            old.queue.kick()
            old.frontend._socket.close()
            with raw(target) as new:
                new.sendall(GET)
                assert len(new.recv(20)) == 20


def test_two_hundred_connections_one_after_another(target):
    """S161."""
    for _ in range(200):
        raw(target).close()


def test_a_hundred_connections_at_once(target):
    """S161: one is served, and when all have gone the next."""
    held = []
    try:
        with guest(target) as first:
            for _ in range(100):
                connection = socket.socket(socket.AF_UNIX)
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    connection.connect(os.fspath(target.socket))
                held.append(connection)
            assert first.reads()
    finally:
        for connection in held:
            connection.close()


def test_a_crowd_of_connections_while_one_works(target):
    """S161: they are turned away, and the first is served meanwhile."""
    with guest(target) as first:
        stop = threading.Event()
        count = 0

        def connects():
            nonlocal count
            while not stop.is_set():
                raw(target).close()
                count += 1

        crowd = threading.Thread(target=connects)
        crowd.start()
        try:
            until = time.monotonic() + 20
            reads = 0
            while count < 500 or reads < 20:
                assert first.reads()
                reads += 1
                assert time.monotonic() < until
        finally:
            stop.set()
            crowd.join()


def test_descriptors_run_out_in_accept(target):
    """S162, F60: no spin, and when there are descriptors again the next front-end is served."""
    before = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)
    used = {int(fd) for fd in os.listdir(f"/proc/{target.pid}/fd")}
    lowest = next(n for n in range(4096) if n not in used)
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        held = [raw(target) for _ in range(3)]
        for connection in held:
            assert ended(connection)
            connection.close()
        assert target.idle_cpu_ns() < 10_000_000
    finally:
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE, before)


def test_a_flood_of_messages_leaves_room_for_others(target):
    """S160: while one front-end talks without a pause, a second is turned away and signals are heard."""
    stop = threading.Event()
    with guest(target, "negotiated") as noisy:

        def flood():
            messages = frame(R.SET_OWNER) * 2000
            with contextlib.suppress(DeviceGone, DeviceTimeout):
                while not stop.is_set():
                    noisy.frontend.send_bytes(messages)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            time.sleep(0.1)
            for _ in range(5):
                began = time.monotonic()
                with raw(target) as second:
                    assert ended(second, 3)
                assert time.monotonic() - began < 1
        finally:
            stop.set()
            flooding.join()


# The socket's path.


def test_the_path_is_deleted_and_made_again(own):
    """S163: SIGHUP makes it anew; the session that runs is not touched."""
    target = own()
    with guest(target) as first:
        target.socket.unlink()
        os.kill(target.pid, signal.SIGHUP)
        deadline = time.monotonic() + 3
        while not target.socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert first.reads()
    target.check("path deleted")


def test_the_path_is_replaced_by_another(own):
    """S163: what lies there then is not ours to remove, not at a SIGHUP and not at the end."""
    target = own()
    target.socket.unlink()
    target.socket.write_text("mine")
    os.kill(target.pid, signal.SIGHUP)
    time.sleep(0.2)
    assert target.backend.alive
    assert target.backend.stop() == 0
    assert target.socket.read_text() == "mine"


def test_a_stale_socket_is_taken_over(own, tmp_path):
    """S163: after kill -9 the path is still there, and nobody listens behind it."""
    target = own()
    target.backend.process.kill()
    target.backend.process.wait()
    assert target.socket.exists()
    target.starts -= 1
    target.start()
    assert target.backend.alive


@pytest.mark.parametrize("what", ["symlink", "file", "directory", "listened"], ids="S163-{}".format)
def test_a_path_that_cannot_be_had(own, tmp_path, what):
    """S163: refused at the start, and left as it is."""
    import subprocess

    path = tmp_path / "taken.sock"
    image = tmp_path / "other.raw"
    image.write_bytes(bytes(4096))
    with contextlib.ExitStack() as stack:
        if what == "symlink":
            path.symlink_to(tmp_path / "elsewhere")
        elif what == "file":
            path.write_text("x")
        elif what == "directory":
            path.mkdir()
        else:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()
        before = path.lstat().st_ino
        found = subprocess.run([*VHOSTD, str(image), "--socket-path", str(path)], capture_output=True, timeout=20)
        assert found.returncode == 6
        assert b"taken.sock" in found.stderr
        assert path.lstat().st_ino == before


def test_linger_and_reset_with_requests_in_flight(target):
    """S15, F9: a reset instead of an end."""
    for _ in range(10):
        with guest(target, size=256) as bad:
            driver = bad.block()
            for n in range(60):
                driver.submit(0, n, read_len=4096, kick=False)
            bad.queue.kick()
            bad.frontend._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            bad.frontend._socket.close()


def test_a_guest_that_was_never_started_is_left(target):
    """S161: front-ends that go in each state of a start."""
    for state in ("connected", "negotiated", "memory", "running"):
        for _ in range(10):
            with guest(target, state, queues=4):
                pass


def test_connections_are_made_again_while_the_disk_works(target):
    """F30: a hundred sessions with a request each."""
    for _ in range(100):
        with guest(target) as session:
            assert session.reads(length=512)


def test_a_header_of_zeroes_and_of_ones(target):
    """S5: the two messages that a broken peer sends first."""
    for byte in (b"\0", b"\xff"):
        with raw(target) as connection:
            connection.sendall(byte * 4096)
            assert ended(connection)


def test_something_else_than_vhost_user(target):
    """S5: what other programs say when they connect."""
    for words in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b'{"execute":"qmp_capabilities"}\r\n', header(0) * 10):
        with raw(target) as connection:
            connection.sendall(words)
            assert ended(connection)
        with contextlib.closing(connect(target)) as session:
            assert alive(session)


def test_a_flood_of_refused_messages_in_the_log(target):
    """S5: a line or two, then a count."""
    with guest(target) as bad:
        before = len(target.log())
        for _ in range(1000):
            assert bad.attempt(R.SET_VRING_NUM, struct.pack("<II", 0, 3)) == "refused"
        assert len(target.log()) - before < 20_000
