"""Several devices under a supervisor: all or none at the start, and each for itself from then on."""

import json
import os
import select
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.ops.conftest import SECONDS, Daemon, Start, command, query
from vhostd import config
from vhostd.control.client import ControlClient
from vhostd.errors import ConfigError
from vhostd.supervisor.supervisor import share_out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two disks, `one` and `two`."""
    text = ""
    for name in ("one", "two"):
        image = tmp_path / f"{name}.img"
        image.touch()
        os.truncate(image, 1 << 20)
        text += f'[[disk]]\nname = "{name}"\nimage = "{image}"\nworkers = 1\n'
    made = tmp_path / "vm.toml"
    made.write_text(text)
    return made


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "vm.control"


def pids(control: Path) -> dict[str, int]:
    return {device["name"]: device["pid"] for device in query(control)}


def wait_gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([fd], [], [], SECONDS)[0]
    os.close(fd)


def zygote(daemon: Daemon) -> int:
    return int(Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()[0])


def test_each_device_is_a_process_and_all_are_asked_at_one_door(start: Start, file: Path, control: Path) -> None:
    daemon = start("vhostd", "serve", file)
    devices = query(control)
    assert [(d["name"], d["state"], d["restarts"]) for d in devices] == [
        ("one", "listening", 0),
        ("two", "listening", 0),
    ]
    assert len({d["pid"] for d in devices} | {daemon.process.pid}) == 3
    for device in devices:
        assert Path(f"/proc/{device['pid']}/cmdline").read_bytes().startswith(f"vhostd: {device['name']}".encode())
        assert "CapEff:\t0000000000000000" in Path(f"/proc/{device['pid']}/status").read_text()
    assert [d["name"] for d in query(control, "two")] == ["two"]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(file.parent)}
    for verb in ("status", "stats"):
        words = [command("vhostd"), verb, file.parent / "two.sock", "--json"]
        said = subprocess.run(words, env=environment, capture_output=True, check=True, timeout=SECONDS).stdout
        assert [d["name"] for d in json.loads(said)] == ["two"]
    assert daemon.end() == 0
    for device in devices:
        wait_gone(device["pid"])
    assert not [path for path in file.parent.iterdir() if path.suffix in (".sock", ".control")]
    assert "Traceback" not in daemon.log


def test_a_device_process_holds_no_descriptor_of_another(start: Start, file: Path, control: Path) -> None:
    start("vhostd", "serve", file)
    held = {}
    for name, pid in pids(control).items():
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        held[name] = {link for link in links if "/one." in link or "/two." in link or link.startswith("socket:")}
        assert not [link for link in links if link.endswith((".img",)) and f"/{name}.img" not in link]
    assert not held["one"] & held["two"]


def test_readiness_is_told_when_all_listen(start: Start, file: Path, tmp_path: Path) -> None:
    daemon = start("vhostd", "serve", file, ready=False)
    assert "STATUS=2 of 2 devices are served" in daemon.hear("READY=1")
    for name in ("one", "two"):
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(str(tmp_path / f"{name}.sock"))


def test_a_device_that_cannot_start_ends_the_start(start: Start, file: Path) -> None:
    file.write_text(file.read_text() + '[[disk]]\nname = "three"\nimage = "/nonexistent.img"\n')
    daemon = start("vhostd", "serve", file, ready=False)
    assert daemon.process.wait(SECONDS) == 6
    assert "three: /nonexistent.img" in daemon.log
    assert "Traceback" not in daemon.log
    assert not [path for path in file.parent.iterdir() if path.suffix in (".sock", ".control")]


def test_a_device_that_is_killed_comes_back_and_the_others_do_not_notice(
    start: Start, file: Path, control: Path, tmp_path: Path
) -> None:
    daemon = start("vhostd", "serve", file)
    before = pids(control)
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as early:
        other.connect(str(tmp_path / "two.sock"))
        os.kill(before["one"], signal.SIGKILL)
        wait_gone(before["one"])
        # The supervisor holds the listening socket: who connects now waits, and is not refused.
        early.connect(str(tmp_path / "one.sock"))
        daemon.hear("STATUS=1 of 2")
        daemon.hear("STATUS=2 of 2")
        after = {device["name"]: device for device in query(control)}
        assert after["one"]["pid"] != before["one"]
        assert after["one"]["restarts"] == 1
        assert after["two"]["pid"] == before["two"]
        assert after["two"]["frontend"]["pid"] == os.getpid()
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)


def test_a_device_that_is_away_is_shown_so(start: Start, file: Path, control: Path, tmp_path: Path) -> None:
    daemon = start("vhostd", "serve", file)
    (tmp_path / "one.img").rename(tmp_path / "gone.img")
    os.kill(pids(control)["one"], signal.SIGKILL)
    daemon.hear("STATUS=1 of 2")
    one, two = query(control)
    assert (one["name"], one["state"], one["pid"]) == ("one", "broken", None)
    assert two["state"] == "listening"
    (tmp_path / "gone.img").rename(tmp_path / "one.img")
    daemon.hear("STATUS=2 of 2")
    assert daemon.end() == 0


def test_events_of_every_device_reach_the_clients(start: Start, file: Path, control: Path, tmp_path: Path) -> None:
    start("vhostd", "serve", file)
    with ControlClient(control) as client:
        for name in ("one", "two"):
            with socket.socket(socket.AF_UNIX) as front_end:
                front_end.connect(str(tmp_path / f"{name}.sock"))
                event = client._read()
                assert (event["event"], event["data"]["device"]) == ("FRONTEND_CONNECTED", name)
            event = client._read()
            assert (event["event"], event["data"]["device"]) == ("FRONTEND_DISCONNECTED", name)
        assert client.execute("quit") == {}


@pytest.mark.parametrize("victim", ["supervisor", "zygote"])
def test_no_device_outlives_those_who_watch_it(start: Start, file: Path, control: Path, victim: str) -> None:
    daemon = start("vhostd", "serve", file)
    devices, middle = pids(control), zygote(daemon)
    os.kill(daemon.process.pid if victim == "supervisor" else middle, signal.SIGKILL)
    assert daemon.process.wait(SECONDS) == (-9 if victim == "supervisor" else 1)
    for pid in (*devices.values(), middle):
        wait_gone(pid)


def test_a_device_that_hangs_is_killed_by_the_watchdog_and_comes_back(start: Start, file: Path, control: Path) -> None:
    daemon = start("vhostd", "serve", file, env={"WATCHDOG_USEC": "1000000"})
    daemon.hear("WATCHDOG=1")
    before = pids(control)
    os.kill(before["one"], signal.SIGSTOP)
    daemon.hear("STATUS=1 of 2")
    daemon.hear("STATUS=2 of 2")
    assert pids(control)["one"] != before["one"]
    daemon.said.clear()
    daemon.hear("WATCHDOG=1")
    assert daemon.end() == 0


def test_sighup_makes_lost_sockets_again(start: Start, file: Path, control: Path, tmp_path: Path) -> None:
    daemon = start("vhostd", "serve", file)
    before = pids(control)
    (tmp_path / "one.sock").unlink()
    daemon.process.send_signal(signal.SIGHUP)
    assert pids(control) == before  # asked behind the signal
    with ControlClient(control) as client, socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "one.sock"))
        assert client._read()["data"]["device"] == "one"
    assert daemon.end() == 0
    assert not (tmp_path / "one.sock").exists()


def test_sockets_of_the_service_manager_go_to_the_devices_of_their_names(
    start: Start, file: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as given, socket.socket(socket.AF_UNIX) as door:
        for sock, name in ((given, "given"), (door, "door")):
            sock.bind(str(tmp_path / name))
            sock.listen()
        os.set_inheritable(given.fileno(), True)
        code = (
            "import os, sys\n"
            "for place, fd in enumerate(sys.argv[1:3], 3): os.dup2(int(fd), place)\n"
            "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '2', 'LISTEN_FDNAMES': 'two:control'}\n"
            "os.execv(sys.argv[3], sys.argv[3:])"
        )
        fds = [given.fileno(), door.fileno()]
        words = ["-c", code, *fds, command("vhostd"), "serve", file]
        daemon = start("python", *words, pass_fds=fds)
        one, two = query(tmp_path / "door")
        assert (one["socket"], two["socket"]) == (str(tmp_path / "one.sock"), str(tmp_path / "given"))
        with socket.socket(socket.AF_UNIX) as front_end, ControlClient(tmp_path / "door") as client:
            front_end.connect(str(tmp_path / "given"))
            assert client._read()["data"]["device"] == "two"
        assert daemon.end() == 0
    assert (tmp_path / "given").exists()
    assert not (tmp_path / "one.sock").exists()


def test_a_device_that_is_ended_politely_ends_by_itself_and_is_started_again(
    start: Start, file: Path, control: Path
) -> None:
    daemon = start("vhostd", "serve", file)
    os.kill(pids(control)["one"], signal.SIGTERM)
    daemon.hear("STATUS=1 of 2")
    daemon.hear("STATUS=2 of 2")
    assert "device process ended; starting it again device=one code=0" in daemon.log


def test_each_activated_socket_is_for_a_device_or_the_start_ends(file: Path) -> None:
    """sd_listen_fds(3): a front-end that connects to a socket nobody serves would wait for ever."""
    several = config.load(file)
    single = config.parse('[[disk]]\nname = "one"\nimage = "x"', "vm.toml")
    away = config.parse('[[disk]]\nname = "one"\nimage = "x"\nconnect = "/front"', "vm.toml")
    with socket.socket(socket.AF_UNIX) as a, socket.socket(socket.AF_UNIX) as b:
        assert share_out(several, {}) == {}
        assert share_out(several, {"two": [a]}) == {"two": a}
        assert share_out(single, {"vm": [a]}) == {"one": a}
        for settings, given, says in (
            (several, {"vm": [a]}, r"a socket named 'vm', and there is no such device \(there are one, two\)"),
            (several, {"one": [a], "vm": [b]}, "a socket named 'vm'"),
            (single, {"one": [a], "vm": [b]}, "a socket named 'vm'"),
            (single, {"vm": [a, b]}, "2 sockets named 'one'"),
            (away, {"one": [a]}, "which connects and does not listen"),
        ):
            with pytest.raises(ConfigError, match=says):
                share_out(settings, given)
