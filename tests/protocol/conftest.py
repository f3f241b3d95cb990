"""Each test runs against every back-end there is: what qemu-storage-daemon passes too checks the document."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from tests.support.backends import STARTERS, start_card
from tests.support.net import Netns, Wire
from vhostd.driver.frontend import Frontend
from vhostd.driver.session import open_session

IMAGE_LEN = 16 << 20  # bytes
PATTERN_LEN = 1 << 20


def pattern(offset, length):
    """What the image holds at `offset` before a test: each 512 bytes tell where they are."""
    first, last = offset // 512, -(-(offset + length) // 512)
    sectors = b"".join(
        hashlib.blake2b(n.to_bytes(8, "little"), digest_size=64).digest() * 8 for n in range(first, last)
    )
    return sectors[offset - 512 * first :][:length]


def vhostd_only(reason):
    """Mark a test of a rule that qemu-storage-daemon breaks, with what it does instead."""
    return pytest.mark.parametrize("maker", [pytest.param("vhostd", id=f"vhostd ({reason})")], indirect=True)


@pytest.fixture(params=sorted(STARTERS))
def maker(request):
    """Which back-end."""
    return request.param


@pytest.fixture(scope="session")
def image_bytes():
    """The first MiB of every image."""
    return pattern(0, PATTERN_LEN)


@pytest.fixture
def image(tmp_path, image_bytes):
    """A raw image: a MiB of pattern, then a hole."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(image_bytes)
        file.truncate(IMAGE_LEN)
    return path


class Disk:
    """A running back-end with an image; sessions connect to it."""

    def __init__(self, backend):
        self.backend = backend
        self.socket = backend.socket
        self.image = backend.image

    def session(self, **options):
        """Connect as a guest does."""
        return open_session(self.socket, **options)

    def on_disk(self, offset, length):
        """What the image holds now, read past the back-end."""
        with self.image.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def digest(self):
        """The digest of the whole image."""
        return hashlib.blake2b(self.image.read_bytes()).hexdigest()


@pytest.fixture
def start(maker, image, tmp_path):
    """Start the back-end with options; it is stopped at the end and must still be alive then."""
    started = []

    def starter(**options):
        backend = STARTERS[maker](image, tmp_path / f"{len(started)}.sock", **options)
        started.append(backend)
        return Disk(backend)

    yield starter
    died = [f"{b.name} exited with {b.process.returncode}:\n{b.log.read_text()}" for b in started if not b.alive]
    for backend in started:
        backend.stop()
    assert not died, died


class Pool:
    """The back-ends that tests share: one of each maker, replaced when it died or answers no more."""

    def __init__(self, folder, image_bytes):
        self.folder = folder
        self.image_bytes = image_bytes
        self.backends = {}
        self.started = 0

    def get(self, maker):
        """A running back-end whose image is as new."""
        image = self.folder / f"{maker}.raw"
        with image.open("r+b" if image.exists() else "wb") as file:
            file.write(self.image_bytes + bytes(IMAGE_LEN - PATTERN_LEN))
        if maker not in self.backends:
            self.started += 1
            self.backends[maker] = STARTERS[maker](image, self.folder / f"{self.started}.sock")
        return self.backends[maker]

    def check(self, maker):
        """After each test: it lives and answers a new front-end."""
        backend = self.backends[maker]
        try:
            assert backend.alive, f"{maker} exited with {backend.process.returncode}:\n{backend.log.read_text()}"
            with Frontend.connect(backend.socket) as frontend:
                frontend.negotiate()
        except BaseException:
            del self.backends[maker]
            backend.stop()
            raise

    def close(self):
        for backend in self.backends.values():
            backend.stop()


@pytest.fixture(scope="session")
def pool(tmp_path_factory, image_bytes):
    pool = Pool(tmp_path_factory.mktemp("disks"), image_bytes)
    yield pool
    pool.close()


@pytest.fixture
def disk(maker, pool):
    """A back-end with one queue and a new image, which other tests use before and after."""
    yield Disk(pool.get(maker))
    pool.check(maker)


def open_fds(pid):
    """How many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Running:
    """A daemon with a card, and the namespace its tap is in."""

    def __init__(self, backend, netns):
        self.backend = backend
        self.netns = netns
        self.wires = []

    def wire(self, *, vnet=False):
        """Open the host's end."""
        self.wires.append(Wire(self.netns, "tap0", vnet=vnet))
        return self.wires[-1]

    def session(self, *, pairs=1, **options):
        """Connect as a guest does, with two rings a pair."""
        return open_session(self.backend.socket, queues=2 * pairs, size=options.pop("size", 256), **options)

    def connect(self):
        """Connect without starting anything."""
        return Frontend.connect(self.backend.socket)


@pytest.fixture
def card(tmp_path):
    """Start a daemon with options; it must live to the end, and take its tap with it."""
    with contextlib.ExitStack() as stack:
        netns = Netns()
        stack.callback(netns.close)
        started = []

        def starter(**options):
            path = f"/proc/{os.getpid()}/fd/{netns.fd}"
            running = Running(start_card(tmp_path / "net.sock", netns=path, **options), netns)
            started.append(running)
            with running.connect():  # it listens: the tap is there
                pass
            return running

        yield starter
        for running in started:
            for each in running.wires:
                each.close()
            alive = running.backend.alive
            log = running.backend.log.read_text()
            code = running.backend.stop()
            assert alive, log
            assert code == 0, log
        assert "tap0" not in netns.ip("link", "show")
