"""How far each rank of the group that starts has come, read from its records: for reminders and the summary."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

# What a rank is at until a record with this field comes, in order.
_STAGES = (
    ("start_ms", "starting"),
    ("import_ms", "importing libraries"),
    ("load_ms", "loading the weights"),
    ("prepare_ms", "loaded, and being prepared by the router (memory budget, KV cache)"),
)

# Fields of the summary with what stands before their values.
_SUMMARY = (
    ("device", "device"),
    ("dtype", "dtype"),
    ("pool_tokens", "KV cache tokens"),
    ("rows", "rows"),  # of a model whose sequences hold no pages
    ("max_sequence_tokens", "longest sequence"),
)


class Progress:
    """The fields of the records of each rank, the latest of each name. Records come from threads of their own."""

    def __init__(self, num_shard: int) -> None:
        self._num_shard = num_shard
        self._lock = threading.Lock()
        self._facts: list[dict[str, Any]] = []
        self.restart()

    def restart(self) -> None:
        """A new group begins; the records of the one before have all come."""
        with self._lock:
            self._facts = [{} for _ in range(self._num_shard)]

    def notice(self, rank: int, fields: Mapping[str, Any]) -> None:
        with self._lock:
            self._facts[rank].update(fields)

    def waiting_for(self) -> str:
        """What is still missing, in words: which ranks are at what, or the router."""
        with self._lock:
            stages = [_stage(facts) for facts in self._facts]
        parts: list[str] = []
        for _, stage in _STAGES:
            ranks = [rank for rank, at in enumerate(stages) if at == stage]
            if ranks:
                parts.append(f"{_named(ranks)} {stage}")
        return "; ".join(parts) or "all ranks are prepared, the router does not answer /health with 200"

    def summary(self) -> str:
        """Device, number format and KV cache as rank 0 has said them, a comma before each."""
        with self._lock:
            facts = dict(self._facts[0])
        return "".join(f", {label} {facts[name]}" for name, label in _SUMMARY if name in facts)


def _stage(facts: Mapping[str, Any]) -> str | None:
    return next((stage for field, stage in _STAGES if field not in facts), None)


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
