"""The commands as they are installed: what they print, and the exit codes."""

import importlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.ops.conftest import SECONDS, Start, command, query
from vhostd.cli import attach
from vhostd.cli import main as cli
from vhostd.cli.main import main


def run(*words: object, name: str = "vhostd", **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command(name), *map(str, words)], capture_output=True, text=True, timeout=SECONDS, **settings
    )


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "a verb is missing"),
        (["fly"], 2, "there is no verb 'fly'"),
        (["blk"], 2, "the following arguments are required: IMAGE"),
        (["blk", "x", "--queus", "1"], 2, "unrecognized arguments"),
        (["blk", "x", "--queues", "many"], 2, "--queues: expected whole number"),
        (["blk", "x", "--serial", "a b"], 2, "--serial: 'a b' is not"),
        (["blk", "x", "--fd", "3", "--socket-path", "y"], 2, "leave --socket-path"),
        (["blk", "/nonexistent.img", "--socket-path", "{tmp}/s"], 6, "/nonexistent.img"),
        (["blk", "x", "--fd", "987"], 6, "--fd 987"),
        (["net"], 2, "--tap: give the tap's name"),
        (["serve"], 2, "required: FILE"),
        (["serve", "{tmp}/none.toml"], 6, "none.toml: cannot be read: No such file or directory"),
        (["serve", "--check", "{tmp}/bad.toml"], 6, "bad.toml:1: dsk: there is no such setting"),
        (["serve", "{tmp}/lost.toml"], 6, "/nonexistent.img"),
        (["status", "--control", "{tmp}/none"], 3, "no daemon answers at"),
        (["status"], 3, "no daemon answers at"),
        (["stats", "disk0"], 3, "no daemon answers at"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_one_line(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[[dsk]]")
    (tmp_path / "lost.toml").write_text('[[disk]]\nname = "a"\nimage = "/nonexistent.img"')
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    done = run(*words, env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)})
    assert done.returncode == code, done
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".toml"]


def test_what_there_is_to_say_without_a_daemon(tmp_path: Path, image: Path) -> None:
    assert run("--version").stdout.startswith("vhostd 0.")
    assert "serve one disk" in run("--help").stdout
    for verb in ("blk", "net", "serve", "status", "stats"):
        assert "--help" in run(verb, "--help").stdout
    file = tmp_path / "vm.toml"
    file.write_text(f'[[disk]]\nname = "a"\nimage = "{image}"')
    assert "1 devices" in run("serve", "--check", file).stdout


def test_every_setting_is_a_flag() -> None:
    shown = run("blk", "--help").stdout + run("net", "--help").stdout
    for flag in ("--read-only", "--no-discard", "--poll-us", "--socket-group", "--tap-fds", "--no-mrg-rxbuf", "--mtu"):
        assert flag in shown


def test_not_permitted_is_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    control = closed / "control"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(control))
        listening.listen()
        root = os.geteuid() == 0
        for verb in ("ask", "serve"):  # nobody may not be able to read the tree
            importlib.import_module(f"vhostd.cli.{verb}")
        try:
            if root:
                os.seteuid(65534)
            else:
                closed.chmod(0)
            assert main(["status", "--control", str(control)]) == cli.NOT_PERMITTED
            assert main(["serve", str(closed / "vm.toml")]) == cli.NOT_PERMITTED
        finally:
            if root:
                os.seteuid(0)
            closed.chmod(0o700)
    assert "not permitted" in capsys.readouterr().err


def test_a_disk_is_served_asked_and_ended(start: Start, image: Path, tmp_path: Path) -> None:
    daemon = start("vhostd", "blk", image, "--queues", 4, "--serial", "S1", "--socket-mode", "0640", "--read-only")
    path, control = tmp_path / "disk.sock", tmp_path / "disk.control"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    (device,) = query(control)
    assert device["pid"] == daemon.process.pid
    assert (device["name"], device["type"], device["state"], device["queues"]) == ("disk", "block", "listening", 4)
    assert (device["socket"], device["serial"], device["read_only"]) == (str(path), "S1", True)
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
    table = run("status", env=environment)
    assert table.stdout.splitlines()[1].split()[:4] == ["disk", "block", "listening", "4"]
    qemu = run("status", "disk", "--qemu", env=environment).stdout
    assert f"path={path}" in qemu
    assert "vhost-user-blk-pci,chardev=disk,num-queues=4" in qemu
    assert "share=on" in qemu
    assert f'path="{path}"' in run("status", path, "--libvirt").stdout
    assert run("stats", "disk", env=environment).returncode == 0
    (counters,) = json.loads(run("stats", "--json", env=environment).stdout)
    assert counters["sessions"] == 0
    missing = run("status", "other", env=environment)
    assert (missing.returncode, missing.stderr) == (
        1,
        "vhostd: no daemon has a device 'other': `vhostd status` shows those there are\n",
    )
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(path))
        daemon.hear("STATUS=disk: connected")
        (device,) = query(control)
        assert device["frontend"]["pid"] == os.getpid()
    daemon.hear("STATUS=disk: listening")
    assert daemon.end() == 0
    daemon.hear("STOPPING=1")
    assert not path.exists()
    assert not control.exists()


