"""Verbs that start back-ends end them, too, when they are ended themselves."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BLK = f"{sys.executable} -m vhostd.cli.main blk {{img}} --socket-path {{sock}}"
VERBS = {
    "bench": ["bench", "--compare", f"a={BLK}", "--compare", f"b={BLK}", "--rw", "randread", "--image-size", "16M"],
    "check": ["check", "{path}.sock", "--start", BLK.replace("{img}", "{path}.raw")],
}


def descendants(pid: int) -> set[int]:
    """Every process below one."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            for child in map(int, children.read_text().split()):
                found |= {child} | descendants(child)
    return found


def is_blk(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"blk" in words.split(b"\0") or words.startswith(b"vhostd:")  # before and after it has named itself


def runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("verb", VERBS)
def test_what_was_started_ends_with_it(verb: str, tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(bytes(16 << 20))
    words = [word.replace("{path}", str(tmp_path / "x")) for word in VERBS[verb]]
    command = [sys.executable, "-m", "vhostd.cli.main", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)
    assert process.stdout is not None
    sign, times = {"bench": (b"round 1", 1), "check": (b"front-end gone", 8)}[verb]
    for line in process.stdout:
        times -= sign in line
        if not times:
            break
    deadline = time.monotonic() + 20
    while not any(map(is_blk, below := descendants(process.pid))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 130, said
    if verb == "check":  # what was seen so far is worth reading
        assert b"was not seen to the end" in said
    while left := [pid for pid in below if runs(pid)]:  # a build that an import has begun ends by itself
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
