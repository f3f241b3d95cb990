"""Kick, call and error descriptors: only eventfds are taken, pipes to call by, and only without blocking."""

import contextlib
import fcntl
import os

from vhostd.errors import RemoteProtocolError
from vhostd.fds import Fd

_FDINFO = "/proc/self/fdinfo"
_directory: list[int] = []


def prepare() -> None:
    """Open what `take_eventfd` looks things up in, before /proc goes out of reach."""
    if not _directory:
        _directory.append(os.open(_FDINFO, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def take_eventfd(fd: Fd, what: str) -> Fd:
    """Take an eventfd out of a message, and make it non-blocking.

    Whatever else could be passed can block a worker (a full pipe), make it spin (a file at its end), or carry our eight
    bytes to where they were not expected (a socket). Raises RemoteProtocolError naming `what`; the message keeps it
    then.
    """
    prepare()
    is_eventfd = False
    with contextlib.suppress(OSError):
        info = os.open(str(fd.number), os.O_RDONLY | os.O_CLOEXEC, dir_fd=_directory[0])
        try:
            is_eventfd = b"eventfd-count:" in os.read(info, 4096)
        finally:
            os.close(info)
    if not is_eventfd:
        raise RemoteProtocolError(f'{what}: the fd is not an eventfd (vhost-user, "Communication")')
    # The flag is the open file's, so the front-end's copy gets it, too; front-ends write and read theirs so anyway.
    os.set_blocking(fd.number, False)
    return Fd(fd.take())


def is_pipe_to_write(fd: Fd) -> bool:
    """Whether a descriptor is the write end of a pipe; asked so that nobody who serves a file is waited for."""
    try:
        fcntl.fcntl(fd.number, fcntl.F_GETPIPE_SZ)
        return fcntl.fcntl(fd.number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    except OSError:
        return False


def take_call(fd: Fd, what: str) -> Fd:
    """Take an eventfd, or the write end of a pipe: User-Mode Linux has no signal from an eventfd.

    A full pipe is a call that waits there already, as a full counter is. Raises RemoteProtocolError as `take_eventfd`.
    """
    if not is_pipe_to_write(fd):
        return take_eventfd(fd, what)
    os.set_blocking(fd.number, False)
    return Fd(fd.take())


def drain(fd: Fd) -> None:
    """Set an eventfd's counter to 0, without waiting even if the front-end has made it a blocking one meanwhile."""
    with contextlib.suppress(OSError):  # there is nothing to read, or a kernel cannot read so
        os.preadv(fd.number, [bytearray(8)], -1, os.RWF_NOWAIT)
