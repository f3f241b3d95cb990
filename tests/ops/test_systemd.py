"""What is said to the service manager, and taken from it (sd_notify(3), sd_listen_fds(3))."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhostd.control.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(5)
        yield made


def test_each_message_arrives_as_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("serving")
    assert manager.recv(100) == f"READY=1\nSTATUS=serving\nMAINPID={os.getpid()}".encode()
    notifier.status("busy")
    assert manager.recv(100) == b"STATUS=busy"
    notifier.alive()
    assert manager.recv(100) == b"WATCHDOG=1"
    notifier.stopping()
    assert manager.recv(100) == b"STOPPING=1"


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind("")
        made.settimeout(5)
        name = made.getsockname().decode()
        Notifier({"NOTIFY_SOCKET": "@" + name[1:]}).stopping()
        assert made.recv(100) == b"STOPPING=1"


def test_nobody_asked_and_nobody_hears(tmp_path: Path) -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


def test_the_watchdog_runs_only_for_whom_it_is_set() -> None:
    def seconds(**words: str) -> float | None:
        return Notifier({"NOTIFY_SOCKET": "/x", **words}).watchdog_seconds

    assert seconds() is None
    assert seconds(WATCHDOG_USEC="4000000") == 2.0
    assert seconds(WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid())) == 2.0
    assert seconds(WATCHDOG_USEC="4000000", WATCHDOG_PID="1") is None
    assert seconds(WATCHDOG_USEC="nonsense") is None
    assert Notifier({"WATCHDOG_USEC": "4000000"}).watchdog_seconds is None


def test_sockets_of_the_service_manager_are_taken_by_name_and_only_when_meant_for_us() -> None:
    code = (
        "import os, sys\n"
        "from vhostd.control.systemd import activated\n"
        "for place, fd in enumerate(sys.argv[2:], 3): os.dup2(int(fd), place)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid()) if sys.argv[1] == 'own' else '1'\n"
        "print(activated(), 'LISTEN_FDS' in os.environ, os.get_inheritable(3))"
    )
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for pid, wanted in (
            ("own", "{'disk0': [3], 'control': [4]} False False"),
            ("other", "{} False True"),
        ):
            said = subprocess.run(
                [sys.executable, "-c", code, pid, str(one.fileno()), str(two.fileno())],
                env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "disk0:control"},
                pass_fds=[one.fileno(), two.fileno()],
                capture_output=True,
                text=True,
                check=True,
            )
            assert said.stdout.strip() == wanted
