"""P6, F30: ten thousand front-ends, one after another: descriptors, mappings and memory at their level."""

import contextlib
import os
import time

from tests.hostile.lean import Lean

CYCLES = 10_000
WARM_UP = 500
# Bytes. A sanitizer keeps what was freed for a while, up to 256 MiB, to know it when it is used again.
GROWTH = 1 << 20 if "VHOSTD_SANITIZED" not in os.environ else 300 << 20


def rss(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_front_ends_come_and_go(own, capsys):
    """F30, S161: connect, negotiate, start, a read in every other life, stop, disconnect."""
    target = own(queues=1)
    with contextlib.ExitStack() as stack:
        lean = Lean(stack, target.socket)
        for n in range(WARM_UP):
            lean.cycle(read=n % 2 == 0)
        target.wait_level()
        before, began = rss(target.pid), time.monotonic()
        for n in range(CYCLES):
            lean.cycle(read=n % 2 == 0)
        took = time.monotonic() - began
        target.wait_level()
        growth = rss(target.pid) - before
    with capsys.disabled():
        print(f"\n{CYCLES} cycles in {took:.1f} s, RSS {before >> 10} KiB and {growth >> 10} KiB more")
    assert growth < GROWTH
    target.check("endurance")
    target.check_calm()


def test_sessions_that_fail_come_and_go(own):
    """S34, P6: five hundred front-ends that are thrown out in the middle, with descriptors in hand."""
    from tests.hostile.attack import frame, raw, table

    target = own(queues=1)
    bad = frame(5, table((0, 4096, 0, 0), (0, 4096, 0, 0)))

    def visits(count):
        with open("/dev/zero", "rb") as file:
            for _ in range(count):
                with raw(target) as connection:
                    import socket

                    socket.send_fds(connection, [bad], [file.fileno()] * 2)
                    assert connection.recv(100) == b""

    visits(100)
    target.wait_level()
    before = rss(target.pid)
    visits(500)
    target.wait_level()
    assert rss(target.pid) - before < GROWTH
