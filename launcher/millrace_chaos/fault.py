"""What a fault is: a name, what it needs, what it may do to others, and how one strike of it is done."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from millrace_chaos.connection import Place
from millrace_chaos.load import Load
from millrace_chaos.processes import Processes
from millrace_chaos.watch import Watch


class Needs(Enum):
    """What somebody must have to cause it."""

    URL = "the URL"
    PROCESSES = "the server's processes on this machine"
    ALLOCATOR = "a server that was started with integration-tests/refuse.c"


@dataclass
class Scene:
    """Everything a strike may look at."""

    place: Place
    load: Load
    watch: Watch
    chance: random.Random
    processes: Processes | None = None
    new_tokens: int = 100  # how long an answer may be
    struck_at: float = 0.0  # when the last strike began
    problems: list[str] = field(default_factory=list)

    def own(self) -> Processes:
        assert self.processes is not None, "a fault that needs processes is not begun without them"
        return self.processes

    async def until(self, condition: Callable[[], bool], what: str) -> bool:
        """Waits for it as long as a client would; a problem is noted when it does not come."""
        deadline = time.monotonic() + self.load.manner.patience
        while not condition():
            if time.monotonic() > deadline:
                self.problems.append(f"{what} did not happen within {self.load.manner.patience:g} s")
                return False
            await asyncio.sleep(0.05)
        return True


class Fault(ABC):
    """One kind of fault. A class without state: what it learns belongs to the scene."""

    name: ClassVar[str]
    told: ClassVar[str]
    needs: ClassVar[Needs] = Needs.URL
    rounds: ClassVar[int]  # how many strikes unless told otherwise
    together: ClassVar[int] = 1  # so many strikes run at once
    cuts: ClassVar[bool] = False  # running requests are lost by design, and the documentation says so
    disturbs_health: ClassVar[bool] = False  # whether health has to be false for a time
    in_a_row: ClassVar[int | None] = None  # after so many strikes the server is left in peace for a while

    @abstractmethod
    async def strike(self, scene: Scene) -> None:
        """Causes it once, and returns when its direct consequences are over."""
