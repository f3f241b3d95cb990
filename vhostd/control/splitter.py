"""A stream of bytes to whole JSON objects: QMP clients send no newline, so braces are counted."""

import re

from vhostd.errors import ControlError

_MARKS = re.compile(rb'["\\{}\[\]]')
_BLANKS = b" \t\r\n"


class Splitter:
    """Collects bytes and hands out each object when its last brace has come. It decodes nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0  # bytes of the buffer that were looked at
        self._depth = 0
        self._in_text = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the objects that are now whole.

        Raises ControlError, and forgets what it holds, for bytes that begin no object and for an object longer than
        the limit (in bytes): the stream may go on after it.
        """
        self._buffer += data
        found = []
        try:
            while (end := self._next_end()) is not None:
                found.append(bytes(self._buffer[:end]))
                del self._buffer[:end]
                self._seen = 0
        except ControlError:
            self._buffer.clear()
            self._seen, self._depth, self._in_text = 0, 0, False
            raise
        return found

    def _next_end(self) -> int | None:
        """Return the index behind the first whole object, or None."""
        if self._depth == 0:
            blanks = len(self._buffer) - len(self._buffer.lstrip(_BLANKS))
            del self._buffer[:blanks]
            if self._buffer and self._buffer[0] != ord("{"):
                raise ControlError("JSON parse error: a command is an object, and begins with {")
        while mark := _MARKS.search(self._buffer, self._seen):
            self._seen = mark.end()
            sign = mark[0]
            if sign == b"\\":
                # The next byte is part of the text. When it has not come yet, look at the backslash again later.
                if self._seen >= len(self._buffer):
                    self._seen -= 1
                    return None
                self._seen += 1
            elif sign == b'"':
                self._in_text = not self._in_text
            elif not self._in_text:
                self._depth += 1 if sign in b"{[" else -1
                if self._depth == 0:
                    break
        else:
            self._seen = len(self._buffer)
        if self._seen > self._limit:
            raise ControlError(f"a command has at most {self._limit} bytes")
        return self._seen if self._depth == 0 and self._seen else None
