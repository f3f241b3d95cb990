"""Counts what was seen, for the end: how many of each, and the replies that took longest."""

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any

from vhostd.proxy.output import duration
from vhostd.proxy.record import Channel, Event, Fault, Seen

SLOWEST = 5
UNKNOWN = "(no known request)"


class Summary:
    """Grows with the names there are, not with what passes."""

    def __init__(self) -> None:
        self.connections = 0
        self.messages = 0
        self.data_len = 0
        self.fds = 0
        self.faults = 0
        self.undecoded = 0
        self.requests: Counter[str] = Counter()
        self._took: dict[str, tuple[int, int, int]] = {}  # replies, sum and longest, in ns
        self._slowest: list[tuple[int, int, int, str]] = []  # took_ns, connection, number, name

    def seen(self, record: Seen) -> None:
        """Count a message."""
        self.messages += record.code is not None
        self.data_len += len(record.data)
        self.fds += len(record.fds)
        self.faults += record.fault is not Fault.NONE
        self.undecoded += bool(record.problem)
        if record.code is None:
            return
        name = UNKNOWN if " " in record.request else record.request
        if record.channel is Channel.BACKEND and name == UNKNOWN:
            name = f"BACKEND_{UNKNOWN}"
        if not record.is_reply:
            self.requests[name] += 1
        elif record.took_ns is not None:
            count, total, longest = self._took.get(name, (0, 0, 0))
            self._took[name] = count + 1, total + record.took_ns, max(longest, record.took_ns)
            heapq.heappush(self._slowest, (record.took_ns, record.connection, record.number, name))
            if len(self._slowest) > SLOWEST:
                heapq.heappop(self._slowest)

    def event(self, event: Event) -> None:
        """Count a connection."""
        self.connections += event.kind == "open"

    def as_object(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "event": "summary",
            "connections": self.connections,
            "messages": self.messages,
            "bytes": self.data_len,
            "fds": self.fds,
            "faults": self.faults,
            "undecoded": self.undecoded,
            "requests": {
                name: {
                    "count": count,
                    "replies": self._took.get(name, (0, 0, 0))[0],
                    "mean_us": self._mean_ns(name) / 1e3 if name in self._took else None,
                    "max_us": self._took[name][2] / 1e3 if name in self._took else None,
                }
                for name, count in sorted(self.requests.items())
            },
            "slowest": [
                {"took_us": took / 1e3, "connection": connection, "number": number, "request": name}
                for took, connection, number, name in sorted(self._slowest, reverse=True)
            ],
        }

    def lines(self) -> Iterator[str]:
        """Yield it for people."""
        yield (
            f"{self.connections} connections, {self.messages} messages, {self.data_len} bytes, {self.fds} descriptors"
            + (f", {self.faults} met a rule" if self.faults else "")
            + (f", {self.undecoded} not decoded" if self.undecoded else "")
        )
        if self.requests:
            width = max(map(len, self.requests))
            yield f"{'REQUEST':{width}}  {'COUNT':>6}  {'REPLIES':>7}  {'MEAN':>9}  {'LONGEST':>9}"
            for name, count in self.requests.most_common():
                replies, _, longest = self._took.get(name, (0, 0, 0))
                times = (duration(self._mean_ns(name)), duration(longest)) if replies else ("-", "-")
                yield f"{name:{width}}  {count:>6}  {replies:>7}  {times[0]:>9}  {times[1]:>9}"
        if self._slowest:
            slowest = sorted(self._slowest, reverse=True)
            yield "slowest replies: " + ", ".join(
                f"{name} {duration(took)} (connection {connection}, #{number})"
                for took, connection, number, name in slowest
            )

    def _mean_ns(self, name: str) -> int:
        count, total, _ = self._took[name]
        return total // count
