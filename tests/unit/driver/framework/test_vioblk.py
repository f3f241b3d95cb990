"""The block driver against devices that are right, wrong and late."""

import itertools
import struct

import pytest

from tests.support.puppet import Puppet
from vhostd.driver.framework.vioblk import WANTED, BlockError, IoError, NoStatusError, UnsupportedError, VioBlk
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec.blk import Feature, Request
from vhostd.spec.virtio import Feature as Ring

ALL = WANTED & ~Feature.RO | Ring.VERSION_1 | Ring.INDIRECT_DESC | Ring.EVENT_IDX | Ring.RING_PACKED
SECTORS = 4096


def space(*, capacity=SECTORS, size_max=0, seg_max=126, blk_size=512, writeback=1):
    data = struct.pack("<QIIHBBIBBHI", capacity, size_max, seg_max, 0, 0, 0, blk_size, 0, 0, 1, 0)
    return (data.ljust(32, b"\0") + bytes([writeback])).ljust(60, b"\0")


class Disk:
    """The device's side: a bytearray, and what it answers."""

    def __init__(self, arena=None):
        self.data = bytearray(SECTORS * 512)
        self.arena = arena
        self.requests = []
        self.status = 0
        self.used = None
        self.serial = b"DISK-1"

    def __call__(self, index, readable, writable):
        out = b"".join(self.arena.read(gpa, length) for gpa, length in readable)
        kind, _, sector = struct.unpack("<IIQ", out[:16])
        room = sum(length for _, length in writable) - 1
        self.requests.append((kind, sector, len(out) - 16, room, len(readable) + len(writable)))
        if self.status is None:
            return 0
        answer = b""
        if kind == Request.IN:
            answer = bytes(self.data[sector * 512 :][:room])
        elif kind == Request.OUT:
            self.data[sector * 512 :][: len(out) - 16] = b""
            self.data[sector * 512 : sector * 512 + len(out) - 16] = out[16:]
        elif kind == Request.GET_ID and self.serial is not None:
            answer = self.serial.ljust(20, b"\0")
        stream = answer.ljust(room, b"\xff") + bytes([self.status])
        for gpa, length in writable:
            self.arena.write(gpa, stream[:length])
            stream = stream[length:]
        return room + 1 if self.used is None else self.used


@pytest.fixture
def attached(puppet):
    """Attach a driver to a puppet with a Disk behind it."""
    made = []

    def attach(*, features=ALL, config=None, behave=None, **options):
        device = puppet(features=features, config=space() if config is None else config)
        disk = Disk()
        # The device has to know where memory is before it plays: it does once the driver has attached.
        original = Puppet.play
        driver = None

        def begin(self):
            disk.arena = self.arena
            original(device, self, behave or disk)

        from vhostd.driver.framework.device import Device

        start = Device.start

        def started(self):
            if disk.arena is None:
                begin(self)
            start(self)

        patch = pytest.MonkeyPatch()
        patch.setattr(Device, "start", started)
        try:
            driver = VioBlk.attach(str(device.path), **{"timeout": 2.0, **options})
        finally:
            patch.undo()
        made.append(driver)
        return driver, disk

    yield attach
    for driver in made:
        driver.close()


