"""`vhostd check` on running back-ends: ours conform, qemu-storage-daemon is checked to the end."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.backends import start_card, start_qsd, start_vhostd
from tests.support.net import Netns

CHECK = [sys.executable, "-m", "vhostd.cli.main", "check"]


def check(socket, *words, netns=None):
    """Run the tester; return its exit code and report."""
    enter = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}"] if netns else []
    done = subprocess.run(
        [*enter, *CHECK, str(socket), "--format", "json", *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(16 << 20))
    return path


def bad(report):
    return {case["id"] for case in report["cases"] if case["verdict"] in {"failed", "broke off", "needs"}}


def test_our_disk_conforms_and_is_left_as_it_was(image, tmp_path):
    before = image.read_bytes()
    backend = start_vhostd(image, tmp_path / "disk.sock", queues=2)
    try:
        code, report = check(backend.socket)
    finally:
        backend.stop()
    assert (code, bad(report)) == (0, set())
    assert report["totals"]["passed"] >= 400
    assert image.read_bytes() == before


@pytest.mark.root
def test_our_card_conforms(tmp_path):
    netns = Netns()
    card = start_card(tmp_path / "net.sock", netns=f"/proc/{os.getpid()}/fd/{netns.fd}", queues=2)
    try:
        code, report = check(card.socket, "--interface", "tap0", netns=netns)
    finally:
        card.stop()
        netns.close()
    assert (code, bad(report)) == (0, set())
    assert report["totals"]["passed"] >= 300


def test_another_ones_disk(image, tmp_path):
    """What is known of qemu-storage-daemon is found, and it lives to the end."""
    backend = start_qsd(image, tmp_path / "qsd.sock", queues=2)
    try:
        code, report = check(backend.socket, "-k", "block_requests or config_space or VU-ERR or VU-RING-02")
        assert backend.alive
    finally:
        backend.stop()
    assert code == 1
    known = {"BLK-ID-01", "BLK-ERR-05.unknown.512", "VU-CONF-03.seg-max", "VU-ERR-03.head", "VU-RING-02"}
    assert known <= bad(report)


def test_nobody_listens(tmp_path):
    done = subprocess.run([*CHECK, str(tmp_path / "none")], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3
    assert "nobody listens" in done.stderr
