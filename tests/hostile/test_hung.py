"""F12, F15, P5: storage that stops answering. Everything else does not: messages, other rings, other devices, the end.

qemu-storage-daemon serves the image over FUSE and is stopped. These cases wait for the device's patience (5 s for
requests in flight, 5 s more for cancelled ones): they all run at once, and each test asks for its part.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest

from tests.hostile.attack import MIB, attempt, ended, frame, guest, raw, single, u64
from tests.hostile.conftest import Target
from tests.hostile.fuse import fuse_file, hang, resume
from tests.support.backends import VHOSTD
from vhostd.driver.session import open_session
from vhostd.errors import DeviceError, DeviceGone
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FrontendRequest

R = FrontendRequest
DRAIN_S = 10.0  # five seconds for what is in flight, five more after it was cancelled
STOP_S = 7.0  # a process whose threads hang in the kernel


@contextlib.contextmanager
def hung_disk(folder, content, **options):
    """A running device on FUSE: (target, hang, resume)."""
    with fuse_file(folder, content) as (path, storage):
        target = Target(folder, content, image=path, **options)
        target.start()
        try:
            yield target, lambda: hang(storage), lambda: resume(storage)
        finally:
            resume(storage)
            with contextlib.suppress(subprocess.TimeoutExpired):
                target.stop()


def disconnect(folder, content, kind):
    """The front-end goes while a request hangs: the connection ends in bounded time, and all is given back later."""
    with hung_disk(folder, content) as (target, stop, go):
        session = guest(target, queues=4)
        with session as made:
            assert made.reads()
            stop()
            driver = made.block()
            for n in range(4):
                driver.submit(kind, 800 + n, b"x" * 512 if kind == Request.OUT else b"", read_len=0 if kind else 512)
            time.sleep(0.1)
        began = time.monotonic()
        # A front-end that comes meanwhile waits until the old one has been let go of, and is then heard.
        with raw(target) as connection:
            connection.settimeout(DRAIN_S + 4)
            connection.sendall(frame(R.GET_FEATURES))
            assert len(connection.recv(20)) == 20
        took = time.monotonic() - began
        assert took < DRAIN_S + 3, took
        go()
        deadline = time.monotonic() + 5
        while target.held() != target.level and time.monotonic() < deadline:
            time.sleep(0.02)
        target.check("disconnect", writes=True)


def messages(folder, content):
    """A worker hangs in a write: descriptors are replaced, rings start and memory comes and goes in bounded time; when
    the storage is back, everything told meanwhile holds, and nothing that was replaced is touched.
    """
    with hung_disk(folder, content, options=("--workers", "1")) as (target, stop, go):
        with guest(target, queues=4) as made:
            assert made.reads()
            stop()
            made.block().submit(Request.OUT, 800, b"x" * 512)
            time.sleep(0.1)
            began = time.monotonic()
            fresh = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            made.frontend.timeout = 20
            assert made.attempt(R.SET_VRING_CALL, u64(0), [fresh]) in {"done", "refused"}
            region = os.memfd_create("late")
            os.ftruncate(region, MIB)
            with contextlib.suppress(DeviceGone):
                attempt(made.frontend, R.ADD_MEM_REG, single(1 << 40, MIB, 1 << 40), [region])
            took = time.monotonic() - began
            assert took < 2 * DRAIN_S + 5, took
            go()
            os.close(region)
            os.close(fresh)
            time.sleep(0.2)
        target.check("messages", writes=True)


def rings(folder, content):
    """A ring is started on a worker that hangs; the front-end goes; the worker comes back.

    What it was told to start is stopped before it is freed.
    """
    with hung_disk(folder, content, options=("--workers", "1")) as (target, stop, go):
        with guest(target, queues=2) as made:
            assert made.reads(0)
            assert made.reads(1)
            made.frontend.get_base(1)
            stop()
            made.block().submit(Request.OUT, 800, b"x" * 512)
            time.sleep(0.1)
            made.frontend.timeout = 20
            made.frontend.bases.clear()
            made.queues[1].reset()
            with contextlib.suppress(DeviceError):
                made.frontend.start_ring(1, made.queues[1])
        time.sleep(0.5)
        go()
        deadline = time.monotonic() + DRAIN_S + 5
        while target.held() != target.level and time.monotonic() < deadline:
            time.sleep(0.02)
        target.check("rings", writes=True)


def stop_ring(folder, content):
    """GET_VRING_BASE while a read hangs: answered or closed in bounded time."""
    with hung_disk(folder, content) as (target, stop, go):
        with guest(target, queues=4) as made:
            assert made.reads()
            stop()
            for n in range(4):
                made.block().submit(Request.IN, 800 + n, read_len=512)
            time.sleep(0.1)
            # Rings of the other worker are not touched by what hangs in this one, as long as they need no storage.
            made.frontend.timeout = 2 * DRAIN_S
            began = time.monotonic()
            assert made.attempt(R.GET_VRING_BASE, bytes(8)) in {"done", "closed"}
            assert time.monotonic() - began < 2 * DRAIN_S
            go()
        deadline = time.monotonic() + DRAIN_S + 5
        while target.held() != target.level and time.monotonic() < deadline:
            time.sleep(0.02)
        target.check("stop", writes=True)


def sigterm(folder, content, kind):
    """SIGTERM while a request hangs: the process gives up in bounded time.

    The kernel keeps its last thread until the file can be closed (no signal ends that wait), so the storage is let go
    on after that time: who still waited for it would end well then.
    """
    with hung_disk(folder, content) as (target, stop, go), guest(target) as made:
        assert made.reads()
        stop()
        made.block().submit(kind, 800, b"x" * 512 if kind == Request.OUT else b"", read_len=0 if kind else 512)
        time.sleep(0.1)
        process, target.backend = target.backend.process, None
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        go()
        assert process.wait(3) != 0


def killed(folder, content):
    """The FUSE daemon is killed: ENOTCONN is an IOERR, and the device goes on to answer."""
    with hung_disk(folder, content) as (target, stop, _):
        with guest(target) as made:
            driver = made.block()
            stop()
            flying = [driver.submit(Request.IN, 800 + n, read_len=512) for n in range(4)]
            time.sleep(0.1)
            os.system(f"umount -f {target.image} 2>/dev/null")
            for pending in flying:
                assert not driver.complete(pending).ok
            assert driver.request(Request.OUT, 0, b"x" * 512).status == 1
            assert driver.request(Request.GET_ID, read_len=20).ok
        assert target.backend.stop() == 0
        target.backend = None


def neighbours(folder, content):
    """P5: `vhostd serve` with two disks: while one hangs the other works as ever, and the operator is answered."""
    with fuse_file(folder, content) as (path, storage):
        good = folder / "good.raw"
        good.write_bytes(content)
        settings = folder / "vhostd.toml"
        control = folder / "c.sock"
        settings.write_text(
            f'control = "{control}"\n'
            f'[[disk]]\nname = "bad"\nimage = "{path}"\nsocket-path = "{folder}/b.sock"\n'
            f'[[disk]]\nname = "good"\nimage = "{good}"\nsocket-path = "{folder}/g.sock"\n'
        )
        with (folder / "serve.log").open("wb") as log:
            process = subprocess.Popen([*VHOSTD[:-1], "serve", str(settings)], stdout=log, stderr=log)
        try:
            with (
                open_session(folder / "b.sock", memory_len=8 * MIB) as bad,
                open_session(folder / "g.sock", memory_len=8 * MIB) as fine,
            ):
                assert bad.block().read(0, 512) == content[:512]
                hang(storage)
                bad.block().submit(Request.OUT, 800, b"x" * 512)
                bad.block().submit(Request.IN, 900, read_len=512)
                slowest = 0.0
                until = time.monotonic() + 3
                while time.monotonic() < until:
                    began = time.monotonic()
                    assert fine.block().read(8, 4096) == content[4096:8192]
                    slowest = max(slowest, time.monotonic() - began)
                assert slowest < 1
                status = subprocess.run(
                    [*VHOSTD[:-1], "status", "--control", str(control)], capture_output=True, timeout=15, check=False
                )
                assert b"good" in status.stdout, status.stderr
                resume(storage)
        finally:
            resume(storage)
            process.terminate()
            assert process.wait(15) == 0


CASES = {
    "F12-disconnect-read": lambda *a: disconnect(*a, Request.IN),
    "F12-disconnect-write": lambda *a: disconnect(*a, Request.OUT),
    "F12-disconnect-flush": lambda *a: disconnect(*a, Request.FLUSH),
    "F12-stop": stop_ring,
    "F15-messages": messages,
    "F15-rings": rings,
    "F15-sigterm-read": lambda *a: sigterm(*a, Request.IN),
    "F15-sigterm-write": lambda *a: sigterm(*a, Request.OUT),
    "F15-killed": killed,
    "P5-neighbours": neighbours,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, content):
    """All cases, begun at once."""
    found = {}

    def run(name, case):
        try:
            case(tmp_path_factory.mktemp(name[:3]), content)
        except BaseException as error:  # noqa: BLE001 - the case's test raises it
            found[name] = error
        else:
            found[name] = None

    threads = {name: threading.Thread(target=run, args=(name, case)) for name, case in CASES.items()}
    for thread in threads.values():
        thread.start()

    def outcome(name):
        threads[name].join()
        return found[name]

    yield outcome
    for thread in threads.values():
        thread.join()


@pytest.mark.parametrize("name", CASES)
def test_storage_that_stops_answering(outcomes, name):
    """F12, F15, P5: see the case."""
    error = outcomes(name)
    if error is not None:
        raise error


def test_the_second_front_end_is_turned_away_while_the_first_hangs(outcomes, tmp_path, content):
    """F15, S160: at once, not when the storage is back."""
    with hung_disk(tmp_path, content) as (target, stop, go), guest(target) as made:
        stop()
        made.block().submit(Request.OUT, 800, b"x" * 512)
        time.sleep(0.05)
        with raw(target) as second:
            assert ended(second, 1)
        go()
