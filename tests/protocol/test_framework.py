"""The framework's drivers on real back-ends: disks of every kind of ring, and a card behind a tap."""

import contextlib
import os

import pytest

from tests.protocol.conftest import vhostd_only
from tests.support.net import GUEST, HOST, frame
from vhostd.driver.framework.device import Notify
from vhostd.driver.framework.vioblk import IoError, VioBlk
from vhostd.driver.framework.vioif import VioIf
from vhostd.errors import LocalProtocolError
from vhostd.spec.blk import Feature

KINDS = {
    "modern": {},
    "direct": {"indirect": False},
    "legacy": {"legacy": True},
    "polled": {"notify": Notify.POLL},
    "shared": {"notify": Notify.SHARED},
}


@pytest.mark.parametrize("kind", ["modern", "direct", "shared"])
def test_a_disk_is_driven(disk, image_bytes, kind):
    """ILLUMOS C.1 (a): the same script over every kind of ring, and the bytes are the image's."""
    script(disk, image_bytes, kind)


@vhostd_only("qsd refuses legacy drivers, and serves one request of a ring without a call descriptor")
@pytest.mark.parametrize("kind", ["legacy", "polled"])
def test_a_disk_is_driven_by_others(disk, image_bytes, kind):
    """ILLUMOS D5, D6: a driver before 1.0, and one that polls."""
    script(disk, image_bytes, kind)


def script(disk, image_bytes, kind):
    with VioBlk.attach(str(disk.socket), **KINDS[kind]) as driver:
        assert driver.capacity * 512 == disk.image.stat().st_size
        assert driver.read(0, len(image_bytes)) == image_bytes
        data = os.urandom(300_032)
        driver.write(2048, data)
        driver.flush()
        assert driver.read(2048, len(data)) == data
        assert disk.on_disk(2048 * 512, len(data)) == data
        driver.write_zeroes([(2048, 8)])
        if driver.device.has(Feature.DISCARD):
            driver.discard([(2056, 8)])
        assert driver.read(2048, 4096) == bytes(4096)
        assert driver.get_id().text
        chains = [driver.start_read(n * 8, 4096) for n in range(driver.requests // 2)]
        driver.go()
        assert b"".join(driver.finish(chain) for chain in chains) == image_bytes[: 4096 * len(chains)]
        driver.device.reset()
        driver.device.start()
        assert driver.read(0, 512) == image_bytes[:512]
        assert set(driver.device.counters) <= {"odd_lengths"}


def test_a_read_only_disk_is_asked_to_write_all_the_same(start):
    """ILLUMOS R2.16, D7: refused here, and, where it is sent anyway, by the device."""
    disk = start(read_only=True)
    before = disk.digest()
    with VioBlk.attach(str(disk.socket)) as driver:
        assert driver.read_only
        with pytest.raises(LocalProtocolError):
            driver.write(0, bytes(512))
        with pytest.raises(IoError):
            driver.write(0, bytes(512), force=True)
    assert disk.digest() == before


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_is_driven(card, kind):
    """Frames both ways, short and long, lent and copied; stopped and everything is back."""
    running = card()
    host = running.wire()
    with contextlib.closing(VioIf.attach(str(running.backend.socket), rx_len=4096, **KINDS[kind])) as driver:
        for length in (60, 299, 300, 1514):
            data = frame(os.urandom(8), length=length)
            host.send(data)
            got = driver.receive()
            assert bytes(got.data) == data
            got.release()
            data = frame(os.urandom(8), to=HOST, source=GUEST, length=length)
            assert driver.send(data)
            assert host.receive() == data
        driver.stop()
        assert (driver.rx.free, driver.tx.free) == (driver.rx.count, driver.tx.count)
