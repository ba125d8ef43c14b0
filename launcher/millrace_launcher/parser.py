"""Command line and environment to `Arguments`, as strict as the original's parser.

A flag may be given once, names are never abbreviated, there are no positional arguments, a value may not begin with a
dash unless it is joined by `=`, and the environment is looked at only for flags that the command line does not give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from millrace_launcher.errors import UsageError
from millrace_launcher.flag import NamedFlag
from millrace_launcher.flags import FLAG_TABLE, Arguments


class Information(Enum):
    """Asked for instead of a start."""

    HELP = "help"
    VERSION = "version"


_INFORMATION = {
    "-h": Information.HELP,
    "--help": Information.HELP,
    "-V": Information.VERSION,
    "--version": Information.VERSION,
}


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> Arguments | Information:
    """What the user asked for; `argv` is without the program's name. Raises `UsageError` naming the flag."""
    command_line = _CommandLine(argv)
    information = command_line.read()
    if information is not None:
        return information
    values: dict[str, Any] = {}
    for row in FLAG_TABLE:
        if row.name in command_line.given:
            values[row.name] = command_line.given[row.name]
        elif row.environment is not None and row.environment in environment:
            text = environment[row.environment]
            if text or not row.flag.kind.blank_is_unset:
                values[row.name] = _parsed(row, text, f"the environment variable {row.environment}")
    return Arguments(**values)


def _parsed(row: NamedFlag, text: str, source: str) -> Any:
    try:
        return row.flag.kind.parse(text)
    except ValueError as error:
        shown = "the value" if row.flag.secret else f"'{text}'"
        raise UsageError(f"invalid value {shown} for '{row.long}' from {source}: {error}") from None


class _CommandLine:
    """Reads the words from left to right; `given` holds the parsed value of each flag by its field's name."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._pending = list(reversed(argv))
        self._long = {row.long: row for row in FLAG_TABLE}
        self._short = {"-" + row.flag.short: row for row in FLAG_TABLE if row.flag.short}
        self.given: dict[str, Any] = {}

    def read(self) -> Information | None:
        """Takes all words, or as many as stand before a request for information."""
        while self._pending:
            word = self._pending.pop()
            if word == "--":
                if self._pending:
                    raise _unexpected(self._pending[-1])
            elif word.startswith("--"):
                information = self._read_long(word)
                if information is not None:
                    return information
            elif word.startswith("-") and word != "-":
                information = self._read_short(word)
                if information is not None:
                    return information
            else:
                raise _unexpected(word)
        return None

    def _read_long(self, word: str) -> Information | None:
        name, equals, value = word.partition("=")
        if word in _INFORMATION:
            return _INFORMATION[word]
        row = self._long.get(name)
        if row is None:
            raise _unexpected(name, similar=self._similar(name))
        self._take(row, name, value if equals else None)
        return None

    def _read_short(self, word: str) -> Information | None:
        """`-p 80`, `-p80`, `-p=80`; switches may be joined: `-ep 80`."""
        letters = word[1:]
        while letters:
            name = "-" + letters[0]
            letters = letters[1:]
            if name in _INFORMATION:
                return _INFORMATION[name]
            row = self._short.get(name)
            if row is None:
                raise _unexpected(name)
            if row.flag.kind.takes_value:
                self._take(row, name, letters.removeprefix("=") if letters else None)
                return None
            if letters.startswith("="):
                raise UsageError(f"unexpected value for '{row.long}': the flag takes none")
            self._take(row, name, None)
        return None

    def _take(self, row: NamedFlag, name: str, joined: str | None) -> None:
        kind = row.flag.kind
        if row.name in self.given and not kind.repeats:
            raise UsageError(f"the argument '{row.long}' cannot be used multiple times")
        if not kind.takes_value:
            if joined is not None:
                raise UsageError(f"unexpected value for '{row.long}': the flag takes none")
            self.given[row.name] = True
            return
        text = self._next_value(row, name) if joined is None else joined
        value = _parsed(row, text, "the command line")
        self.given[row.name] = self.given[row.name] + value if row.name in self.given else value

    def _next_value(self, row: NamedFlag, name: str) -> str:
        following = self._pending[-1] if self._pending else None
        if following is None or (following.startswith("-") and following != "-"):
            raise UsageError(f"a value is required for '{name} <{row.flag.kind.placeholder}>' but none was given")
        return self._pending.pop()

    def _similar(self, name: str) -> str | None:
        import difflib

        return next(iter(difflib.get_close_matches(name.replace("_", "-"), self._long, n=1)), None)


def _unexpected(word: str, similar: str | None = None) -> UsageError:
    hint = f"; a similar argument exists: '{similar}'" if similar else ""
    return UsageError(f"unexpected argument '{word}' found{hint}")