def test_each_socket_has_a_control_socket_of_its_own(start: Start, image: Path, tmp_path: Path) -> None:
    """.control takes the place of .sock and of nothing else; what is shown holds in every directory."""
    for name in ("vm.0", "vm.1", "vm.sock"):
        start("vhostd", "blk", image, "--read-only", "--socket-path", name, cwd=tmp_path)
        control = tmp_path / ("vm.control" if name == "vm.sock" else f"{name}.control")
        assert [d["socket"] for d in query(control)] == [str(tmp_path / name)]
        assert f"path={tmp_path / name}," in run("status", f"./{name}", "--qemu", cwd=tmp_path).stdout
    done = run("blk", image, "--socket-path", tmp_path / "s", "--control", f"{tmp_path}/./s")
    assert (done.returncode, "is the device's own socket" in done.stderr) == (2, True)


def test_what_cannot_be_attached_by_path_is_a_comment(start: Start, image: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        start("vhostd", "blk", image, "--read-only", "--name", "a--b", "--fd", fd, pass_fds=[fd])
        for name in ("9", "two"):
            start("vhostd", "blk", image, "--read-only", "--name", name)
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
        shown = run("status", "--qemu", env=environment).stdout
        assert "# a--b: its socket was inherited" in shown
        assert "id=disk-9,path=" in shown
        assert "-chardev socket,id=two,path=" in shown
        shown = run("status", "--libvirt", env=environment).stdout
        assert "<!-- a- -b: its socket was inherited" in shown
        assert re.findall("dev='(vd.)'", shown) == ["vda", "vdb"]
        ET.fromstring(f"<domain>{shown}</domain>")


def test_the_twenty_seventh_disk_is_vdaa() -> None:
    assert [attach._disk_name(number) for number in (0, 25, 26, 701, 702)] == ["vda", "vdz", "vdaa", "vdzz", "vdaaa"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_while_a_front_end_is_connected(
    start: Start, image: Path, tmp_path: Path, number: int
) -> None:
    daemon = start("vhostd", "blk", image)
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "disk.sock"))
        daemon.hear("STATUS=disk: connected")
        assert daemon.end(number) == 0
        assert front_end.recv(1) == b""
    assert "Traceback" not in daemon.log


def test_privileges_are_given_up_before_it_is_ready(start: Start, image: Path) -> None:
    daemon = start("vhostd", "blk", image)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines())
    assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0000000000000000"}
    assert status["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert status["CapBnd"] == "0000000000000000"
        assert status["Groups"].strip() == ""
    limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
    assert "Max core file size        0                    0" in limits
    assert status["Name"] == "vhostd:disk"
    for thread in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        assert "CapEff:\t0000000000000000" in (thread / "status").read_text()
    if os.geteuid() == 0:
        # Not dumpable: what belongs to the process in /proc is root's, whoever it runs as.
        assert Path(f"/proc/{daemon.process.pid}/mem").stat().st_uid == 0


def test_sighup_makes_a_lost_socket_again(start: Start, image: Path, tmp_path: Path) -> None:
    daemon = start("vhostd", "blk", image)
    path = tmp_path / "disk.sock"
    path.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    (device,) = query(tmp_path / "disk.control")  # answered by the same thread, behind the signal
    assert device["state"] == "listening"
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(path))
        daemon.hear("STATUS=disk: connected")
    assert daemon.end() == 0
    assert not path.exists()


def test_sighup_leaves_a_connected_front_end_alone(start: Start, image: Path, tmp_path: Path) -> None:
    daemon = start("vhostd", "blk", image)
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "disk.sock"))
        daemon.hear("STATUS=disk: connected")
        daemon.process.send_signal(signal.SIGHUP)
        (device,) = query(tmp_path / "disk.control")
        assert device["frontend"]["pid"] == os.getpid()
    daemon.hear("STATUS=disk: listening")


