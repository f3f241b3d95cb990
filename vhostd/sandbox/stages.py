"""The stages of giving up, in their order (docs/design.md, "Trust")."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterable
from pathlib import Path

import prctl

from vhostd.errors import ConfigError

# A device of 256 queues holds three eventfds for each ring, up to 509 memory regions, and a few more.
FILES = 4096


def begin(device: str, parent: int | None = None) -> None:
    """Name the process after its device; die when `parent`, the process that made us, does.

    Raises ConfigError when the parent is gone already: its death can no longer be heard of.
    """
    prctl.set_name(f"vhostd:{device}"[:15])
    prctl.set_proctitle(f"vhostd: {device}")
    if parent is not None:
        # A clean end is bounded in time, so the polite signal is enough.
        prctl.set_pdeathsig(signal.SIGTERM)
        if os.getppid() != parent:
            raise ConfigError("the supervisor went while this device process began")


def limit() -> None:
    """Set what the process may use: no core files (they would hold guest memory), files enough for every ring."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(PermissionError):  # a service manager's filter may have it so
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor that is not listed: what a parent left open must not reach a guest's process."""
    last = -1
    for fd in sorted(set(keep)):
        if last + 1 < fd:  # of an empty range, CPython 3.11 makes one without end
            os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, 1 << 30)


def keep_group(gid: int | None) -> None:
    """Let go of all supplementary groups but the one that sockets are given to; a plain user's groups stay."""
    with contextlib.suppress(PermissionError):
        os.setgroups([] if gid is None else [gid])


def lock_down() -> None:
    """Give up every capability for good, and the ways back to them; no other process may look inside.

    Raises ConfigError when the kernel does not do it.
    """
    try:
        # The bounding set can only be emptied while we still may; a plain user never could, and has nothing in it.
        with contextlib.suppress(PermissionError):
            prctl.capbset.limit()
        if _has_capabilities():  # else a service manager's filter may refuse even to give up what is not there
            prctl.cap_inheritable.limit()
            prctl.cap_effective.limit()
            prctl.cap_permitted.limit()
        prctl.set_no_new_privs(1)
        prctl.set_dumpable(0)
    except OSError as error:
        raise ConfigError(f"privileges cannot be given up: {error.strerror}") from None


def _has_capabilities() -> bool:
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    return any(int(words[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
