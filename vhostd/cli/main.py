"""Finds the verb."""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence

from vhostd import __version__
from vhostd.errors import ConfigError, ControlError, VhostdError

FAILED, USAGE, NO_DAEMON, NOT_PERMITTED, INVALID = 1, 2, 3, 4, 6

# verb: module, function, help. The module is imported when its verb is said.
VERBS: dict[str, tuple[str, str, str]] = {
    "blk": ("vhostd.cli.serve", "block", "serve one disk"),
    "net": ("vhostd.cli.serve", "net", "serve one network card"),
    "serve": ("vhostd.cli.serve", "file", "serve every device of a TOML file"),
    "status": ("vhostd.cli.ask", "status", "devices, their guests and queues; lines for QEMU and libvirt"),
    "stats": ("vhostd.cli.ask", "stats", "counters"),
    "check": ("vhostd.cli.check", "main", "hold any back-end to the vhost-user document and to virtio"),
    "proxy": ("vhostd.cli.proxy", "main", "pass on what a front-end and a back-end say, and print it decoded"),
    "bench": ("vhostd.cli.bench", "main", "drive any back-end, a disk or a card, with load"),
    "demo": ("vhostd.cli.demo", "main", "boot a Linux guest on a disk and a network card"),
}

CAPABILITIES = {
    "block": {"type": "block", "features": ["read-only", "blk-file"]},
    "net": {"type": "net"},
}


def main(words: Sequence[str] | None = None) -> int:
    """Carry out the command line; return the exit code."""
    words = sys.argv[1:] if words is None else words
    verb = words[0] if words else ""
    if verb in VERBS:
        module, function, _ = VERBS[verb]
        return guarded(lambda: getattr(importlib.import_module(module), function)(list(words[1:])))
    if "--version" in words:
        print(f"vhostd {__version__}")
        return 0
    if "--print-capabilities" in words:
        print(json.dumps(list(CAPABILITIES.values())))
        return 0
    if verb in ("-h", "--help", "help"):
        print(_usage())
        return 0
    complaint = f"vhostd: there is no verb {verb!r}" if verb else "vhostd: a verb is missing"
    print(f"{complaint}\n\n{_usage()}", file=sys.stderr)
    return USAGE


def guarded(run: Callable[[], int]) -> int:
    """Carry out a verb; turn what it raises into one line on stderr and an exit code."""
    try:
        return run()
    except VhostdError as error:
        print(f"vhostd: {error}", file=sys.stderr)
        return _code_of(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain at exit, flushing what is left.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _code_of(error: VhostdError) -> int:
    code = getattr(error, "exit_code", None)
    if code is not None:
        return int(code)
    if isinstance(error.__context__, PermissionError) or isinstance(getattr(error, "os_error", None), PermissionError):
        return NOT_PERMITTED
    if isinstance(error, ControlError):
        return FAILED
    return INVALID if isinstance(error, ConfigError) else FAILED


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, (_, _, text) in VERBS.items())
    return (
        "usage: vhostd VERB ...\n\nvirtual disks and network cards for VM monitors, served over vhost-user\n\n"
        f"{verbs}\n\n  --version, --print-capabilities; VERB --help says more\n\n"
        "exit codes: 0 done, 1 failed, 2 wrong words, 3 no daemon answers, 4 not permitted, 6 invalid configuration"
    )


if __name__ == "__main__":
    sys.exit(main())
