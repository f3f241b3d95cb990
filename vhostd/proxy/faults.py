"""Rules that break a connection on purpose: which message, and what happens to it.

    ACTION [at] [backend] [reply] MESSAGE [TIME] [once]

ACTION is drop, delay or disconnect. MESSAGE is a request's name (each one), a name and a number (`SET_VRING_KICK 2`:
the second one), a number (`12`: the request that the proxy prints as #12), or `*` (each). `reply` means the reply to
it, `backend` the back-end channel. TIME, for delay only, has its unit: 200ms, 1.5s, 50us. `once`: in the first
connection in which it happens only. A rule looks at the messages of each connection anew, and at nothing else, so that
the same traffic has the same faults.
"""

import re
from dataclasses import dataclass, field

from vhostd.errors import ConfigError
from vhostd.proxy.record import Channel, Fault
from vhostd.spec.vhost_user import BackendRequest, FrontendRequest

FORM = "ACTION [at] [backend] [reply] MESSAGE [TIME] [once]"
_ACTIONS = {"drop": Fault.DROP, "delay": Fault.DELAY, "disconnect": Fault.DISCONNECT}
_TIME = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
DELAY_MAX_S = 3600.0


@dataclass(frozen=True)
class Rule:
    """One rule. `code`: the request's number, None for any; `number`, `nth`: which one, 0 for any."""

    text: str
    action: Fault
    channel: Channel
    on_reply: bool
    code: int | None
    number: int = 0
    nth: int = 0
    delay_s: float = 0.0
    once: bool = False

    def fits(self, channel: Channel, *, is_reply: bool, code: int, number: int, nth: int) -> bool:
        """Say whether it is about this message. nth: how many of its kind there were in the connection, with it."""
        return (
            (self.channel, self.on_reply) == (channel, is_reply)
            and self.code in (None, code)
            and self.number in (0, number)
            and self.nth in (0, nth)
        )


@dataclass(frozen=True)
class Verdict:
    """What happens to a message, by all rules together."""

    fault: Fault = Fault.NONE
    delay_s: float = 0.0
    words: str = ""


@dataclass
class Faults:
    """The rules of a run. `used`: those said `once`, and the connection in which they happened."""

    rules: tuple[Rule, ...] = ()
    _used: dict[Rule, int] = field(default_factory=dict)

    def judge(self, connection: int, channel: Channel, *, is_reply: bool, code: int, number: int, nth: int) -> Verdict:
        """Say what happens to a message: delays add up, in order, until a rule drops it or ends the connection."""
        delay_s = 0.0
        for rule in self.rules:
            if not rule.fits(channel, is_reply=is_reply, code=code, number=number, nth=nth):
                continue
            if rule.once and self._used.setdefault(rule, connection) != connection:
                continue
            if rule.action is Fault.DELAY:
                delay_s += rule.delay_s
                continue
            words = "dropped" if rule.action is Fault.DROP else "disconnected"
            return Verdict(rule.action, delay_s, f"{words} by {rule.text!r}")
        if delay_s:
            return Verdict(Fault.DELAY, delay_s, f"delayed by {delay_s * 1e3:g} ms")
        return Verdict()


def parse(text: str) -> Rule:
    """Return the rule that `text` is. Raises ConfigError that says which word is wrong and what may stand there."""
    words = text.split()
    action = _ACTIONS.get(words.pop(0).lower()) if words else None
    if action is None:
        raise _wrong(text, f"it begins with one of {', '.join(_ACTIONS)}")
    _skip(words, "at")
    channel = Channel.BACKEND if _skip(words, "backend") else Channel.MAIN
    on_reply = _skip(words, "reply")
    if not words:
        raise _wrong(text, "it says no message: a name, a number, or *")
    code, number = _message(text, words.pop(0), channel)
    nth = 0
    if code is not None and words and words[0].isdecimal():
        nth = _positive(text, words.pop(0))
    delay_s = 0.0
    if action is Fault.DELAY:
        if not words:
            raise _wrong(text, "a delay needs its time, as 200ms, 1.5s or 50us")
        delay_s = _time(text, words.pop(0))
    once = _skip(words, "once")
    if words:
        raise _wrong(text, f"{words[0]!r} is too much")
    return Rule(" ".join(text.split()), action, channel, on_reply, code, number, nth, delay_s, once)


def _message(text: str, word: str, channel: Channel) -> tuple[int | None, int]:
    if word == "*":
        return None, 0
    if word.isdecimal():
        return None, _positive(text, word)
    names = FrontendRequest if channel is Channel.MAIN else BackendRequest
    try:
        return int(names[word.upper()]), 0
    except KeyError:
        whose = "front-end" if channel is Channel.MAIN else "back-end"
        other = BackendRequest if channel is Channel.MAIN else FrontendRequest
        hint = ""
        if word.upper() in other.__members__:
            hint = f"; the other end has: {'put' if channel is Channel.MAIN else 'leave out'} `backend` before it"
        raise _wrong(text, f"a {whose} has no request {word!r}{hint}") from None


def _time(text: str, word: str) -> float:
    found = _TIME.fullmatch(word.lower())
    if found is None:
        raise _wrong(text, f"{word!r} is no time; write 200ms, 1.5s or 50us")
    seconds = float(found[1]) * _UNIT_S[found[2]]
    if not 0 < seconds <= DELAY_MAX_S:
        raise _wrong(text, f"a delay is more than 0 and at most {DELAY_MAX_S:g}s")
    return seconds


def _positive(text: str, word: str) -> int:
    if len(word) > 9 or int(word) < 1:
        raise _wrong(text, f"{word} is no number of a message: they count from 1")
    return int(word)


def _skip(words: list[str], word: str) -> bool:
    if words and words[0].lower() == word:
        del words[0]
        return True
    return False


def _wrong(text: str, why: str) -> ConfigError:
    return ConfigError(f"--fault {text!r}: {why}. The form is {FORM}")
