"""What a descriptor is, in a word or two, without ever waiting for it.

The kernel is asked, never the file: fstat of a file on FUSE waits for whoever serves it. The name comes from /proc; a
size only where the file takes seals, which is memory of the kernel's own.
"""

import fcntl
import os

from vhostd.spec import render

_DELETED = " (deleted)"


def describe(number: int) -> str:
    """Return `memfd:NAME 16MiB`, `eventfd`, `socket`, a path ...; `closed` for a number that is not open."""
    try:
        name = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 - a name, not a path
    except OSError:
        return "closed"
    if name.startswith("anon_inode:"):
        return name.removeprefix("anon_inode:").strip("[]")
    kind, colon, _ = name.partition(":[")
    if colon and "/" not in kind:  # socket:[1234], pipe:[1234]
        return kind
    name = name.removesuffix(_DELETED).removeprefix("/") if name.startswith("/memfd:") else name
    try:
        fcntl.fcntl(number, fcntl.F_GET_SEALS)
    except OSError:
        return name
    return f"{name} {render.size(os.fstat(number).st_size)}"
