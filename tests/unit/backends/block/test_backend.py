"""virtio-blk: what is offered, the configuration space, and how durable a write is (virtio 5.2; ILLUMOS C.2, R2.17)."""

import errno
import os
import struct

import pytest

from vhostd.backends.block.backend import BlockBackend
from vhostd.backends.block.options import BlockOptions
from vhostd.errors import BackendError, ConfigError, RemoteProtocolError
from vhostd.spec import blk, virtio
from vhostd.spec.blk import ConfigOffset, Feature


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return str(path)


@pytest.fixture
def open_backend(image):
    opened = []

    def open_(**options):
        backend = BlockBackend.open(BlockOptions(image=image, **options))
        opened.append(backend)
        return backend

    yield open_
    for backend in opened:
        backend.close()


def field(backend, offset, code):
    return struct.unpack_from("<" + code, backend.config_space, offset)[0]


def test_the_offer_bit_by_bit(open_backend):
    """5.2.3: nothing is offered that is not implemented."""
    assert open_backend().features == (
        Feature.SEG_MAX | Feature.BLK_SIZE | Feature.TOPOLOGY | Feature.FLUSH | Feature.MQ | Feature.CONFIG_WCE
        | Feature.DISCARD | Feature.WRITE_ZEROES
        | virtio.Feature.VERSION_1 | virtio.Feature.INDIRECT_DESC | virtio.Feature.EVENT_IDX | virtio.Feature.ANY_LAYOUT
    )  # fmt: skip


def test_a_read_only_disk_offers_nothing_that_writes(open_backend):
    """5.2.5.1."""
    features = open_backend(read_only=True).features
    assert features & Feature.RO
    assert not features & (Feature.CONFIG_WCE | Feature.DISCARD | Feature.WRITE_ZEROES)


@pytest.mark.parametrize(("option", "feature"), [("discard", Feature.DISCARD), ("write_zeroes", Feature.WRITE_ZEROES)])
def test_the_operator_may_withhold(open_backend, option, feature):
    assert not open_backend(**{option: False}).features & feature


def test_one_queue_is_no_multi_queue(open_backend):
    """5.2.3: MQ means more than one."""
    backend = open_backend(queues=1)
    assert not backend.features & Feature.MQ
    assert backend.rings == backend.queue_num == 1


def test_as_many_queues_as_can_be(open_backend):
    """FEATURES quirk 11: QEMU asks for one per vCPU and fails when there are fewer."""
    assert open_backend().queue_num == 256


def test_the_configuration_space(open_backend):
    """5.2.4."""
    backend = open_backend(queues=4, seg_max=64, block_size=1024)
    assert len(backend.config_space) == blk.CONFIG_LEN
    assert field(backend, ConfigOffset.CAPACITY, "Q") == 2048
    assert field(backend, ConfigOffset.SIZE_MAX, "I") == 0
    assert field(backend, ConfigOffset.SEG_MAX, "I") == 64
    assert field(backend, ConfigOffset.BLK_SIZE, "I") == 1024
    assert field(backend, ConfigOffset.TOPOLOGY, "B") == 2
    assert field(backend, ConfigOffset.WRITEBACK, "B") == 1
    assert field(backend, ConfigOffset.NUM_QUEUES, "H") == 4
    assert field(backend, ConfigOffset.MAX_DISCARD_SECTORS, "I") == 1 << 22
    assert field(backend, ConfigOffset.MAX_DISCARD_SEG, "I") == 32
    assert field(backend, ConfigOffset.DISCARD_SECTOR_ALIGNMENT, "I") == 8
    assert field(backend, ConfigOffset.MAX_WRITE_ZEROES_SECTORS, "I") == 1 << 22
    assert field(backend, ConfigOffset.MAX_WRITE_ZEROES_SEG, "I") == 32
    assert field(backend, ConfigOffset.WRITE_ZEROES_MAY_UNMAP, "B") == 1


