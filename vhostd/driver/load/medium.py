"""The image that back-ends are compared on, and the page cache in one state before each round."""

import contextlib
import os
from pathlib import Path

from vhostd.driver.load.errors import BenchError

_PIECE_LEN = 1 << 20
_PAGE_LEN = 4096


class Medium:
    """A raw image of `length` bytes at `path`, made when it is not there, and removed at the end if we made it."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.length = length
        self.made = not path.exists()
        self._state: tuple[str, str] | None = None

    def prepare(self, cache: str, folios: str) -> None:
        """Have the image in the page cache ("hot") or not at all ("cold"), in "small" or "large" folios.

        ext4 caches what is written in one go in large folios, and walks all their buffer heads on each small write:
        an image that was just installed is slow to write through read and write calls. Folios stay what they are
        until the cache is dropped, so a hot image is laid out again only for another state. What the round before has
        written is on the disk in any case: else it would be written during the next one, who would pay for it.
        Raises BenchError when the image cannot be written.
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BenchError(f"{self.path}: {error.strerror}; name a file to write with --image") from error
        try:
            self._fill(fd)
            os.fsync(fd)
            if self._state != (cache, folios) or cache == "cold":
                self._lay_out(fd, cache, folios)
        except OSError as error:
            raise BenchError(f"{self.path}: {error.strerror}; choose another --dir or --image-size") from error
        finally:
            os.close(fd)
        self._state = (cache, folios)

    def _fill(self, fd: int) -> None:
        if self.made and os.fstat(fd).st_size != self.length:
            for offset in range(0, self.length, _PIECE_LEN):
                os.pwrite(fd, os.urandom(min(_PIECE_LEN, self.length - offset)), offset)
        self.length = os.fstat(fd).st_size

    def _lay_out(self, fd: int, cache: str, folios: str) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if cache == "cold":
            return
        if folios == "large":
            for offset in range(0, self.length, _PIECE_LEN):
                os.pwrite(fd, os.pread(fd, _PIECE_LEN, offset), offset)
            os.fsync(fd)
        else:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, self.length, _PAGE_LEN):
                os.pread(fd, _PAGE_LEN, offset)

    def remove(self) -> None:
        """Remove the image, if it is ours."""
        if self.made:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
