"""A file descriptor with one owner, closed once.

Numbers are reused by the kernel: a descriptor closed twice closes somebody else's the second time, and one closed
never is a leak that a hostile front-end can drive to EMFILE. So each number that enters the process is wrapped at the
door, and from then on exactly one object owns it.
"""

import contextlib
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from vhostd.errors import LocalProtocolError


class Fd:
    """Owns one file descriptor until `close` or `take`.

    Raises LocalProtocolError when the number is asked for after either.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        if number < 0:
            raise LocalProtocolError(f"not a file descriptor: {number}")
        self._number = number

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
        if number >= 0:
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


def own_all(numbers: Iterable[int]) -> tuple[Fd, ...]:
    """Wrap descriptors just received: from here on each has an owner."""
    return tuple(Fd(number) for number in numbers)


def close_all(fds: Iterable[Fd]) -> None:
    """Close each that is not yet closed or given away."""
    for fd in fds:
        fd.close()