@pytest.mark.parametrize(
    ("acked", "cache", "through"),
    [
        (0, True, True),
        (Feature.FLUSH, True, False),
        (Feature.CONFIG_WCE, True, False),
        (Feature.FLUSH | Feature.CONFIG_WCE, True, False),
        (Feature.FLUSH, False, True),
        (Feature.FLUSH | Feature.CONFIG_WCE, False, True),
        (0, False, True),
    ],
)
def test_who_cannot_flush_gets_durable_writes(open_backend, acked, cache, through):
    """FEATURES 3.4: FLUSH and CONFIG_WCE not acknowledged: the device must be write-through."""
    backend = open_backend(write_cache=cache)
    assert backend.disk.write_through
    backend.set_features(int(acked))
    assert backend.disk.write_through is through


def test_the_driver_turns_the_cache_off_and_on(open_backend):
    """5.2.5.2: writeback is the driver's to write, and holds from then on."""
    backend = open_backend()
    backend.set_features(int(Feature.FLUSH | Feature.CONFIG_WCE))
    backend.write_config(ConfigOffset.WRITEBACK, b"\0")
    assert backend.disk.write_through
    assert field(backend, ConfigOffset.WRITEBACK, "B") == 0
    backend.write_config(ConfigOffset.WRITEBACK, b"\1")
    assert not backend.disk.write_through


def test_quirk_15_the_setting_outlives_a_reset(open_backend):
    """FEATURES quirk 15: no front-end tells it again."""
    backend = open_backend()
    backend.set_features(int(Feature.FLUSH | Feature.CONFIG_WCE))
    backend.write_config(ConfigOffset.WRITEBACK, b"\0")
    backend.on_session_end()
    assert backend.disk.write_through
    backend.set_features(int(Feature.FLUSH | Feature.CONFIG_WCE))
    assert backend.disk.write_through


@pytest.mark.parametrize(
    ("offset", "payload"),
    [
        pytest.param(0, b"\0" * 8, id="S115-capacity"),
        pytest.param(ConfigOffset.WRITEBACK, b"\0\0", id="S115-two-bytes"),
        pytest.param(ConfigOffset.WRITEBACK - 1, b"\0", id="S115-before"),
        pytest.param(ConfigOffset.WRITEBACK + 1, b"\0", id="S115-after"),
        pytest.param(ConfigOffset.WRITEBACK, b"\2", id="S115-value"),
        pytest.param(ConfigOffset.WRITEBACK, b"", id="S115-nothing"),
    ],
)
def test_nothing_else_is_the_drivers_to_write(open_backend, offset, payload):
    """HOSTILE S110-S116: only the writeback byte."""
    backend = open_backend()
    backend.set_features(int(Feature.FLUSH | Feature.CONFIG_WCE))
    before = backend.config_space
    with pytest.raises(RemoteProtocolError, match=r"virtio 5\.2\.4"):
        backend.write_config(offset, payload)
    assert backend.config_space == before


def test_writeback_needs_its_feature(open_backend):
    """5.2.5.2."""
    backend = open_backend()
    with pytest.raises(RemoteProtocolError, match="CONFIG_WCE"):
        backend.write_config(ConfigOffset.WRITEBACK, b"\0")


@pytest.mark.parametrize("serial", ["a", "x" * 19, "x" * 20, "A-b_9"])
def test_a_serial_is_taken_as_it_is(open_backend, serial):
    """ILLUMOS C.2."""
    assert open_backend(serial=serial).serial == serial


@pytest.mark.parametrize("serial", ["x" * 21, "with space", "caf\u00e9", "a/b"])
def test_a_serial_that_a_guest_would_cut_is_refused(open_backend, serial):
    """ILLUMOS C.2.5."""
    with pytest.raises(ConfigError, match="serial"):
        open_backend(serial=serial)


def test_f11_a_flush_that_fails_is_remembered(open_backend, monkeypatch):
    """HOSTILE F11: the kernel reports a failed write-back once; whoever heard it must not let a later flush say OK."""
    backend = open_backend()
    backend.set_features(int(Feature.FLUSH | Feature.CONFIG_WCE))

    def fails(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(BackendError, match="cannot be flushed"):
        backend.write_config(ConfigOffset.WRITEBACK, b"\0")
    assert backend.disk.flush_failed
    assert backend.write_cache  # refused: nothing has changed
    assert not backend.disk.write_through
