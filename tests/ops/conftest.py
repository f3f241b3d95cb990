"""Daemons run as an operator runs them: the installed commands, in processes of their own."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SECONDS = 60 if "VHOSTD_SANITIZED" in os.environ else 20


def command(name: str) -> str:
    """The installed entry point, beside the interpreter that runs the tests; else what the system has."""
    installed = Path(sys.executable).parent / name
    return str(installed) if installed.exists() else name


class Daemon:
    """A running daemon, and what it told the service manager."""

    def __init__(self, process: subprocess.Popen[bytes], notified: socket.socket, log: Path) -> None:
        self.process = process
        self.said: list[str] = []
        self._notified = notified
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def hear(self, word: str) -> str:
        """Wait until it tells the service manager something that begins so."""
        while True:
            for message in self.said:
                if any(line.startswith(word) for line in message.splitlines()):
                    self.said.remove(message)
                    return message
            ready, _, _ = select.select([self._notified], [], [], SECONDS)
            assert ready, f"no {word}; the log: {self.log}"
            self.said.append(self._notified.recv(4096).decode())

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command; by default, wait until it is ready."""
    daemons: list[Daemon] = []

    def run(name: str, *words: object, ready: bool = True, **settings: object) -> Daemon:
        number = len(daemons)
        notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notified.bind(str(tmp_path / f"notify{number}"))
        log = tmp_path / f"log{number}"
        environment = {**os.environ, "NOTIFY_SOCKET": notified.getsockname(), "RUNTIME_DIRECTORY": str(tmp_path)}
        environment |= settings.pop("env", {})
        with log.open("wb") as out:
            process = subprocess.Popen(
                [command(name), *map(str, words)], stdout=out, stderr=out, env=environment, **settings
            )
        daemon = Daemon(process, notified, log)
        daemons.append(daemon)
        if ready:
            daemon.hear("READY=1")
        return daemon

    yield run
    for daemon in daemons:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
        daemon._notified.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


def query(control: Path, *words: str) -> list[dict]:
    """What `vhostd status --json` says."""
    asked = subprocess.run(
        [command("vhostd"), "status", "--control", str(control), "--json", *words],
        capture_output=True,
        check=True,
        timeout=SECONDS,
    )
    return json.loads(asked.stdout)