def test_quit_over_the_control_socket(start: Start, image: Path, tmp_path: Path) -> None:
    from vhostd.control.client import ControlClient

    daemon = start("vhostd", "blk", image, "--control", tmp_path / "door")
    with ControlClient(tmp_path / "door") as client:
        assert client.execute("quit") == {}
    assert daemon.process.wait(SECONDS) == 0


def test_an_inherited_listening_socket(start: Start, image: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "given"))
        listening.listen()
        fd = listening.fileno()
        daemon = start("vhostd", "blk", image, "--fd", fd, pass_fds=[fd])
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(str(tmp_path / "given"))
            daemon.hear("STATUS=disk: connected")
        assert daemon.end() == 0
    assert (tmp_path / "given").exists(), "the socket's path is its maker's"


def test_an_inherited_connection_ends_the_process_with_it(start: Start, image: Path) -> None:
    ours, theirs = socket.socketpair()
    daemon = start("vhostd", "blk", image, "--fd", theirs.fileno(), pass_fds=[theirs.fileno()])
    theirs.close()
    ours.close()
    assert daemon.process.wait(SECONDS) == 0
    assert "Traceback" not in daemon.log


def test_a_front_end_that_listens_is_reached_and_reached_again(start: Start, image: Path, tmp_path: Path) -> None:
    path = tmp_path / "front"
    daemon = start("vhostd", "blk", image, "--connect", path)
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.bind(str(path))
        front_end.listen()
        front_end.settimeout(SECONDS)
        for _ in range(2):
            connection, _ = front_end.accept()
            daemon.hear("STATUS=disk: connected")
            connection.close()
            daemon.hear("STATUS=disk: listening")
    assert "no front-end yet" in daemon.log
    assert daemon.end() == 0
    assert path.exists()


def test_the_watchdog_is_fed_when_somebody_counts(start: Start, image: Path) -> None:
    daemon = start("vhostd", "blk", image, env={"WATCHDOG_USEC": "200000"})
    for _ in range(3):
        daemon.hear("WATCHDOG=1")
    quiet = start("vhostd", "blk", image, "--name", "quiet", "--read-only", ready=False)
    assert quiet.process.wait(SECONDS) == 6, "two may not have one image when one of them writes"


def test_a_second_daemon_for_the_same_socket_is_refused(start: Start, image: Path, tmp_path: Path) -> None:
    first = start("vhostd", "blk", image, "--read-only")
    second = start("vhostd", "blk", image, "--read-only", ready=False)
    assert second.process.wait(SECONDS) == 6
    assert f"another daemon listens there (process {first.process.pid})" in second.log
    assert len(query(tmp_path / "disk.control")) == 1


def test_kill_9_leaves_a_stale_socket_that_the_next_start_replaces(start: Start, image: Path) -> None:
    assert start("vhostd", "blk", image).end(signal.SIGKILL) == -9
    assert start("vhostd", "blk", image).end() == 0


class TestConventions:
    """vhost-user document, "Backend program conventions"."""

    def test_capabilities_are_printed_whatever_else_is_said(self) -> None:
        for words in (["--print-capabilities"], ["--nonsense", "--print-capabilities", "--fd", "x"]):
            done = run(*words, name="vhost-user-blk")
            assert (done.returncode, done.stderr) == (0, "")
            assert json.loads(done.stdout) == {"type": "block", "features": ["read-only", "blk-file"]}
            done = run(*words, name="vhost-user-net")
            assert (done.returncode, json.loads(done.stdout)) == (0, {"type": "net"})

    def test_a_disk_on_a_path(self, start: Start, image: Path, tmp_path: Path) -> None:
        path = tmp_path / "s"
        daemon = start("vhost-user-blk", f"--socket-path={path}", f"--blk-file={image}", "--read-only")
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(str(path))
            daemon.hear("STATUS=disk: connected")
        assert daemon.end() == 0
        assert [p.name for p in tmp_path.iterdir() if p.is_socket() and "notify" not in p.name] == []

    def test_a_disk_on_an_inherited_socket(self, start: Start, image: Path) -> None:
        ours, theirs = socket.socketpair()
        fd = theirs.fileno()
        daemon = start("vhost-user-blk", f"--fd={fd}", f"--blk-file={image}", pass_fds=[fd])
        theirs.close()
        ours.close()
        assert daemon.process.wait(SECONDS) == 0

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ([], "--blk-file"),
            (["--blk-file={image}"], "give one of --socket-path and --fd"),
            (["--blk-file={image}", "--socket-path=x", "--fd=3"], "give one of --socket-path and --fd"),
            (["--blk-file=/nonexistent", "--socket-path={tmp}/s"], "/nonexistent"),
        ],
    )
    def test_it_ends_early_with_a_message_when_it_cannot_start(
        self, words: list[str], says: str, image: Path, tmp_path: Path
    ) -> None:
        words = [word.replace("{image}", str(image)).replace("{tmp}", str(tmp_path)) for word in words]
        done = run(*words, name="vhost-user-blk", cwd=tmp_path)
        assert done.returncode in (2, 6)
        assert says in done.stderr
        assert not (tmp_path / "s").exists()


