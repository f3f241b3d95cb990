"""Unix sockets by path: made with the right owner from the first moment, stale ones cleared, others left alone.

A path is ours when nobody listens behind it: a connection is tried before an old socket is removed, and two daemons
that start at once take turns (a lock on the directory, which leaves no file behind). A symbolic link is never followed.
"""

import asyncio
import collections
import contextlib
import fcntl
import grp
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from vhostd.errors import ConfigError

BACKLOG = 16


class Listener:
    """A listening socket and the path it was bound to; `close` removes the path only while it is still ours."""

    def __init__(self, path: Path, *, mode: int = 0o600, group: str | None = None) -> None:
        """Bind and listen. Raises ConfigError that says why the path cannot be had and what to do."""
        self.path = path
        self._mode = mode
        self._gid = None if group is None else group_id(group)
        self.socket, self._identity = self._bind()

    def is_there(self) -> bool:
        """Whether the path still leads to this socket: someone may have removed or replaced it."""
        return _identity(self.path) == self._identity

    def again(self) -> socket.socket:
        """Make the socket anew at the same path (SIGHUP after the path was lost); the old one is the caller's to close.

        Raises ConfigError as the constructor does; then the old socket is still there.
        """
        if self.is_there():
            self._remove()
        self.socket, self._identity = self._bind()
        return self.socket

    def close(self) -> None:
        """Stop listening; remove the path if it is still ours."""
        self._remove()
        self.socket.close()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self.is_there():
                self.path.unlink()

    def _bind(self) -> tuple[socket.socket, tuple[int, int] | None]:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _turn(self.path):
                _clear(self.path)
                # The file has its mode before it has its name, and connections are refused until listen(), so there
                # is no moment in which anybody else gets in.
                mask = os.umask(0)
                try:
                    os.fchmod(made.fileno(), self._mode)
                    made.bind(str(self.path))
                finally:
                    os.umask(mask)
                try:
                    if self._gid is not None:
                        os.chown(self.path, -1, self._gid, follow_symlinks=False)
                    made.listen(BACKLOG)
                except OSError:
                    self.path.unlink()
                    raise
        except OSError as error:
            made.close()
            raise ConfigError(f"{self.path}: cannot be a socket: {error.strerror}{_advice(error)}") from None
        except BaseException:
            made.close()
            raise
        made.setblocking(False)
        return made, _identity(self.path)


class Acceptor:
    """The connections of a listening socket, one after the other, for one task that takes them.

    Unlike the event loop's sock_accept it can be moved to another socket and cancelled at any moment: nobody who has
    connected is forgotten, and a socket that was let go of is not looked at again.
    """

    def __init__(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._arrived: collections.deque[socket.socket] = collections.deque()
        self._waiting: asyncio.Future[None] | None = None

    async def accept(self) -> socket.socket:
        """Return the next connection. Raises OSError as the system call does."""
        while True:
            await self._something()
            if self._arrived:
                return self._arrived.popleft()
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                return self._listening.accept()[0]

    def turn_away(self) -> None:
        """Take one connection, if there is one, and close it."""
        with contextlib.suppress(OSError):
            self._listening.accept()[0].close()

    def move(self, fresh: socket.socket) -> None:
        """Go on at another socket. Who waits at the old one comes first; then it is closed."""
        fresh.setblocking(False)
        loop = asyncio.get_running_loop()
        old, self._listening = self._listening, fresh
        if self._waiting is not None:
            loop.remove_reader(old)
            loop.add_reader(fresh, self._wake)
        with contextlib.suppress(OSError), old:
            for _ in range(BACKLOG + 1):  # as many as the kernel lets wait
                self._arrived.append(old.accept()[0])
        if self._arrived:
            self._wake()

    def close(self) -> None:
        """Close the socket, and who was not taken."""
        self._listening.close()
        while self._arrived:
            self._arrived.popleft().close()

    async def _something(self) -> None:
        # Always by way of the event loop: whoever connects without a pause leaves others their turn.
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        loop.add_reader(self._listening, self._wake)
        if self._arrived:
            self._wake()
        try:
            await self._waiting
        finally:
            self._waiting = None
            loop.remove_reader(self._listening)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def make_runtime_dir(path: Path) -> None:
    """Make the directory our sockets lie in, if it is missing. Raises ConfigError when that is not allowed."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}; say where with --socket-path") from None


def group_id(group: str) -> int:
    """Return the number of a group given by name or number. Raises ConfigError when there is none."""
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"socket-group: there is no group {group!r} on this machine") from None


def place_of(listening: socket.socket) -> str | None:
    """Return the absolute path of a socket that listens, for whoever is in another directory; None when it has none."""
    name = listening.getsockname()
    if not name or not isinstance(name, str):  # unnamed, or abstract
        return None
    return absolute(name)


def absolute(path: str) -> str:
    """Return a path as it holds in every directory; as it is when our own was removed."""
    with contextlib.suppress(OSError):
        return str(Path(path).absolute())
    return path


def adopt(fd: int) -> tuple[socket.socket, bool]:
    """Take over an inherited descriptor: return the socket, and whether it is connected (else it listens).

    Raises ConfigError for a descriptor that is not open, no unix stream socket, or neither listening nor connected.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConfigError(f"--fd {fd}: is not a socket")
        taken = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"--fd {fd}: {error.strerror}: pass it open, as the descriptor of that number") from None
    try:
        connected = _is_connected(taken)
    except ConfigError:
        taken.detach()
        raise
    os.set_inheritable(fd, False)
    taken.setblocking(False)
    return taken, connected


def _is_connected(taken: socket.socket) -> bool:
    if taken.family != socket.AF_UNIX or taken.type != socket.SOCK_STREAM:
        raise ConfigError(f"--fd {taken.fileno()}: is not a unix stream socket")
    if taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    try:
        taken.getpeername()
    except OSError:
        raise ConfigError(f"--fd {taken.fileno()}: the socket neither listens nor is connected") from None
    return True


def peer(connected: socket.socket) -> tuple[int, int]:
    """Return pid and uid of whoever opened the other end."""
    pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the directory's lock while a path in it is examined and taken."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _clear(path: Path) -> None:
    """Remove a socket nobody listens to. Raises ConfigError for anything else that is in the way."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise ConfigError(f"{path}: is a symbolic link, which is not followed: give the socket's own path")
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path}: is there and is not a socket: remove it, or give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # it listens, and its queue is full
            owner = ""
        else:
            owner = f" (process {peer(probe)[0]})"
    raise ConfigError(f"{path}: another daemon listens there{owner}: stop it, or give another path")


def _advice(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return ": make the directory first"
    if isinstance(error, PermissionError):
        return ": we may not write there, or may not give it to that group"
    return ""
