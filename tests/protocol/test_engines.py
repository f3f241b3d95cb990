"""Both engines, through the page cache and past it, hold the same disk (DESIGN 4; HOSTILE B20-B22 under O_DIRECT)."""

import json
import random
import subprocess
import sys
import time

import pytest

from tests.support.backends import start_vhostd
from vhostd.driver.session import open_session
from vhostd.spec.blk import Request, StatusByte

ENGINES = {
    "mapped": ("--aio", "mapped"),
    "mapped durable": ("--aio", "mapped", "--no-write-cache"),
    "io_uring": ("--aio", "io_uring"),
    "sync": ("--aio", "sync"),
    "io_uring direct": ("--aio", "io_uring", "--direct"),
    "sync direct": ("--aio", "sync", "--direct"),
    "io_uring durable": ("--aio", "io_uring", "--no-write-cache"),
    "sync durable": ("--aio", "sync", "--no-write-cache"),
    "no polling": ("--poll-us", "0"),
    "two workers": ("--workers", "2", "--queues", "4"),
}


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def engine(request, image, tmp_path):
    """A vhostd with one of the engines."""
    backend = start_vhostd(image, tmp_path / "engine.sock", options=request.param)
    yield backend
    alive = backend.alive
    assert backend.stop() == 0, backend.log.read_text()
    assert alive


def pieces(rng, length):
    """A framing: mostly whole, sometimes odd pieces that no disk can take as they lie."""
    style = rng.randrange(4)
    if style == 0:
        return ()
    if style == 1:
        return (16, 512) if length > 528 else (16,)
    if style == 2:
        return (7, 9, *[100] * min(5, (length - 16) // 100))
    return (16, *[1] * 20)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_history_leaves_the_disk_a_model_has(engine, seed, image_bytes):
    """Property: writes, zeroes and reads of any size and framing against a bytearray; then the file itself."""
    rng = random.Random(seed)
    span = 1 << 20
    model = bytearray(image_bytes[:span])
    with open_session(engine.socket) as session:
        driver = session.block()
        for _ in range(150):
            sectors = rng.choice((1, 2, 7, 8, 9, 64, 200))
            at = rng.randrange(span // 512 - sectors)
            low, high = at * 512, (at + sectors) * 512
            what = rng.random()
            if what < 0.45:
                data = rng.randbytes(high - low)
                done = driver.complete(driver.submit(Request.OUT, at, data, readable=pieces(rng, 16 + len(data))))
                model[low:high] = data
            elif what < 0.6:
                done = driver.write_zeroes((at, sectors), flags=rng.randrange(2))
                model[low:high] = bytes(high - low)
            elif what < 0.65:
                done = driver.request(Request.FLUSH)
            else:
                odd = () if rng.random() < 0.5 else (1, 2, 3) if sectors < 2 else (300, 5, 411)
                done = driver.complete(driver.submit(Request.IN, at, read_len=high - low, writable=odd))
                assert done.data == model[low:high]
            assert done.status == StatusByte.OK
    assert engine.image.read_bytes()[:span] == model


def test_the_engine_is_the_one_that_was_asked_for(image, tmp_path):
    """`--aio`: what query-devices says is what runs."""
    control = tmp_path / "aio.control"
    for aio in ("io_uring", "sync"):
        backend = start_vhostd(image, tmp_path / "aio.sock", options=("--aio", aio))
        try:
            with open_session(backend.socket) as session:  # it answers when everything else is there
                session.block().read(0, 512)
                wait_for(control)
                words = [sys.executable, "-m", "vhostd.cli.main", "status", "--json", "--control", str(control)]
                asked = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
            assert json.loads(asked.stdout)[0]["engine"] == aio
        finally:
            backend.stop()


def wait_for(path):
    """The operators' door opens last."""
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} has not come")


def test_many_requests_wait_in_the_ring(engine, image_bytes):
    """HOSTILE B53: more in flight than a ring has requests for: the rest waits, nothing is lost."""
    with open_session(engine.socket, size=1024) as session:
        driver = session.block()
        flying = [driver.submit(Request.IN, n % 2000, read_len=512, kick=False) for n in range(600)]
        driver.queue.kick()
        for n, pending in enumerate(flying):
            assert driver.complete(pending).data == image_bytes[(n % 2000) * 512 :][:512]