@pytest.mark.unsanitized("their shadow memory and their start count as the daemon's")
def test_a_device_is_small_and_starts_quickly(start: Start, image: Path) -> None:
    """At most 35 MiB; 0.25 s from start to ready is four times what an interpreter with asyncio takes, in CPU time."""
    took: list[float] = []
    bare: list[float] = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", "import asyncio"], check=True)
        after = os.times()
        bare.append(after.children_user + after.children_system - before.children_user - before.children_system)
        daemon = start("vhostd", "blk", image)
        process = Path(f"/proc/{daemon.process.pid}")
        ticks = process.joinpath("stat").read_text().rpartition(")")[2].split()
        took.append((int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK"))
        status = dict(line.split(":\t", 1) for line in process.joinpath("status").read_text().splitlines())
        assert int(status["VmRSS"].split()[0]) <= 35 * 1024
        daemon.process.terminate()
        daemon.process.wait(10)
    assert min(took) <= 4 * min(bare)


def test_run_serves_as_long_as_a_command_runs(image: Path, tmp_path: Path) -> None:
    """The command finds the socket and QEMU's words; its exit code is ours, and the device is gone when we are."""
    done = run(
        "blk", image, "--socket-path", tmp_path / "s", "--run", 'test -S "$socket" && echo "$qemu_args" && exit 3'
    )
    assert done.returncode == 3, done.stderr
    assert f"path={tmp_path}/s,reconnect=1 -device vhost-user-blk-pci" in done.stdout
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.control").exists()


def test_run_boots_what_it_says(image: Path, tmp_path: Path) -> None:
    """$qemu_args and $qemu_memory are all that QEMU needs to have the disk."""
    qemu = (
        "qemu-system-x86_64 -S -display none -nodefaults -machine q35,accel=tcg -monitor stdio $qemu_memory $qemu_args"
    )
    done = run("blk", image, "--socket-path", tmp_path / "s", "--run", f"echo quit | {qemu}")
    assert done.returncode == 0, done
    assert "front-end connected" in done.stderr
    assert "front-end gone" in done.stderr


def test_run_the_front_end_listens(image: Path, tmp_path: Path) -> None:
    """--connect: the command's socket is connected to."""
    qemu = (
        "qemu-system-x86_64 -S -display none -nodefaults -machine q35,accel=tcg -monitor none $qemu_memory $qemu_args"
    )
    wait = 'pid=$!; until grep -q "front-end connected" log || ! kill -0 $pid; do sleep 0.1; done; kill $pid'
    log = (tmp_path / "log").open("wb")
    with log:
        done = subprocess.run(
            [command("vhostd"), "blk", image, "--connect", tmp_path / "s", "--run", f"{qemu} & {wait}"],
            cwd=tmp_path,
            env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)},
            stderr=log,
            timeout=SECONDS,
        )
    assert done.returncode == 0, (tmp_path / "log").read_text()
    assert "front-end connected" in (tmp_path / "log").read_text()


def test_run_does_not_run_without_a_device(tmp_path: Path) -> None:
    done = run("blk", tmp_path / "none", "--socket-path", tmp_path / "s", "--run", "echo ran")
    assert done.returncode == 6
    assert done.stdout == ""
    assert "none" in done.stderr


def test_run_ends_its_command_when_it_is_ended(image: Path, start: Start, tmp_path: Path) -> None:
    """SIGTERM to us is the command's end, and then the device's."""
    daemon = start("vhostd", "blk", image, "--socket-path", tmp_path / "s", "--run", "exec sleep 1000", ready=False)
    daemon.hear("READY=1")
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
    while not any("sleep" in Path(f"/proc/{child}/comm").read_text() for child in children.read_text().split()):
        time.sleep(0.01)
    assert daemon.end() == 128 + signal.SIGTERM
    assert not (tmp_path / "s").exists()


def test_run_needs_a_path(image: Path) -> None:
    done = run("blk", image, "--fd", "3", "--run", "true")
    assert done.returncode == 2
    assert "leave --fd away" in done.stderr
