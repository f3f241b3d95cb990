"""A device's life seen from its socket: status, reset, write cache, a second front-end, connecting out."""

import socket

import pytest

from tests.protocol.conftest import vhostd_only
from tests.protocol.test_rings import check
from tests.support.backends import STARTERS
from vhostd.driver.arena import Arena
from vhostd.driver.blk import BlockDriver
from vhostd.driver.frontend import Frontend, listening
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceGone, DeviceTimeout, Refused
from vhostd.spec import blk
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import ProtocolFeature
from vhostd.spec.virtio import Status


@vhostd_only("qsd has no STATUS")
def test_status_is_what_was_set(disk):
    """vhost-user, "SET_STATUS", "GET_STATUS": the driver's bits, kept until 0 resets."""
    with disk.session() as session:
        assert session.frontend.protocol_features & ProtocolFeature.STATUS
        running = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
        assert session.frontend.status() == running
        session.block().read(0, 512)
        session.stop()
        session.frontend.set_status(0)
        assert session.frontend.status() == 0


@vhostd_only("qsd has no STATUS")
def test_status_0_ends_all_access_and_a_start_begins_anew(disk, image_bytes):
    """Virtio 2.1: a reset; the rings are gone, the memory map is the front-end's to keep."""
    with disk.session() as session:
        for _ in range(3):
            check(session.block(), image_bytes)
            session.frontend.set_status(0)
            assert session.frontend.status() == 0
            session.queues[0].reset()
            session.start()
        check(session.block(), image_bytes)


@vhostd_only("qsd has no RESET_DEVICE")
def test_reset_device_keeps_the_memory_map(disk, image_bytes):
    """vhost-user, "RESET_DEVICE": rings are disabled and stopped, the device is as after power-on."""
    with disk.session() as session:
        for _ in range(3):
            check(session.block(), image_bytes)
            session.frontend.reset_device()
            driver = session.block()
            driver.submit(Request.IN, 0, read_len=512)
            session.queues[0].kick(force=True)
            with pytest.raises(DeviceTimeout):
                driver.collect(0.05)
            session.queues[0].reset()
            session.start()
        check(session.block(), image_bytes)


@vhostd_only("qsd tells wce 0 while it caches writes")
def test_the_write_cache_is_told_truly_and_can_be_turned_off(disk):
    """5.2.4, 5.2.5.2: writeback 1 means a volatile cache; the driver may write the byte. It survives a reset."""
    with disk.session() as session:
        front = session.frontend
        assert front.offered & blk.Feature.CONFIG_WCE
        assert front.config(blk.ConfigOffset.WRITEBACK, 1) == b"\x01"
        for value in (b"\x00", b"\x01", b"\x00"):
            front.set_config(blk.ConfigOffset.WRITEBACK, value)
            assert front.config(blk.ConfigOffset.WRITEBACK, 1) == value
            session.block().write(0, b"w" * 512)
        front.set_config(blk.ConfigOffset.WRITEBACK, b"\x01")


@vhostd_only("qsd drops the connection")
@pytest.mark.parametrize(("offset", "data"), [(0, b"\1" * 8), (33, b"\1"), (32, b"\1\1"), (96, b"\1")])
def test_the_rest_of_the_configuration_is_not_writable(disk, offset, data):
    """vhost-user, SET_CONFIG: flags 0 writes what the driver may write, and that is one byte (5.2.4)."""
    with disk.session() as session:
        before = session.frontend.config()
        with pytest.raises(Refused):
            session.frontend.set_config(offset, data)
        assert session.frontend.config() == before
        session.block().read(0, 512)


def test_a_second_front_end_does_not_disturb_the_first(disk, image_bytes):
    """DESIGN 3: one front-end at a time."""
    with disk.session(timeout=2) as session:
        check(session.block(), image_bytes)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(0.3)
            connection.connect(str(disk.socket))
            with Frontend(connection, timeout=0.3) as second, pytest.raises((DeviceGone, DeviceTimeout)):
                second.negotiate()
        check(session.block(), image_bytes)


@vhostd_only("qsd only listens")
def test_a_back_end_that_connects_and_connects_again(image, image_bytes, tmp_path, maker):
    """vhost-user, "Communication": either end may be the one that listens."""
    path = tmp_path / "front.sock"
    with listening(path) as listener:
        backend = STARTERS[maker](image, tmp_path / "unused.sock", connect=path)
        try:
            for _ in range(2):
                with Arena.of(4 << 20) as arena, Frontend.accept(listener, timeout=10) as frontend:
                    frontend.negotiate()
                    with Virtqueue(arena, 64, event_idx=True, indirect=True) as queue:
                        frontend.start(arena, [queue])
                        check(BlockDriver(queue), image_bytes)
                        frontend.stop()
            assert backend.alive
        finally:
            backend.stop()


@vhostd_only("qsd keeps a request of a stopped ring in flight")
def test_everything_that_was_taken_is_answered_before_the_base(disk):
    """GET_VRING_BASE under load: no request is lost, none is done twice."""
    with disk.session(size=256) as session:
        driver, queue = session.block(), session.queues[0]
        flying, back = [], []
        for _ in range(10):
            while queue.free:
                flying.append(driver.submit(Request.OUT, 3000 + len(flying) % 64, b"s" * 4096, kick=False))
            queue.kick()
            session.stop()
            back += driver.collect(0.1) if queue.used_idx != queue.last_used else []
            session.start()
        while queue.in_flight:
            back += driver.collect()
        assert len(back) == len(flying)
        assert all(pending.completion.ok for pending in back)
        with pytest.raises(DeviceError):
            driver.collect(0.02)
