"""Back-ends as processes: ours, and qemu-storage-daemon to check that a test checks the document and not ourselves."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from vhostd.driver import procfs

STOP_TIMEOUT = 10  # seconds
# VHOSTD_BLK names another program with the same words, for one that is installed elsewhere.
VHOSTD = shlex.split(os.environ.get("VHOSTD_BLK", "")) or [sys.executable, "-m", "vhostd.cli.main", "blk"]


@dataclass
class Backend:
    """A running back-end; it ends with `stop`."""

    name: str
    image: Path
    socket: Path
    process: subprocess.Popen
    log: Path
    options: dict = field(default_factory=dict)

    @property
    def pid(self):
        return self.process.pid

    def pids(self):
        """The process and all below it: a supervisor does no work, its device process does."""
        return procfs.family(self.pid)

    def cpu_ns(self):
        """CPU time of all its threads so far, in nanoseconds, exact to the scheduler's clock."""
        return procfs.cpu_ns(self.pid)

    def pin(self, cpus):
        """Run all its threads, and those to come, on these CPUs only."""
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(task.name), cpus)

    @property
    def alive(self):
        return self.process.poll() is None

    def stop(self):
        """End it as an operator does, and kill it if that takes too long. Returns the exit code."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return self.process.returncode


def _spawn(name, command, image, socket, cpus, **options):
    log = Path(f"{socket}.log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            preexec_fn=None if cpus is None else lambda: os.sched_setaffinity(0, cpus),
        )
    return Backend(name, Path(image), Path(socket), process, log, options)


def start_qsd(
    image,
    socket,
    *,
    queues=1,
    read_only=False,
    aio="threads",
    direct=False,
    null=False,
    cpus=None,
    program="qemu-storage-daemon",
    **_,
):
    """Start qemu-storage-daemon with `image` raw as a vhost-user-blk export; `null` is a disk of zeroes, for rings."""
    if null:
        blockdev = [f"driver=null-co,node-name=f,size={Path(image).stat().st_size},read-zeroes=on"]
    else:
        file = (
            f"driver=file,node-name=f,filename={image},aio={aio},cache.direct={'on' if direct else 'off'},"
            f"discard=unmap,read-only={'on' if read_only else 'off'}"
        )
        blockdev = [file]
    blockdev.append(f"driver=raw,node-name=r,file=f,discard=unmap,read-only={'on' if read_only else 'off'}")
    export = (
        f"type=vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path={socket},"
        f"writable={'off' if read_only else 'on'},num-queues={queues}"
    )
    command = [program]
    for node in blockdev:
        command += ["--blockdev", node]
    command += ["--export", export]
    return _spawn(f"qsd {aio}", command, image, socket, cpus, queues=queues, read_only=read_only)


def start_vhostd(image, socket, *, queues=1, read_only=False, serial=None, connect=None, options=(), cpus=None, **_):
    """Start `vhostd blk` with `image`; `options` are further words of the command line.

    `connect` is the socket of a front-end that listens.
    """
    where = ["--socket-path", str(socket)] if connect is None else ["--connect", str(connect)]
    command = [*VHOSTD, str(image), *where, "--queues", str(queues)]
    if read_only:
        command.append("--read-only")
    if serial is not None:
        command += ["--serial", serial]
    command += options
    return _spawn("vhostd", command, image, socket, cpus, queues=queues, read_only=read_only)


def start_card(socket, *, tap="tap0", netns=None, queues=1, options=(), cpus=None):
    """Start `vhostd net` with a tap made for it in `netns`; `options` are further words of the command line."""
    command = [sys.executable, "-m", "vhostd.cli.main", "net", tap, "--create", "--socket-path", str(socket)]
    command += ["--queues", str(queues)]
    if netns is not None:
        command += ["--netns", netns]
    command += options
    return _spawn("vhostd", command, "", socket, cpus, queues=queues)


STARTERS = {"vhostd": start_vhostd, "qemu-storage-daemon": start_qsd}
