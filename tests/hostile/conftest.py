"""One `vhostd blk` that many cases attack, and the verdict after each of them.

After every case: the process is the same one and lives; a fresh guest reads the right bytes within 2 s; descriptors and
mappings are back at their level; the image is as it was, unless the case writes (marker `writes`). CPU time while
nobody is there is looked at once in so many cases, and the cases since the last look are named when it is not quiet.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path

import pytest

from tests.hostile.attack import guest
from tests.support.backends import start_vhostd
from vhostd.spec.blk import Request

IMAGE_LEN = 4 << 20  # bytes
QUEUES = 4
FRESH_S = 2.0
SETTLE_S = 3.0
IDLE_S = 0.05
IDLE_CPU_NS = 10_000_000
CALM_EVERY = 16  # cases


def image_bytes():
    """4 MiB in which each 512 bytes tell where they are, the upper half only by its sector numbers."""
    return b"".join(
        hashlib.blake2b(n.to_bytes(8, "little"), digest_size=64).digest() * 8 for n in range(IMAGE_LEN // 512)
    )


class Target:
    """A running daemon, what it serves, and the level of what it holds."""

    def __init__(self, folder, content, *, image=None, **options):
        self.folder = folder
        self.content = content
        self.options = {"queues": QUEUES, **options}
        self.image = image or folder / "disk.raw"
        self.backend = None
        self.starts = 0
        self.level = None
        self.since_calm = []
        if image is None:
            self.image.write_bytes(content)

    @property
    def socket(self):
        return self.backend.socket

    @property
    def pid(self):
        return self.backend.pid

    def start(self):
        """Start it, and take the level after a first guest has come and gone."""
        self.starts += 1
        self.backend = start_vhostd(self.image, self.folder / f"{self.starts}.sock", **self.options)
        with guest(self, queues=self.options["queues"], wait=10.0) as first:
            assert first.reads()
        self.level = self.settled()

    def stop(self):
        if self.backend is not None:
            backend, self.backend = self.backend, None
            backend.stop()

    def settled(self):
        """What is held once the last front-end has been let go of: for a moment nothing changes any more."""
        held, since = self.held(), time.monotonic()
        while time.monotonic() - since < 0.1:
            time.sleep(0.01)
            if held != (held := self.held()):
                since = time.monotonic()
        return held

    def held(self):
        """Open descriptors, and mappings of guest memory."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        return len(os.listdir(f"/proc/{self.pid}/fd")), maps.count("memfd:")

    def cpu_ns(self):
        return self.backend.cpu_ns()

    def digest(self):
        return hashlib.blake2b(self.image.read_bytes()).digest()

    def restore(self):
        """Put the image back as it was."""
        with self.image.open("r+b") as file:
            file.truncate(IMAGE_LEN)
            file.write(self.content)

    def log(self):
        return self.backend.log.read_text()

    # The verdict.

    def check(self, case, *, writes=False, changed_memory=False):
        """Everything that must hold after any case."""
        assert self.backend.alive, f"the daemon died with {self.backend.process.returncode}:\n{self.log()[-4000:]}"
        began = time.monotonic()
        with guest(self, queues=self.options["queues"], wait=FRESH_S) as fresh:
            for ring in range(self.options["queues"]):
                driver = fresh.block(ring, timeout=FRESH_S)
                if writes:
                    assert driver.request(Request.IN, 8 * ring, read_len=4096).ok
                else:
                    length = 65536 if ring == 0 else 4096
                    assert driver.read(8 * ring, length) == self.content[4096 * ring :][:length]
        assert time.monotonic() - began < FRESH_S + 1, "a fresh guest waited too long"
        self.wait_level()
        if writes:
            self.restore()
        else:
            assert self.digest() == hashlib.blake2b(self.content).digest(), "the image has changed"
        assert "Traceback" not in self.log(), self.log()[-4000:]
        self.since_calm.append(case)
        if len(self.since_calm) >= CALM_EVERY:
            self.check_calm()

    def wait_level(self):
        """Descriptors and mappings come back to their level."""
        deadline = time.monotonic() + SETTLE_S
        while (held := self.held()) != self.level:
            if time.monotonic() > deadline:
                links = [os.readlink(f"/proc/{self.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{self.pid}/fd")]
                assert held == self.level, f"descriptors, mappings: {links}"
            time.sleep(0.002)

    def check_calm(self):
        """Nobody is there, so nothing runs."""
        cases, self.since_calm = self.since_calm, []
        used = self.idle_cpu_ns()
        assert used < IDLE_CPU_NS, (
            f"{used / 1e6:.1f} ms of CPU in {IDLE_S * 1000:.0f} ms of silence after one of {cases}"
        )

    def idle_cpu_ns(self):
        """CPU time that all threads use while we sleep; the least of three, since the machine is not ours alone."""
        least = None
        for _ in range(3):
            before = self.cpu_ns()
            time.sleep(IDLE_S)
            used = self.cpu_ns() - before
            least = used if least is None else min(least, used)
            if least < IDLE_CPU_NS:
                break
        return least


def pytest_collection_modifyitems(items):
    """What we look at is not for others: a daemon's /proc is root's, and so are mounts."""
    for item in items:
        if "/hostile/" in str(item.path):
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def content():
    return image_bytes()


@pytest.fixture(scope="module")
def shared(tmp_path_factory, content):
    """The daemon of a module's cases."""
    made = Target(tmp_path_factory.mktemp("target"), content)
    made.start()
    yield made
    with contextlib.suppress(Exception):
        made.stop()


@pytest.fixture
def target(shared, request):
    """The daemon, alive; judged after the case, and replaced when it does not pass."""
    pid = shared.pid
    yield shared
    try:
        assert shared.pid == pid
        shared.check(
            request.node.nodeid.rpartition("::")[2], writes=request.node.get_closest_marker("writes") is not None
        )
    except BaseException:
        shared.backend.process.kill()
        shared.backend.process.wait()
        shared.restore()
        shared.start()
        raise


@pytest.fixture
def own(tmp_path, content):
    """Start daemons of a case's own; they live to the end unless the case stopped them."""
    made = []

    def starter(**options):
        target = Target(tmp_path, content, **options)
        made.append(target)
        target.start()
        return target

    yield starter
    for target in made:
        target.stop()
