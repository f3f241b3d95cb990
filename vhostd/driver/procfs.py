"""A back-end's process seen from outside, as far as /proc permits: who it is, its descriptors, its CPU time."""

import contextlib
import os
import socket
import struct
from pathlib import Path


def peer_pid(fd: int) -> int:
    """Return the process that listens at the other end of a connection, 0 when it is in no namespace of ours."""
    with socket.socket(fileno=os.dup(fd)) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def family(pid: int) -> list[int]:
    """Return the process and all below it: a supervisor does no work, its children do."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


def fd_count(pid: int) -> int | None:
    """Return how many descriptors the process and those below it have, None when we may not look."""
    total = 0
    try:
        for each in family(pid):
            total += len(os.listdir(f"/proc/{each}/fd"))  # noqa: PTH208 - only the number
    except OSError:
        return None
    return total


def map_count(pid: int) -> int | None:
    """Return how many mappings of shared memory files they have, None when we may not look."""
    total = 0
    try:
        for each in family(pid):
            total += Path(f"/proc/{each}/maps").read_text().count("/memfd:")
    except OSError:
        return None
    return total


def stolen() -> tuple[int, int] | None:
    """Return how much of the machine's time its host has taken so far, and how much there was, in ticks."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (ticks[7], sum(ticks)) if len(ticks) > 7 else None


def stolen_share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Return the share that the host took between two looks, 0 to 1; None where it cannot be seen."""
    if before is None or after is None:
        return None
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


def cpu_ns(pid: int) -> int:
    """Return the CPU time of all their threads so far, in nanoseconds, exact to the scheduler's clock."""
    total = 0
    for each in family(pid):
        for stat in Path(f"/proc/{each}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(stat.read_text().split()[0])
    return total
