"""What was seen as lines: for people, or an object of JSON each."""

import json
from collections.abc import Iterator
from typing import IO, Any

from vhostd.proxy.record import Channel, Event, Fields, Seen, Side
from vhostd.spec import render
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, VERSION_MASK, HeaderFlag

BYTES_SHOWN = 32
_PLAIN, _REQUEST, _REPLY, _ODD, _FAINT = "", "36", "32", "31", "2"


class Lines:
    """A line for each message and event. Times are seconds since the first of them."""

    def __init__(self, out: IO[str], *, colour: bool) -> None:
        self._out = out
        self._colour = colour
        self._began_ns = 0

    def seen(self, record: Seen) -> None:
        """Print a message."""
        arrow = "->" if record.sender is Side.FRONT_END else "<-"
        channel = "b" if record.channel is Channel.BACKEND else " "
        number = f"#{record.number}" if record.number else "#-"
        name = record.request or f"{len(record.data)} bytes"
        odd = bool(record.problem or record.notes or record.fault)
        hue = _ODD if odd else _REPLY if record.is_reply else _REQUEST
        words = [f"{self._clock(record.time_ns)} {record.connection}{channel}{number:>5} {arrow}", self._in(hue, name)]
        words += _rest(record)
        self._line(" ".join(words))

    def event(self, event: Event) -> None:
        """Print an event."""
        self._line(self._in(_FAINT, f"{self._clock(event.time_ns)} {event.connection}  ---- {event.text}"))

    def text(self, lines: Iterator[str]) -> None:
        """Print lines as they are."""
        for line in lines:
            self._line(line)

    def _clock(self, time_ns: int) -> str:
        self._began_ns = self._began_ns or time_ns
        return f"{(time_ns - self._began_ns) / 1e9:12.6f}"

    def _in(self, hue: str, text: str) -> str:
        return f"\x1b[{hue}m{printable(text)}\x1b[0m" if self._colour and hue else printable(text)

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def _rest(record: Seen) -> Iterator[str]:
    if record.code is None:
        yield f"[{record.problem}] {_shown(record.data)}"
    else:
        flags = (record.flags or 0) & ~VERSION_MASK & ~FLAG_REPLY
        if flags & FLAG_NEED_REPLY:
            yield "(needs a reply)"
        if flags & ~FLAG_NEED_REPLY:
            yield f"(flags {flags & ~FLAG_NEED_REPLY:#x})"
        if record.is_reply:
            took = "" if record.took_ns is None else f" after {duration(record.took_ns)}"
            yield f"reply{took}"
        if record.fields:
            yield printable(words(record.fields))
        if record.problem:
            yield printable(f"[{record.problem}] {_shown(record.data[12:])}")
    if record.fds:
        yield printable(f"fds: {', '.join(record.fds)}")
    if record.fault_words:
        yield f"** {printable(record.fault_words)}"
    for note in record.notes:
        yield printable(f"[{note}]")


def words(fields: Fields) -> str:
    """Return fields as `key=value key=value`; lists in brackets."""
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{words(value)}}}"
    if isinstance(value, list):
        return f"[{', '.join(words(item) if isinstance(item, dict) else _value(item) for item in value)}]"
    return str(value)


def duration(time_ns: int) -> str:
    """Return a time in the unit that suits it."""
    if time_ns < 1_000_000:
        return f"{time_ns / 1e3:.0f} us"
    return f"{time_ns / 1e6:.1f} ms" if time_ns < 1_000_000_000 else f"{time_ns / 1e9:.2f} s"


def printable(text: str) -> str:
    """Return text in which nothing steers the terminal: peers choose names."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def _shown(data: bytes) -> str:
    more = f" and {len(data) - BYTES_SHOWN} more" if len(data) > BYTES_SHOWN else ""
    return data[:BYTES_SHOWN].hex() + more


class JsonLines:
    """An object a line; its keys are those of docs/proxy.md."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def seen(self, record: Seen) -> None:
        """Print a message."""
        self.object(as_object(record))

    def event(self, event: Event) -> None:
        """Print an event."""
        self.object(
            {"event": event.kind, "time": event.time_ns / 1e9, "connection": event.connection, "text": event.text}
        )

    def object(self, value: dict[str, Any]) -> None:
        """Print an object."""
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()


def as_object(record: Seen) -> dict[str, Any]:
    """Return a message as JSON has it; every key is there, null where there is nothing to say."""
    whole = record.code is not None
    return {
        "event": "message" if whole else "bytes",
        "time": record.time_ns / 1e9,
        "connection": record.connection,
        "channel": "main" if record.channel is Channel.MAIN else "backend",
        "from": record.sender.words,
        "number": record.number or None,
        "kind": ("reply" if record.is_reply else "request") if whole else None,
        "request": record.request or None,
        "code": record.code,
        "version": (record.flags or 0) & VERSION_MASK if whole else None,
        "flags": render.flags((record.flags or 0) & ~VERSION_MASK, HeaderFlag) if whole else None,
        "size": len(record.data) - 12 if whole else len(record.data),
        "device": record.device.name.lower() if record.device is not None else None,
        "fields": record.fields,
        "problem": record.problem or None,
        "fds": list(record.fds),
        "took_us": None if record.took_ns is None else record.took_ns / 1e3,
        "fault": record.fault_words or None,
        "notes": list(record.notes),
        "data": record.data.hex(),
    }
