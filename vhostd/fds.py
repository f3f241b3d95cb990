"""A file descriptor with one owner, closed once.

Numbers are reused by the kernel: a descriptor closed twice closes somebody else's the second time, and one closed
never is a leak that a hostile front-end can drive to EMFILE. So each number that enters the process is wrapped at the
door, and from then on exactly one object owns it.

And to close one can take long: a socket that lingers, a file on FUSE whose server has stopped. What a front-end has
sent and nobody has looked into is closed by a thread of its own.
"""

import array
import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from vhostd.errors import LocalProtocolError


class Fd:
    """Owns one file descriptor until `close` or `take`.

    foreign: somebody else opened it, and what it is has not been seen; its owner may say so when it has.
    Raises LocalProtocolError when the number is asked for after either.
    """

    __slots__ = ("_number", "foreign")

    def __init__(self, number: int, *, foreign: bool = False) -> None:
        if number < 0:
            raise LocalProtocolError(f"not a file descriptor: {number}")
        self._number = number
        self.foreign = foreign

    @property
    def number(self) -> int:
        """The descriptor, for a call that borrows it."""
        if self._number < 0:
            raise LocalProtocolError("file descriptor used after it was closed or given away")
        return self._number

    def fileno(self) -> int:
        """The same, under the name that select, fcntl and os.fstat look for."""
        return self.number

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed or given away."""
        return self._number < 0

    def take(self) -> int:
        """Give the number away: the caller owns it now."""
        number, self._number = self.number, -1
        return number

    def close(self) -> None:
        """Close it; a second time does nothing. An error of close leaves the descriptor closed on Linux."""
        number, self._number = self._number, -1
        if number >= 0 and not (self.foreign and _closer.take(number)):
            with contextlib.suppress(OSError):
                os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fd({self._number})"


class _Closer:
    """A thread that closes, begun when the first such descriptor comes. While one hangs the others wait behind it."""

    def __init__(self) -> None:
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(self, number: int) -> bool:
        """Close it some time. Whether there is a thread to do so."""
        if sys.is_finalizing():
            return False
        if self._thread is None or not self._thread.is_alive():  # a fork leaves threads behind
            self._thread = threading.Thread(target=self._run, name="vhostd-closer", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                return False
        self._numbers.put(number)
        return True

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                os.close(self._numbers.get())


_closer = _Closer()


def own_all(numbers: Iterable[int], *, foreign: bool = False) -> tuple[Fd, ...]:
    """Wrap descriptors just received: from here on each has an owner."""
    return tuple(Fd(number, foreign=foreign) for number in numbers)


def close_all(fds: Iterable[Fd]) -> None:
    """Close each that is not yet closed or given away."""
    for fd in fds:
        fd.close()


def receive(
    connection: socket.socket, length: int, room: int, *, flags: int = 0, foreign: bool = False
) -> tuple[bytes, tuple[Fd, ...], bool]:
    """Return at most `length` bytes, the descriptors that came with them, and whether some of these were lost.

    room: how many descriptors there is room for. What is more is lost, and so is what this process may not have open.
    Raises OSError as recvmsg does.
    """
    # socket.recv_fds drops its flags, and would leave the descriptors inheritable: so recvmsg.
    numbers = array.array("i")
    space = socket.CMSG_SPACE(room * numbers.itemsize)
    data, ancillary, said, _ = connection.recvmsg(length, space, flags | socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
    return data, own_all(numbers, foreign=foreign), bool(said & socket.MSG_CTRUNC)


def rights(numbers: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data of sendmsg that passes these descriptors; none for none."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers).tobytes())] if numbers else []
