"""The caller's end: blocking and small, for commands at a terminal."""

import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from vhostd.errors import ControlError

ANSWER_LIMIT = 64 * 1024 * 1024


class ControlClient:
    """A negotiated conversation with a daemon.

    Raises OSError when nobody answers at the path (ConnectionRefusedError, FileNotFoundError), when we may not ask
    (PermissionError), and when no answer comes in time (TimeoutError); ControlError for what the daemon refuses.
    """

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self._negotiate(path)
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, path: Path) -> None:
        if "QMP" not in self._read():
            raise ControlError(f"{path} does not greet as a control socket does")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Carry out one command and return its answer; events in between are left aside."""
        message: dict[str, object] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._socket.sendall(msgspec.json.encode(message) + b"\n")
        while True:
            reply = self._read()
            if "error" in reply:
                raise ControlError(str(reply["error"].get("desc")), str(reply["error"].get("class")))
            if "return" in reply:
                return reply["return"]

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline(ANSWER_LIMIT)
        if not line:
            # The daemon let us in and hung up: it does so to a user it does not trust, and when it has too many.
            raise PermissionError("the daemon hung up without an answer")
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ControlError(f"an answer that is not JSON: {error}") from None
