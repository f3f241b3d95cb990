"""The back-ends that guests are tried on: vhostd, or qemu-storage-daemon for disks when VHOSTD_PEER=qsd.

With the second the tests hold themselves to another's device, and so to the specifications rather than to ours.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vhostd.control.client import ControlClient
from vhostd.demo.host import Namespace
from vhostd.demo.programs import Program

PEER = os.environ.get("VHOSTD_PEER", "vhostd")


def vhostd(*words: str | Path) -> list[str]:
    """The command line of this very build."""
    return [sys.executable, "-m", "vhostd.cli.main", *(str(word) for word in words)]


def control(socket: Path) -> Path:
    """Where the daemon of a socket answers questions."""
    return socket.with_name(f"{socket.name}-control")


def counters(socket: Path) -> dict[str, Any]:
    """What the daemon of a socket has counted."""
    with ControlClient(control(socket)) as client:
        (device,) = client.execute("query-stats")
    return device


def block_command(
    image: Path, socket: Path, *, queues: int, read_only: bool, serial: str | None, extra: Sequence[str]
) -> list[str]:
    if PEER == "qsd":
        writable = "off" if read_only else "on"
        export = f"addr.type=unix,addr.path={socket},writable={writable},num-queues={queues}"
        return [
            "qemu-storage-daemon",
            "--blockdev",
            f"driver=file,node-name=disk,filename={image},discard=unmap,read-only={'on' if read_only else 'off'}",
            "--export",
            f"type=vhost-user-blk,id=export,node-name=disk,{export}",
        ]
    words = ["blk", image, "--socket-path", socket, "--control", control(socket), "--queues", str(queues), *extra]
    if read_only:
        words.append("--read-only")
    if serial is not None:
        words += ["--serial", serial]
    return vhostd(*words)


async def serve_block(
    image: Path,
    socket: Path,
    *,
    log: Path,
    queues: int = 1,
    read_only: bool = False,
    serial: str | None = None,
    extra: Sequence[str] = (),
) -> Program:
    """Serve a disk; back when it listens."""
    command = block_command(image, socket, queues=queues, read_only=read_only, serial=serial, extra=extra)
    program = await Program.start(*command, log=log)
    await program.listening(socket)
    return program


async def serve_net(
    namespace: Namespace, tap: str, socket: Path, *, log: Path, pairs: int = 1, extra: Sequence[str] = ()
) -> Program:
    """Serve a network card on a tap of a namespace; back when it listens."""
    words = vhostd("net", tap, "--socket-path", socket, "--control", control(socket), "--queues", str(pairs), *extra)
    program = await Program.start(*namespace.command(*words), log=log, pass_fds=[namespace.fd])
    await program.listening(socket)
    return program
