"""--run: a device for as long as a command runs, as with nbdkit: started when the device is ready, ended with it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from vhostd.cli.main import guarded

MEMORY_SIZE = "1G"  # of $qemu_memory: QEMU wants to be told


def run_alongside(command: str, words: Mapping[str, str], serve: Callable[[socket.socket, int], int]) -> int:
    """Serve in a process of its own, run `command` in a shell meanwhile, and return the command's exit code.

    words: what the command finds in its environment. serve: called in the other process with its end of a control
    conversation, whose greeting says that it is ready, and our pid; what it returns is its exit code. A device that
    cannot start ends this with its own exit code, and the command is not run; one that ends badly afterwards makes a
    command's 0 a 1. SIGTERM ends the command, and so the device. To be called before there is a thread.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.setsid()  # Ctrl-C at a terminal is the command's to hear; the device ends after it
        code = 1
        try:
            code = guarded(lambda: serve(theirs, parent))
        finally:
            sys.stdout.flush()
            os._exit(code)
    theirs.close()
    with ours:
        if not _greeted(ours):
            return _code(os.waitpid(pid, 0)[1]) or 1
        try:
            ended = _run(command, {**os.environ, **words})
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            served = _code(os.waitpid(pid, 0)[1])
    return ended or served


def _greeted(conversation: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return bool(conversation.recv(1))
    return False


def _run(command: str, environment: dict[str, str]) -> int:
    with subprocess.Popen(command, shell=True, env=environment) as process:  # noqa: S602 - a shell is what is promised

        def end(*_: Any) -> None:
            process.terminate()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal has told the command, too
        return _shell_code(process.wait())


def _code(status: int) -> int:
    return _shell_code(os.waitstatus_to_exitcode(status))


def _shell_code(code: int) -> int:
    """Return an exit code as a shell tells it: 128 and the signal's number for who died of one."""
    return code if code >= 0 else 128 - code
