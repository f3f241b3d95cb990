"""`-k EXPR`: which cases are run. Words in `and`, `or`, `not` and parentheses, as pytest has it."""

import re
from collections.abc import Callable, Iterable

from vhostd.driver.conformance.case import Case
from vhostd.errors import ConfigError

_TOKEN = re.compile(r"\s*(\(|\)|[^\s()]+)")


class BadExpression(ConfigError):  # noqa: N818
    """The expression cannot be read."""

    exit_code = 2


def select(cases: Iterable[Case], expression: str) -> list[Case]:
    """Return the cases an expression chooses; a word matches a part of id, chapter, marks, level or kinds.

    An id that is complete matches itself and its rows only. Raises BadExpression.
    """
    found = list(cases)
    if not expression.strip():
        return found
    tokens = [match.group(1) for match in _TOKEN.finditer(expression)]
    ids = {case.id for case in found} | {case.id.partition(".")[0] for case in found}
    holds, rest = _either(tokens, ids)
    if rest:
        raise BadExpression(f"-k {expression}: {rest[0]!r} is too much")
    return [case for case in found if holds(case)]


_Test = Callable[[Case], bool]


def _either(tokens: list[str], ids: set[str]) -> tuple[_Test, list[str]]:
    left, tokens = _both(tokens, ids)
    while tokens and tokens[0].lower() == "or":
        right, tokens = _both(tokens[1:], ids)
        left = _join(left, right, any)
    return left, tokens


def _both(tokens: list[str], ids: set[str]) -> tuple[_Test, list[str]]:
    left, tokens = _one(tokens, ids)
    while tokens and tokens[0].lower() == "and":
        right, tokens = _one(tokens[1:], ids)
        left = _join(left, right, all)
    return left, tokens


def _join(left: _Test, right: _Test, how: Callable[[list[bool]], bool]) -> _Test:
    return lambda case: how([left(case), right(case)])


def _one(tokens: list[str], ids: set[str]) -> tuple[_Test, list[str]]:
    if not tokens:
        raise BadExpression("-k: a word is missing at the end")
    word, rest = tokens[0], tokens[1:]
    if word.lower() == "not":
        inner, rest = _one(rest, ids)
        return lambda case: not inner(case), rest
    if word == "(":
        inner, rest = _either(rest, ids)
        if not rest or rest[0] != ")":
            raise BadExpression("-k: a parenthesis is not closed")
        return inner, rest[1:]
    if word in {"and", "or", ")"}:
        raise BadExpression(f"-k: a word is missing before {word!r}")
    if word in ids:
        return lambda case: case.id == word or case.id.startswith(word + "."), rest
    return lambda case: word.lower() in case.words.lower(), rest
