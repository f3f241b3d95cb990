"""Verbs that start back-ends end them, too, when they are ended themselves."""

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
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found |= {child} | descendants(child)
    return found


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
    deadline = time.monotonic() + 20
    while not (below := descendants(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    below |= descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert not [pid for pid in below if runs(pid)]
