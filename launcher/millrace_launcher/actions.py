"""What the supervisor has done, as values: the shell does what they say."""

from __future__ import annotations

from dataclasses import dataclass

from millrace_launcher.errors import Variant


@dataclass(frozen=True)
class ChildId:
    """`rank` None is the router; a worker also has the generation of its group, counted from 1."""

    rank: int | None
    generation: int = 1

    def __str__(self) -> str:
        return "router" if self.rank is None else f"rank {self.rank}"


ROUTER = ChildId(rank=None)


@dataclass(frozen=True)
class StartRouter:
    pass


@dataclass(frozen=True)
class StartWorkers:
    generation: int


@dataclass(frozen=True)
class Terminate:
    child: ChildId


@dataclass(frozen=True)
class TellEnd:
    """The router is told that there will be no workers any more: its requests get an end instead of waiting."""

    reason: str


@dataclass(frozen=True)
class Kill:
    child: ChildId


@dataclass(frozen=True)
class AskStacks:
    child: ChildId


@dataclass(frozen=True)
class KeepDump:
    """What is known of a hang is to be written down."""

    child: ChildId


@dataclass(frozen=True)
class AnnounceReady:
    """Health was good for the first time."""


@dataclass(frozen=True)
class Say:
    level: str
    message: str


@dataclass(frozen=True)
class Exit:
    """`failure` None: stopped as asked, with exit status `status`."""

    failure: Variant | None
    message: str = ""
    status: int = 0


Action = StartRouter | StartWorkers | Terminate | TellEnd | Kill | AskStacks | KeepDump | AnnounceReady | Say | Exit
