"""`vhostd proxy` as a process, and payloads of every kind."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from vhostd.protocol import messages
from vhostd.protocol.wire import encode

COMMAND = [sys.executable, "-m", "vhostd.cli.main", "proxy"]
START_S, STOP_S = 10, 10


class Proxy:
    """A running proxy that prints JSON; `stop` returns its exit code."""

    def __init__(self, listen, connect, *words, wait=True):
        self.socket = Path(listen)
        self.log = Path(f"{listen}.jsonl")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*COMMAND, str(listen), str(connect), "--json", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        deadline = time.monotonic() + START_S
        while wait and not self.socket.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "the proxy does not listen"
            time.sleep(0.02)

    @property
    def pid(self):
        return self.process.pid

    def records(self):
        """All that it has printed so far, but for a line that is not whole."""
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def messages(self, **wanted):
        """The messages that have these values."""
        return [r for r in self.records() if r["event"] == "message" and all(r[k] == v for k, v in wanted.items())]

    def until(self, condition, what, timeout=10):
        """Wait until `condition` holds for what was printed; return it."""
        deadline = time.monotonic() + timeout
        while not (found := condition(self.records())):
            assert time.monotonic() < deadline, f"{what}:\n{self.log.read_text()}"
            time.sleep(0.02)
        return found

    def said(self, count, **wanted):
        """The first `count` messages that have these values, once they are printed."""
        self.until(lambda _: len(self.messages(**wanted)) >= count, f"there are no {count} messages {wanted}")
        return self.messages(**wanted)[:count]

    def open_fds(self):
        """How many descriptors it has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def payload_of(kind, seed):
    """A payload of a kind that is valid and has numbers in it that `seed` chooses."""
    rng = random.Random(seed)
    if kind is messages.Empty:
        return b""
    if kind is messages.VringFd:
        return encode(messages.VringFd(rng.randrange(256), rng.random() < 0.5))
    if kind is messages.MemTable:
        count = rng.randrange(9)
        return struct.pack("<II", count, 0) + rng.randbytes(32 * count)
    if kind is messages.Config:
        offset, size = rng.choice([(0, 60), (0, 12), (32, 1), (8, 16), (200, 56)])
        return struct.pack("<III", offset, size, rng.randrange(3)) + rng.randbytes(size)
    if kind is messages.Opaque:
        return rng.randbytes(rng.randrange(200))
    return rng.randbytes(kind.LENGTHS[0])


class Kept:
    """Keeps what it is told."""

    def __init__(self):
        self.records, self.events = [], []

    def seen(self, record):
        self.records.append(record)

    def event(self, event):
        self.events.append(event)
