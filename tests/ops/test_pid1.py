"""The units under a real systemd: start, activation, restart, watchdog, clean stop."""

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.pid1 import Machine, site_packages

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.root,
    pytest.mark.unsanitized("units are hardened: a service of systemd preloads no library of ours"),
    pytest.mark.timeout(240),
]

UNIT = "vhostd@vm.service"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    assert shutil.which("systemctl")
    made = Machine(tmp_path_factory.mktemp("pid1"), site_packages())
    try:
        assert made.wait_for_boot() == "running"
        made.run("systemd-sysusers")
        made.run("systemd-tmpfiles", "--create", "vhostd.conf")
        for name in ("one", "two", "solo"):
            made.run("runuser", "-u", "vhostd", "--", "truncate", "-s", "1M", f"/var/lib/vhostd/{name}.img")
        disk = '[[disk]]\nname = "{0}"\nimage = "/var/lib/vhostd/{0}.img"\n{1}'
        text = disk.format("one", 'socket-group = "kvm"\n') + disk.format("two", "")
        (made.root / "etc/vhostd/vm.toml").write_text(text)
        (made.root / "etc/vhostd/solo.toml").write_text(disk.format("solo", ""))
        yield made
    finally:
        made.end()


@pytest.fixture
def unit(machine: Machine) -> Iterator[str]:
    machine.run("systemctl", "start", UNIT)
    yield UNIT
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "reset-failed", check=False)


def connect(machine: Machine, path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(machine.root / path))
    return made


def status(machine: Machine) -> list[list[str]]:
    return [line.split() for line in machine.run("vhostd", "status").stdout.splitlines()[1:]]


def test_it_is_active_when_every_device_listens(machine: Machine, unit: str) -> None:
    assert machine.show(unit, "ActiveState") == "active"
    assert machine.show(unit, "StatusText") == "2 of 2 devices are served"
    assert [(row[0], row[2]) for row in status(machine)] == [("one", "listening"), ("two", "listening")]
    for path in ("run/vhostd/one.sock", "run/vhostd/two.sock"):
        connect(machine, path).close()
    one, two = (machine.run("stat", "-c", "%U %G %a", f"/run/vhostd/{name}.sock").stdout for name in ("one", "two"))
    assert (one, two) == ("vhostd kvm 660\n", "vhostd kvm 600\n")


