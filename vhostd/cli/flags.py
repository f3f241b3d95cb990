"""Flags out of the settings: a setting's key in the file is its flag, its description the help."""

import argparse
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any, NoReturn, TypeVar

import msgspec

from vhostd import config
from vhostd.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


class UsageError(ConfigError):
    """The words are wrong, so the exit code is that of usage."""

    exit_code = 2


class Parser(argparse.ArgumentParser):
    """argparse, which exits with 2 by itself; words in full only, so that a new flag breaks nobody's script."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and where to read on."""
        self.exit(2, f"{self.prog}: {message} (try {self.prog} --help)\n")


def add_settings(
    parser: argparse.ArgumentParser,
    kind: type[msgspec.Struct],
    positional: str = "",
    leave_out: AbstractSet[str] = frozenset(),
) -> None:
    """Give the parser a flag for each setting but those left out; the field `positional` is a word without a flag."""
    for setting in config.settings(kind):
        if setting.field in leave_out:
            continue
        text = setting.purpose.replace("%", "%%")
        if setting.field == positional:
            nargs = None if setting.required else "?"
            parser.add_argument(
                positional, metavar=positional.upper(), help=text, default=argparse.SUPPRESS, nargs=nargs
            )
        elif setting.form == "switch":
            default = "on" if setting.default else "off"
            parser.add_argument(
                f"--{setting.key}",
                dest=setting.field,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=f"{text} [{default}]",
            )
        else:
            shown = "" if setting.default in (None, (), 0) or setting.required else f" [{setting.default}]"
            parser.add_argument(
                f"--{setting.key}",
                dest=setting.field,
                metavar="|".join(setting.choices) or setting.key.rpartition("-")[2].upper(),
                type=_list_of_words if setting.form == "list" else str,
                default=argparse.SUPPRESS,
                help=f"{text}{shown}",
            )


def chosen(found: argparse.Namespace, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the settings that were given, by field."""
    fields = {setting.field for setting in config.settings(kind)}
    return {field: value for field, value in vars(found).items() if field in fields}


def make(kind: type[T], words: dict[str, Any]) -> T:
    """Make the struct. Raises UsageError for a value that cannot be."""
    try:
        return config.from_words(kind, words)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _list_of_words(text: str) -> Iterable[str]:
    return text.split(",")
