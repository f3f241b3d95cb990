"""One ring cannot keep a worker from the others (workers' theory statement: FAIRNESS)."""

import threading

import pytest

from tests.support.backends import start_vhostd
from vhostd.driver.hotloop import block_load
from vhostd.driver.session import open_session


@pytest.mark.parametrize("aio", ["sync", "io_uring"])
def test_a_ring_that_never_runs_dry_leaves_others_their_turn(image, tmp_path, aio):
    """HOSTILE R51: a driver that always has more for us is served in bounded turns; another ring's kick is heard."""
    backend = start_vhostd(image, tmp_path / "fair.sock", queues=2, options=("--workers", "1", "--aio", aio))
    try:
        with open_session(backend.socket, queues=2, size=256, memory_len=64 << 20) as session:
            busy = threading.Event()

            def hammer():
                busy.set()
                block_load(
                    session.queues[0], depth=256, block_len=512, disk_len=1 << 20, poll=True, duration_ns=1_500_000_000
                )
                busy.clear()

            load = threading.Thread(target=hammer)
            load.start()
            busy.wait()
            other, answered = session.block(1), 0
            while busy.is_set() and answered < 100:
                other.read(8, 512)
                answered += 1
            during = busy.is_set()
            load.join()
            assert during, f"only {answered} reads while the other ring was busy"
    finally:
        assert backend.stop() == 0
