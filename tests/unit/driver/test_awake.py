"""Processors kept from sleeping while something is measured (docs/bench.md, "Comparing")."""

import os
import struct

import pytest

from vhostd.cli.main import main
from vhostd.driver.load.awake import DEVICE, awake
from vhostd.driver.load.errors import BenchError


def held(device):
    """The descriptors of ours that are this device."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.exists(link) and os.path.samefile(link, device)]


def test_a_latency_of_none_is_asked_for_as_long_as_the_block_runs(tmp_path):
    """The kernel keeps to it while the device is open; a 32-bit number, not text."""
    device = tmp_path / "cpu_dma_latency"
    device.write_bytes(b"")
    with awake(device):
        assert struct.unpack("<i", device.read_bytes()) == (0,)
        assert len(held(device)) == 1
    assert not held(device)


def test_it_is_let_go_when_the_block_fails(tmp_path):
    device = tmp_path / "cpu_dma_latency"
    device.write_bytes(b"")
    with pytest.raises(KeyError), awake(device):
        raise KeyError
    assert not held(device)


def test_where_there_is_none_it_says_so(tmp_path):
    with pytest.raises(BenchError, match=r"--awake: .*cpu_dma_latency: No such file or directory; it is root's"), awake(
        tmp_path / "cpu_dma_latency"
    ):  # fmt: skip
        pass


@pytest.mark.root
def test_the_kernel_takes_it_and_forgets_it():
    """Read back, the device tells the least latency that anybody asks for. A container may have none: refused, then."""

    def asked():
        fd = os.open(DEVICE, os.O_RDONLY)
        try:
            return struct.unpack("<i", os.read(fd, 4))[0]
        finally:
            os.close(fd)

    if not os.access(DEVICE, os.W_OK):
        with pytest.raises(BenchError, match="--awake"), awake():
            pass
        return
    before = asked()
    with awake():
        assert asked() == 0
    assert asked() == before


def test_bench_refuses_it_before_anything_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(awake.__wrapped__, "__defaults__", (tmp_path / "absent",))
    assert main(["bench", str(tmp_path / "no.sock"), "--awake"]) != 0
    assert "--awake" in capsys.readouterr().err