KINDS = {
    "modern": {},
    "direct": {"indirect": False},
    "legacy": {"legacy": True},
    "packed": {"packed": True},
    "packed direct": {"packed": True, "indirect": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_reads_and_writes(attached, kind):
    """ILLUMOS D5-F, C.1 (a): the same requests over every ring; long ones are cut, every byte arrives."""
    driver, disk = attached(**KINDS[kind])
    data = bytes(range(256)) * 2 * 600
    driver.write(100, data)
    assert driver.read(100, len(data)) == data
    assert disk.data[100 * 512 :][: len(data)] == data
    assert max(out for _, _, out, _, _ in disk.requests) <= driver.transfer_max
    assert driver.counters.total() == 0


@pytest.mark.parametrize(
    ("seg_max", "size_max", "segments"),
    [(126, 4096, 126), (1, 4096, 1), (0, 4096, 1), (0xFFFFFFFF, 4096, 1), (8, 0, 8), (8, 0xFFFFFFFF, 8), (2, 512, 2)],
)
def test_segments_as_the_device_asks(attached, seg_max, size_max, segments):
    """ILLUMOS R2.14-F, R2.17-F, D9-F: SEG_MAX counts data; 0 and all-ones are 1; SIZE_MAX bounds each."""
    driver, disk = attached(config=space(seg_max=seg_max, size_max=size_max))
    assert driver.seg_max == segments
    driver.read(0, 64 * 512)
    assert max(count for *_, count in disk.requests) <= segments + 2
    assert max(room for _, _, _, room, _ in disk.requests) <= segments * driver.size_max


@pytest.mark.parametrize(
    ("sector", "length"),
    [(SECTORS, 512), (SECTORS - 1, 1024), (2**55, 512), (2**54, 512), (2**64 - 1, 512), (-1, 512), (0, 511), (0, 1)],
)
def test_ranges_are_checked_before_anything_is_sent(attached, sector, length):
    """ILLUMOS R2.11-F: by subtraction; counted."""
    driver, disk = attached()
    with pytest.raises(LocalProtocolError):
        driver.read(sector, length)
    with pytest.raises(LocalProtocolError):
        driver.write(sector, bytes(length))
    assert disk.requests == []
    assert driver.counters["bad_ranges"] == 2


@pytest.mark.parametrize(
    ("status", "kind", "counter"),
    [(1, IoError, "io_errors"), (2, UnsupportedError, "unsupported"), (3, BlockError, "unknown_status"),
     (0xFE, BlockError, "unknown_status"), (0xFF, NoStatusError, "no_status"), (None, NoStatusError, "no_status")],
)  # fmt: skip
def test_each_status_is_an_error_of_its_own(attached, status, kind, counter):
    """ILLUMOS R2.12-F: 1, 2, another, none: told apart and counted apart; the disk goes on."""
    driver, disk = attached()
    disk.status = status
    with pytest.raises(kind) as error:
        driver.read(0, 512)
    assert type(error.value) is kind
    assert driver.counters[counter] == 1
    disk.status = 0
    assert driver.read(0, 512) == bytes(512)


def test_a_used_length_is_not_relied_upon(attached):
    """ILLUMOS R2.25-F: a block driver ignores it, and counts what is odd."""
    driver, disk = attached()
    disk.data[:512] = b"d" * 512
    disk.used = 1
    assert driver.read(0, 512) == b"d" * 512
    assert driver.counters["odd_lengths"] == 1


def test_read_only(attached):
    """ILLUMOS R2.16-F, D7-F: refused here, unless it is to be sent anyway."""
    driver, disk = attached(features=ALL | Feature.RO)
    assert driver.read_only
    for refused in (
        lambda: driver.write(0, bytes(512)),
        lambda: driver.discard([(0, 8)]),
        lambda: driver.write_zeroes([(0, 8)]),
    ):
        with pytest.raises(LocalProtocolError, match="read-only"):
            refused()
    assert disk.requests == []
    disk.status = 1
    with pytest.raises(IoError):
        driver.write(0, bytes(512), force=True)


def test_discards_and_zeroes(attached):
    """ILLUMOS D12-F: segments of 16 bytes; only where agreed upon."""
    driver, disk = attached()
    driver.discard([(0, 8), (16, 8)])
    driver.write_zeroes([(0, 8)], unmap=True)
    driver.flush()
    assert [(kind, out) for kind, _, out, _, _ in disk.requests] == [(11, 32), (13, 16), (4, 0)]
    with pytest.raises(LocalProtocolError):
        driver.discard([(SECTORS, 1)])
    other, _ = attached(features=ALL & ~(Feature.DISCARD | Feature.FLUSH))
    with pytest.raises(LocalProtocolError, match="DISCARD"):
        other.discard([(0, 8)])
    other.flush()


@pytest.mark.parametrize(
    ("serial", "status", "text"),
    [(b"DISK-1", 0, "DISK-1"), (b"A" * 20, 0, "A" * 20), (b"ab cd", 0, "ab"), (b"", 0, None), (b"\0" * 20, 0, None),
     (None, 0, None), (b" x", 0, None), (b"DISK-1", 1, None), (b"DISK-1", 2, None), (b"DISK-1", None, None)],
)  # fmt: skip
def test_illumos_10012_an_identity_is_checked(attached, serial, status, text):
    """ILLUMOS C.2-F: OK and nothing written, zeroes, an error, poison: no identity."""
    driver, disk = attached()
    disk.serial, disk.status = serial, status
    found = driver.get_id()
    assert found.text == text
    assert len(found.raw) == 20


def test_an_identity_that_never_comes(attached):
    """ILLUMOS C.2-F, D4-F: not waited for for ever; the disk works afterwards."""
    silent = [True]
    disk = Disk()

    def behave(index, readable, writable):
        return None if silent[0] else disk(index, readable, writable)

    driver, helper = attached(behave=behave, timeout=0.2)
    disk.arena = helper.arena
    with pytest.raises(DeviceTimeout):
        driver.get_id()
    assert driver.counters["timeouts"] == 1
    silent[0] = False
    assert driver.get_id().text == "DISK-1"
    assert driver.queue.free == driver.requests


def test_a_ring_that_breaks_is_reset_and_used_again(attached):
    """ILLUMOS R3.4-F, D4-F: a foreign id, one twice: the requests fail, the memory comes home, the disk goes on."""
    wrong = [True]
    disk = Disk()

    def behave(index, readable, writable):
        if wrong[0]:
            return [(77, 0)]
        return disk(index, readable, writable)

    driver, helper = attached(behave=behave)
    disk.arena = helper.arena
    with pytest.raises(DeviceError, match="no chain in flight"):
        driver.read(0, 512)
    wrong[0] = False
    assert driver.read(0, 512) == bytes(512)
    assert driver.counters["broken_rings"] == 1


def test_the_write_cache_is_set_and_read_back(puppet, attached):
    """ILLUMOS D1-F."""
    driver, _ = attached()
    assert driver.write_cache is True
    with pytest.raises(DeviceError, match="reads back"):
        driver.write_cache = False
    other, _ = attached(features=ALL & ~Feature.CONFIG_WCE)
    assert other.write_cache is None
    with pytest.raises(LocalProtocolError):
        other.write_cache = True


def test_an_absent_capacity_is_no_disk(puppet):
    """ILLUMOS R2.17-F, E.1: all ones."""
    made = puppet(features=ALL, config=b"\xff" * 60)
    with pytest.raises(DeviceError, match="all ones"):
        VioBlk.attach(str(made.path))


def test_never_more_is_allocated_than_at_attach(attached):
    """ILLUMOS R2.23-F: shared memory is flat, whatever goes on."""
    driver, _ = attached()
    before = driver.device.arena.allocated
    chains = []
    with pytest.raises(LocalProtocolError, match="are out"):
        chains.extend(driver.start_read(n, 512) for n in itertools.count())
    driver.go()
    for chain in chains:
        driver.finish(chain)
    assert driver.device.arena.allocated == before
    assert driver.read(0, 512) == bytes(512)
