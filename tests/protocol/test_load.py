"""Long runs at full depth: the compiled loop checks each id, status and length as it goes."""

import time

import pytest

from vhostd.driver.frontend import DEVICE_BITS, RING_FEATURES
from vhostd.driver.load import Job, disk_len, run_job
from vhostd.driver.session import open_session
from vhostd.errors import LocalProtocolError
from vhostd.spec.virtio import Feature


@pytest.mark.parametrize("poll", [False, True], ids=["event", "poll"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_mixed_load_loses_nothing(disk, poll, indirect, event_idx):
    """2.7: every chain comes back once, with its length; no wake-up is lost in either direction."""
    features = DEVICE_BITS | RING_FEATURES
    with disk.session(indirect=indirect, features=features if event_idx else features & ~Feature.EVENT_IDX) as session:
        for depth in (1, 2, 7, 32):
            done = run_job(session, Job("mixed", depth=depth, write_percent=50, poll=poll), 0.1, seed=depth)
            assert done.ios >= depth  # a busy machine may grant no more than one round
            assert done.percentile(50) <= done.percentile(99)
        assert session.stop() == [session.queues[0].next_avail]


def test_the_index_wraps_under_load(disk):
    """2.7.6: free running modulo 2**16, with a full ring."""
    with disk.session(size=64, base=65500) as session:
        for _ in range(3):
            assert run_job(session, Job("wrap", block_len=512, depth=64), 0.1).ios >= 64


def test_queues_under_load_at_once(start):
    """5.2.2: queues do not stand in each other's way."""
    disk = start(queues=3)
    with disk.session(queues=3) as session:
        done = run_job(session, Job("queues", depth=16, write_percent=30, queues=3), 0.3)
        assert done.ios >= 48
        assert len(session.stop()) == 3


def test_sequential_writes_reach_the_image(disk):
    """A pass over the whole disk leaves nothing as it was."""
    before = disk.digest()
    with disk.session() as session:
        assert disk_len(session) == 16 << 20
        run_job(session, Job("fill", 131072, 8, write_percent=100, sequential=True), 0.3)
        session.block().flush()
    assert disk.digest() != before


def test_more_requests_than_the_ring_holds_are_refused(disk):
    with disk.session(size=16) as session, pytest.raises(LocalProtocolError, match="do not fit"):
        run_job(session, Job("deep", depth=17), 0.1)


def test_an_idle_device_costs_nothing(disk):
    """DESIGN 10: no wake-ups and no CPU when nothing is asked."""
    with open_session(disk.socket) as session:
        session.block().read(0, 512)
        time.sleep(0.3)
        before = disk.backend.cpu_ns()
        time.sleep(0.5)
        assert disk.backend.cpu_ns() - before < 2_000_000
