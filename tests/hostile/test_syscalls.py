"""System calls per request, counted by strace from outside, while a driver keeps its depth."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.hostile.attack import MIB, guest
from vhostd.driver.hotloop import block_load


def counted(target, tmp_path, depth, **options):
    """Run reads at a depth under strace; return (system calls, reads, the table)."""
    out = tmp_path / "strace"
    with guest(target, size=256, memory_len=16 * MIB, indirect=True) as session:
        load = {"depth": depth, "block_len": 4096, "disk_len": 4 * MIB, **options}
        block_load(session.queue, duration_ns=200_000_000, **load)
        tracer = subprocess.Popen(["strace", "-f", "-c", "-o", str(out), "-p", str(target.pid)], stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 10
            while not all(
                "TracerPid:\t0" not in (task / "status").read_text()
                for task in Path(f"/proc/{target.pid}/task").iterdir()
            ):
                assert tracer.poll() is None, tracer.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            counters = block_load(session.queue, duration_ns=1_000_000_000, **load)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(10)
            tracer.stderr.close()
    table = out.read_text()
    calls = int(re.search(r"^100\.00\s+\S+\s+\S*\s+(\d+)", table, re.MULTILINE).group(1))
    assert (counters.errors, counters.short) == (0, 0)
    return calls, counters.ios, table


@pytest.mark.parametrize(
    ("aio", "writes", "depth", "limit"),
    [
        ("auto", 0, 1, 3.0),
        ("auto", 0, 32, 0.3),
        ("auto", 100, 1, 3.0),
        ("auto", 100, 32, 0.3),
        ("io_uring", 0, 1, 3.0),
        ("io_uring", 0, 32, 0.3),
        ("io_uring", 100, 1, 3.0),
    ],
)
def test_system_calls_per_request(own, tmp_path, aio, writes, depth, limit, capsys):
    """From the page cache: at depth 1 a call, and a transfer and a wait at times; at depth 32 a batch shares them."""
    target = own(queues=1, options=("--aio", aio))
    calls, ios, table = counted(target, tmp_path, depth, write_percent=writes)
    with capsys.disabled():
        what = "writes" if writes else "reads"
        print(f"\n--aio {aio}, depth {depth}: {calls} system calls for {ios} {what}: {calls / ios:.3f} each")
    assert calls / ios <= limit, table