def test_every_process_is_confined(machine: Machine, unit: str) -> None:
    group = Path("sys/fs/cgroup") / machine.show(unit, "ControlGroup").lstrip("/")
    pids = machine.run("cat", f"/{group}/cgroup.procs").stdout.split()
    assert len(pids) == 4, "supervisor, zygote, two devices"
    uid = machine.run("id", "-u", "vhostd").stdout.strip()
    for pid in pids:
        text = machine.run("cat", f"/proc/{pid}/status").stdout
        lines = dict(line.split(":\t", 1) for line in text.splitlines())
        assert lines["Uid"].split() == [uid] * 4
        assert {lines[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")
    for place, writable in (("/usr", False), ("/etc/vhostd", False), ("/var/lib/vhostd", True), ("/run/vhostd", True)):
        looked = machine.run("nsenter", "-t", pids[0], "-m", "-r", "test", "-w", place, check=False)
        assert (looked.returncode == 0) == writable, place


def test_io_uring_is_there_under_the_filter(machine: Machine, unit: str) -> None:
    assert '"engine": "io_uring"' in machine.run("vhostd", "status", "--json").stdout


def test_a_device_that_is_killed_comes_back_without_a_restart_of_the_unit(machine: Machine, unit: str) -> None:
    before = machine.show(unit, "MainPID")
    machine.run("pkill", "-KILL", "-f", "^vhostd: one")
    machine.wait(unit, "StatusText", "1 of 2 devices are served")
    machine.wait(unit, "StatusText", "2 of 2 devices are served")
    assert machine.show(unit, "MainPID") == before
    assert machine.show(unit, "NRestarts") == "0"


def test_the_supervisor_that_is_killed_is_restarted(machine: Machine, unit: str) -> None:
    before = machine.show(unit, "MainPID")
    machine.run("kill", "-KILL", before)
    machine.wait(unit, "NRestarts", "1")
    machine.wait(unit, "ActiveState", "active")
    assert machine.show(unit, "MainPID") != before
    assert [row[2] for row in status(machine)] == ["listening", "listening"]


def test_the_watchdog_ends_a_supervisor_that_hangs(machine: Machine) -> None:
    drop_in = machine.root / "etc/systemd/system/vhostd@vm.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "watchdog.conf").write_text("[Service]\nWatchdogSec=1\nTimeoutAbortSec=1\n")
    machine.run("systemctl", "daemon-reload")
    try:
        machine.run("systemctl", "start", UNIT)
        before = machine.show(UNIT, "MainPID")
        machine.run("kill", "-STOP", before)
        machine.wait(UNIT, "NRestarts", "1")
        machine.wait(UNIT, "ActiveState", "active")
        assert machine.show(UNIT, "MainPID") != before
    finally:
        machine.run("systemctl", "stop", UNIT)
        shutil.rmtree(drop_in)
        machine.run("systemctl", "daemon-reload")


def test_reload_makes_a_lost_socket_again(machine: Machine, unit: str) -> None:
    machine.run("rm", "/run/vhostd/two.sock")
    machine.run("systemctl", "reload", unit)
    assert len(status(machine)) == 2  # asked behind the signal
    with connect(machine, "run/vhostd/two.sock"):
        pass


def test_a_stop_is_clean_and_quick_with_a_front_end_connected(machine: Machine) -> None:
    machine.run("systemctl", "start", UNIT)
    with connect(machine, "run/vhostd/one.sock") as front_end:
        machine.run("systemctl", "stop", UNIT)
        front_end.settimeout(5)
        assert front_end.recv(1) == b""
    assert machine.show(UNIT, "ActiveState") == "inactive"
    assert machine.show(UNIT, "Result") == "success"
    assert machine.show(UNIT, "ExecMainStatus") == "0"
    assert machine.run("ls", "/run/vhostd").stdout == ""


def test_a_configuration_that_is_wrong_fails_with_6_and_says_why(machine: Machine) -> None:
    (machine.root / "etc/vhostd/bad.toml").write_text("[[disk]]\nname = 1\n")
    assert machine.run("systemctl", "start", "vhostd@bad.service", check=False).returncode != 0
    machine.run("systemctl", "stop", "vhostd@bad.service")
    assert machine.show("vhostd@bad.service", "ExecMainStatus") == "6"
    said = machine.run("journalctl", "-u", "vhostd@bad", "-o", "cat").stdout
    assert "/etc/vhostd/bad.toml:2: [[disk]] number 1: name: expected text" in said
    machine.run("systemctl", "reset-failed", check=False)


def test_a_connection_to_an_activated_socket_starts_the_service(machine: Machine) -> None:
    machine.run("systemctl", "start", "vhostd@solo.socket")
    assert machine.show("vhostd@solo.service", "ActiveState") == "inactive"
    assert machine.run("stat", "-c", "%U %G %a", "/run/vhostd/solo.sock").stdout == "vhostd kvm 660\n"
    with connect(machine, "run/vhostd/solo.sock"):
        machine.wait("vhostd@solo.service", "ActiveState", "active")
        (row,) = status(machine)
        assert row[:3] == ["solo", "block", "connected"]
    machine.run("systemctl", "stop", "vhostd@solo.service")
    assert machine.run("test", "-S", "/run/vhostd/solo.sock").returncode == 0, "the socket unit's, not ours"
    with connect(machine, "run/vhostd/solo.sock"):
        machine.wait("vhostd@solo.service", "ActiveState", "active")
    machine.run("systemctl", "stop", "vhostd@solo.socket", "vhostd@solo.service")


def test_a_tap_is_made_with_the_capability_of_a_drop_in_which_the_device_gives_up(machine: Machine) -> None:
    """The unit's own advice; the filter lets capset through for it."""
    drop_in = machine.root / "etc/systemd/system/vhostd@made.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "net.conf").write_text(
        "[Service]\nAmbientCapabilities=CAP_NET_ADMIN\nCapabilityBoundingSet=CAP_NET_ADMIN\n"
    )
    (machine.root / "etc/vhostd/made.toml").write_text(
        '[[net]]\nname = "net8"\ntap = "tap8"\ncreate = true\nbridge = "br8"\nmtu = 9000\n'
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "vhostd@made.service")
    try:
        assert "master br8" in machine.run("ip", "link", "show", "tap8").stdout
        found = machine.run("sh", "-c", "grep -l '^Name:.vhostd:net8' /proc/[0-9]*/status | xargs grep -h ^Cap").stdout
        held = dict(line.split(":\t") for line in found.splitlines())
        assert {held[key] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    finally:
        machine.run("systemctl", "stop", "vhostd@made.service")


def test_a_persistent_tap_of_the_user_can_be_opened_without_privilege(machine: Machine, unit: str) -> None:
    """DeviceAllow lets /dev/net/tun through, and a tap that belongs to the user needs no capability."""
    machine.run("ip", "tuntap", "add", "tap7", "mode", "tap", "user", "vhostd", "multi_queue", "vnet_hdr")
    (machine.root / "etc/vhostd/net.toml").write_text('[[net]]\nname = "net7"\ntap = "tap7"\n')
    machine.run("systemctl", "start", "vhostd@net.service")
    try:
        assert ["net7", "net", "listening"] in [row[:3] for row in status(machine)]
    finally:
        machine.run("systemctl", "stop", "vhostd@net.service")
        with contextlib.suppress(Exception):
            machine.run("ip", "link", "delete", "tap7")
