"""What a device costs that has nothing to do, and how soon it is there."""

import os
import statistics
import time
from pathlib import Path

import pytest

from tests.hostile.attack import guest
from tests.support.backends import start_vhostd

SILENCE_S = 2.0
RSS_LIMIT = 35 << 20  # bytes
START_LIMIT_S = 0.6  # the goal is 0.25; machines that test have other work


def switches(pid):
    """Voluntary context switches of each thread: how often it has gone to sleep."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        found[task.name] = int(next(line for line in status.splitlines() if line.startswith("voluntary")).split()[1])
    return found


def status(pid, key):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


@pytest.mark.parametrize("state", ["listening", "connected", "negotiated", "running", "broken"])
def test_an_idle_device_makes_no_wake_ups(own, state, capsys):
    """S151: no thread runs, none wakes."""
    target = own()
    if state == "listening":
        used = silence(target)
    else:
        with guest(target, "running" if state == "broken" else state, queues=4) as session:
            if state == "running":
                for ring in range(4):
                    assert session.reads(ring)
            elif state == "broken":
                session.queue.raw_push(60000)
                session.queue.kick(force=True)
                assert session.broke()
            used = silence(target)
    if state == "running":
        with capsys.disabled():
            print(f"\nidle, started: {used} ns CPU in {SILENCE_S} s, RSS {status(target.pid, 'VmRSS') >> 10} MiB")


def silence(target):
    """Nothing happens for a while; CPU time used, in nanoseconds."""
    time.sleep(0.2)  # what polls after work has stopped, the one late look is over
    before, cpu = switches(target.pid), target.cpu_ns()
    time.sleep(SILENCE_S)
    assert switches(target.pid) == before
    used = target.cpu_ns() - cpu
    assert used == 0
    return used


@pytest.mark.unsanitized("their shadow memory counts as the daemon's")
def test_the_memory_of_one_device(own):
    """RSS with a guest that has read and written through every ring."""
    target = own()
    with guest(target, queues=4) as session:
        for ring in range(4):
            assert session.reads(ring, length=65536)
        own_kib = status(target.pid, "RssAnon") + status(target.pid, "RssFile")  # guest memory is RssShmem
        assert own_kib << 10 <= RSS_LIMIT


def test_the_start(tmp_path, content, capsys):
    """From exec to a socket that answers a connect."""
    image = tmp_path / "disk.raw"
    image.write_bytes(content)
    took = []
    for n in range(5):
        path = tmp_path / f"{n}.sock"
        began = time.monotonic()
        backend = start_vhostd(image, path)
        try:
            import socket

            while True:
                with socket.socket(socket.AF_UNIX) as probe:
                    try:
                        probe.connect(os.fspath(path))
                    except OSError:
                        assert time.monotonic() - began < 10
                        time.sleep(0.001)
                    else:
                        took.append(time.monotonic() - began)
                        break
        finally:
            assert backend.stop() == 0
    with capsys.disabled():
        print(
            f"\nstart to listening: median {statistics.median(took) * 1e3:.0f} ms of {[round(t * 1e3) for t in took]}"
        )
    assert statistics.median(took) < START_LIMIT_S
