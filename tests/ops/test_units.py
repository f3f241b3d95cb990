"""The unit files and descriptors as files: systemd's own checks, and the document's words."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.ops.conftest import command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    text = (ROOT / "systemd/vhostd@.service.in").read_text()
    (tmp_path / "vhostd@.service").write_text(text.replace("@PROGRAMS@", str(Path(command("vhostd")).parent)))
    (tmp_path / "vhostd@.socket").write_text((ROOT / "systemd/vhostd@.socket").read_text())
    return tmp_path


def analyze(*words: object) -> str:
    done = subprocess.run(["systemd-analyze", "--no-pager", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def test_systemd_finds_nothing_to_complain_about(units: Path) -> None:
    assert analyze("verify", "--man=no", units / "vhostd@vm.service", units / "vhostd@vm.socket").strip() == ""


def test_the_exposure_is_low(units: Path) -> None:
    said = analyze("security", "--offline=true", units / "vhostd@.service")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found
    assert float(found[1]) <= 1.6


@pytest.mark.parametrize(("kind", "program"), [("block", "vhost-user-blk"), ("net", "vhost-user-net")])
def test_a_descriptor_names_a_program_that_says_what_the_descriptor_says(kind: str, program: str) -> None:
    """vhost-user document, "Backend program conventions": description, type, and one absolute path."""
    text = (ROOT / f"data/50-vhostd-{kind}.json.in").read_text()
    made = json.loads(text.replace("@PROGRAMS@", str(Path(command("vhostd")).parent)))
    assert made.keys() == {"description", "type", "binary"}
    assert Path(made["binary"]) == Path(command(program))
    said = subprocess.run([made["binary"], "--print-capabilities"], capture_output=True, check=True)
    assert json.loads(said.stdout)["type"] == made["type"] == kind


def test_users_and_directories_are_what_the_unit_uses(units: Path) -> None:
    service = (units / "vhostd@.service").read_text()
    user = re.search(r"^User=(\S+)$", service, re.MULTILINE)
    group = re.search(r"^Group=(\S+)$", service, re.MULTILINE)
    assert user
    assert group
    assert f"\nu {user[1]} " in (ROOT / "systemd/sysusers.d/vhostd.conf").read_text()
    assert f"\nd /run/vhostd 0755 {user[1]} {group[1]} " in (ROOT / "systemd/tmpfiles.d/vhostd.conf").read_text()
    sock = (units / "vhostd@.socket").read_text()
    assert f"SocketUser={user[1]}\nSocketGroup={group[1]}\n" in sock
