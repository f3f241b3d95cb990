"""Log lines: a short lower-case event, the rest in fields; and the rate limit for what a peer can cause at will.

`log.warning("ring broken", extra={"device": "vda", "queue": 1})` prints `ring broken device=vda queue=1`.
On stderr under systemd each line carries its priority (`<4>`), as sd-daemon(3) wants.
"""

import logging
import os
import sys
import time
from typing import IO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_VALUE_LIMIT = 200


def _plain(value: object) -> str:
    """Escape and cap a value: bytes that a guest chose must not forge a line of ours."""
    text = str(value)[:_VALUE_LIMIT]
    if text and all(c.isprintable() and c not in ' "=' for c in text):
        return text
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


class FieldFormatter(logging.Formatter):
    """Event first, then its fields as key=value; sd-daemon priorities when the journal reads us."""

    def __init__(self, *, priorities: bool = False) -> None:
        super().__init__()
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """Return the one line of a record."""
        fields = [f"{k}={_plain(v)}" for k, v in vars(record).items() if k not in _STANDARD]
        line = " ".join([record.getMessage(), *fields])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if self._priorities:
            mark = f"<{_PRIORITY.get(record.levelno, 6)}>"
            return "\n".join(mark + part for part in line.splitlines())
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"vhostd: {level}{line}"


class RateLimit(logging.Filter):
    """Let the same event pass `burst` times in `period` seconds; then say once how many were held back."""

    def __init__(self, burst: int = 10, period: float = 10.0) -> None:
        super().__init__()
        self._burst = burst
        self._period = period
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is printed."""
        if record.levelno >= logging.ERROR and record.exc_info:
            return True
        key = (record.name, record.lineno, str(getattr(record, "device", "")))
        now = time.monotonic()
        start, count = self._seen.get(key, (now, 0))
        if now - start > self._period:
            if count > self._burst:
                record.msg = f"{record.msg} ({count - self._burst} more like it were not printed)"
            start, count = now, 0
        if len(self._seen) > 1024:
            self._seen.clear()
        self._seen[key] = (start, count + 1)
        return count < self._burst


def set_up(level: int = logging.INFO, stream: IO[str] | None = None) -> None:
    """Send the package's log to `stream` (stderr when None)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(FieldFormatter(priorities="JOURNAL_STREAM" in os.environ))
    handler.addFilter(RateLimit())
    root = logging.getLogger("vhostd")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
    logging.raiseExceptions = False  # a full log pipe must not become output of its own
