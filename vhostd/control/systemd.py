"""The service manager's end: readiness and watchdog (sd_notify(3)), sockets it opened for us (sd_listen_fds(3)).

Both are promised to stay as they are, and small enough to be written here.
"""

import os
import socket
from collections.abc import Mapping

_FIRST = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells the service manager how we do, if one asked (NOTIFY_SOCKET). A lost message is no error of ours."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog_us = environment.get("WATCHDOG_USEC", "")

    @property
    def watchdog_seconds(self) -> float | None:
        """How often to say that we live, half of what we are given; None when nobody counts."""
        if not self._address or not self._watched or not self._watchdog_us.isdigit():
            return None
        return int(self._watchdog_us) / 2e6

    def ready(self, status: str) -> None:
        """Say that start-up is done."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def status(self, status: str) -> None:
        """Say in a line how we do."""
        self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Say that a clean end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(text.encode(), self._address)
            except OSError:
                return


def activated() -> dict[str, list[int]]:
    """Take over the descriptors the service manager opened for this process, by name; {} when there are none.

    The words are removed from the environment, so that no child thinks they are meant for it.
    """
    pid, count, names = (os.environ.pop(word, "") for word in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, list[int]] = {}
    for fd, name in zip(range(_FIRST, _FIRST + int(count)), names.split(":") + ["unknown"] * int(count), strict=False):
        os.set_inheritable(fd, False)
        found.setdefault(name or "unknown", []).append(fd)
    return found
