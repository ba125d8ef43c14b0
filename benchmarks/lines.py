"""How a side that runs in process is asked: one JSON line a batch on its stdin, one JSON line back.

Standard library only: peers import it in environments of their own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Ran:
    """A greedy batch: its seconds, each stream's seconds to the first token, the generated ids."""

    seconds: float
    first_token_seconds: list[float]
    ids: list[list[int]]


def answer(run: Callable[[list[list[int]], int], Ran]) -> None:
    """Says `ready`, then runs every batch (prompts as token ids, tokens to generate) until stdin ends."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    print("ready", file=channel, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(asdict(run(asked["prompts"], asked["new_tokens"]))), file=channel, flush=True)
