"""`vhostd net` and vhost-user-net on a real tap, in a network namespace of the test's own."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.ops.conftest import SECONDS, Start, command, query

pytestmark = pytest.mark.root  # a network namespace of its own

# What follows runs in a new network namespace, and its taps go with it.
INSIDE = ["unshare", "--net"]


def test_a_card_is_served_asked_and_its_tap_goes_with_it(start: Start, tmp_path: Path) -> None:
    words = ["net", "tap0", "--create", "--queues", 2, "--mac", "52:54:00:12:34:56", "--mtu", 9000]
    daemon = start("unshare", "--net", command("vhostd"), *words)
    (device,) = query(tmp_path / "tap0.control")
    assert (device["name"], device["type"], device["state"], device["queues"]) == ("tap0", "net", "listening", 2)
    assert device["source"] == "tap0"
    text = Path(f"/proc/{device['pid']}/net/dev").read_text()
    assert "tap0:" in text
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
    shown = subprocess.run(
        [command("vhostd"), "status", "--qemu"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"-chardev socket,id=tap0,path={tmp_path}/tap0.sock" in shown
    assert "queues=2 -device virtio-net-pci,netdev=tap0-dev,mq=on,vectors=6" in shown
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "tap0.sock"))
        daemon.hear("STATUS=tap0: connected")
        status = Path(f"/proc/{device['pid']}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log


def test_the_program_of_the_conventions(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "net"
    daemon = start("unshare", "--net", command("vhost-user-net"), f"--socket-path={path}", "--tap=tap0", "--create")
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(path))
        daemon.hear("STATUS=net: connected")
    assert daemon.end() == 0
    assert not path.exists()


def test_a_disk_and_a_card_from_one_file(start: Start, image: Path, tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text(
        f'[[disk]]\nname = "disk0"\nimage = "{image}"\n[[net]]\nname = "net0"\ntap = "tap0"\ncreate = true\n'
    )
    daemon = start("unshare", "--net", command("vhostd"), "serve", file)
    assert [(d["name"], d["type"]) for d in query(tmp_path / "vm.control")] == [("disk0", "block"), ("net0", "net")]
    assert daemon.end() == 0


def test_a_tap_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [*INSIDE, command("vhostd"), "net", "tap0", "--socket-path", tmp_path / "s"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 6
    assert "tap0" in done.stderr
    assert "--create" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()
