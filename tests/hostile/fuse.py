"""Images on storage that fails or hangs: qemu-storage-daemon's blkdebug behind its FUSE export."""

import contextlib
import json
import os
import signal
import subprocess
import time

from tests.support.bare import ensure_fuse


@contextlib.contextmanager
def fuse_file(folder, content, *, rules=(), name="fuse"):
    """A file served by qemu-storage-daemon over FUSE, with blkdebug rules; yields (path, process).

    The rules are those of blkdebug's inject-error: event, errno, sector, once, iotype.
    """
    ensure_fuse()
    behind, path = folder / f"{name}.behind", folder / f"{name}.raw"
    behind.write_bytes(content)
    path.touch()
    nodes = [
        {"driver": "file", "node-name": "file", "filename": str(behind)},
        {"driver": "raw", "node-name": "raw", "file": "file"},
    ]
    top = "raw"
    if rules:
        top = "debug"
        nodes.append({"driver": "blkdebug", "node-name": "debug", "image": "raw", "inject-error": list(rules)})
    command = ["qemu-storage-daemon"]
    for node in nodes:
        command += ["--blockdev", json.dumps(node)]
    command += [
        "--export",
        json.dumps({"type": "fuse", "id": "e", "node-name": top, "mountpoint": str(path), "writable": True}),
    ]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while os.stat(path).st_size != len(content):
            assert process.poll() is None, (folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield path, process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


def hang(process):
    """Storage that stops answering."""
    process.send_signal(signal.SIGSTOP)


def resume(process):
    process.send_signal(signal.SIGCONT)
