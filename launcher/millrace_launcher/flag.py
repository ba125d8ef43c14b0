"""The types of the flag table: what one row says. The table itself is `flags.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from millrace_launcher.values import ValueKind


class Group(Enum):
    """Headings of `--help` and of the documentation, in order."""

    MODEL = "Model"
    WORKERS = "Workers and memory"
    REQUESTS = "Limits of one request"
    BATCHING = "Batching"
    HTTP = "HTTP server"
    OPERATION = "Logs and operation"


class Status(Enum):
    SERVED = "served"
    NO_EFFECT = "accepted, nothing to do"
    REFUSED = "refused"


class Target(Enum):
    """Whose command line repeats the flag under the same name."""

    ROUTER = "router"
    WORKER = "worker"


@dataclass(frozen=True)
class Flag:
    """One row of the table; name and default are the field's.

    `default_text` describes a default that is worked out at start (the field itself then is None). `note` says why a
    flag is refused or has no effect. `harmless` lists values of a refused flag that ask for nothing and so pass;
    `refused` those of a served flag that do not, for the reason that `note` says.
    `secret` values never reach a command line or a log.
    """

    group: Group
    kind: ValueKind
    help: str
    default_text: str | None = None
    short: str | None = None
    has_environment: bool = True
    status: Status = Status.SERVED
    note: str = ""
    harmless: tuple[Any, ...] = ()
    refused: tuple[Any, ...] = ()
    targets: tuple[Target, ...] = ()
    secret: bool = False


@dataclass(frozen=True)
class NamedFlag:
    """A row with its name: `name` is the field of `Arguments`."""

    name: str
    default: Any
    flag: Flag

    @property
    def long(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str | None:
        return self.name.upper() if self.flag.has_environment else None


def row(default: Any, flag: Flag) -> Any:
    """A field of `Arguments` that carries its flag."""
    return field(default=default, metadata={"flag": flag})
