"""What came of a case, and what a maintainer of the back-end needs to act upon it."""

import enum
from dataclasses import dataclass, field

from vhostd.errors import VhostdError

SENT_MAX = 60  # lines of evidence that are kept: the last ones led to the failure


class Verdict(enum.StrEnum):
    """The five ends of a case."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_OFFERED = "not offered"  # the back-end does not claim to do this
    NEEDS = "needs"  # we were not given what the case takes: a wire, the leave to write
    BROKE_OFF = "broke off"  # the tester could not carry it out


class Fault(enum.StrEnum):
    """In which way a back-end failed."""

    WRONG_ANSWER = "wrong answer"
    CRASH = "crash"
    WEDGE = "wedge"
    FD_LEAK = "fd leak"
    CPU_SPIN = "CPU spin"
    SILENT_RING_ERROR = "silent ring error"


@dataclass
class Evidence:
    """What was sent in words, oldest first, what the rule demands, and what was seen instead."""

    sent: list[str] = field(default_factory=list)
    expected: str = ""
    seen: str = ""
    dropped: int = 0

    def note(self, line: str) -> None:
        """Add a line of what was sent or came back; only the last SENT_MAX are kept."""
        self.sent.append(line)
        if len(self.sent) > SENT_MAX:
            del self.sent[0]
            self.dropped += 1


@dataclass
class Outcome:
    """One case's end; `seconds` it took. `reason` is one line: what is not offered, what is needed, what broke."""

    case_id: str
    verdict: Verdict
    reason: str = ""
    fault: Fault | None = None
    evidence: Evidence = field(default_factory=Evidence)
    seconds: float = 0.0


class Failed(VhostdError):  # noqa: N818 - a verdict, raised to end a case
    """The rule of the case does not hold. `expected` and `seen` are whole phrases."""

    def __init__(self, expected: str, seen: str, fault: Fault = Fault.WRONG_ANSWER) -> None:
        super().__init__(f"expected {expected}; saw {seen}")
        self.expected = expected
        self.seen = seen
        self.fault = fault


class NotOffered(VhostdError):  # noqa: N818
    """The back-end, or the front-end that is imitated, does not do what the case is about; the message says what."""


class Needs(VhostdError):  # noqa: N818
    """The case takes something that we were not given; the message says what to give."""
