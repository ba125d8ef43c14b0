"""Where a model keeps what later steps need of a sequence: in a pool of pages, or in the rows. `Prepare` sizes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from millrace_worker.memory import PoolAsk, Room, RowsAsk, size_pool, size_rows
from millrace_worker.model import in_rows, paged

if TYPE_CHECKING:
    from millrace_worker.model import Model, PagedModel, RowModel
    from millrace_worker.proto import worker_pb2


# What the trial's rows may take together: a CPU gives their memory as it is touched, and takes it back only later.
TRIAL_ROWS_BYTES = 256 << 20


@dataclass(frozen=True)
class StoreSize:
    """`num_pages` 0: there are none."""

    max_rows: int
    max_sequence_tokens: int
    num_pages: int


@dataclass(frozen=True)
class Trial:
    """The largest steps that `Prepare` tries: so many tokens of prompts; so many rows of one token, each after
    `context` - 1 others, at most `longest`."""

    longest: int
    tokens: int
    rows: int
    context: int


class Store(Protocol):
    page_bytes: int  # of all layers; 0 where there are no pages

    def trial_size(self, trial: Trial, request: worker_pb2.PrepareRequest, room: Room) -> StoreSize:
        """Just enough for the trial. `room` is what there is before it."""
        ...

    def size(self, request: worker_pb2.PrepareRequest, room: Room) -> StoreSize:
        """What `room` gives. Raises DoesNotFitError."""
        ...

    def allocate(self, size: StoreSize) -> None:
        """An earlier store is dropped first."""
        ...

    def num_bytes(self, size: StoreSize) -> int: ...

    def touched_bytes(self, size: StoreSize) -> int:
        """Of a store of this size, what a CPU's trial takes from the machine by using it: not a workspace."""
        ...


class PageStore:
    """Rows cost nothing here: there are as many as are asked for."""

    def __init__(self, model: PagedModel) -> None:
        self._model, self.page_bytes = model, model.page_bytes()

    def trial_size(self, trial: Trial, request: worker_pb2.PrepareRequest, room: Room) -> StoreSize:  # noqa: ARG002
        num_tokens = min(trial.longest, max(trial.tokens, trial.context))
        return StoreSize(request.max_rows, trial.longest, -(-num_tokens // self._model.page_size))

    def size(self, request: worker_pb2.PrepareRequest, room: Room) -> StoreSize:
        ask = PoolAsk(
            page_size=self._model.page_size,
            page_bytes=self.page_bytes,
            max_rows=request.max_rows,
            max_positions=self._model.max_positions,
            max_sequence_tokens=request.max_sequence_tokens,
            max_pool_tokens=request.max_pool_tokens,
            attention_window=self._model.reach.attention_window,
        )
        pool = size_pool(ask, room.pool_bytes, exact=room.exact)
        return StoreSize(request.max_rows, pool.max_sequence_tokens, pool.num_pages)

    def allocate(self, size: StoreSize) -> None:
        self._model.allocate_kv(size.num_pages)

    def num_bytes(self, size: StoreSize) -> int:
        return size.num_pages * self.page_bytes

    def touched_bytes(self, size: StoreSize) -> int:  # noqa: ARG002 - a small part of the pool, counted as a reserve
        return 0


class RowStore:
    """A state in every row, and as many rows as fit."""

    page_bytes = 0

    def __init__(self, model: RowModel) -> None:
        self._model = model

    def trial_size(self, trial: Trial, request: worker_pb2.PrepareRequest, room: Room) -> StoreSize:
        fit = self.size(request, room)
        longest = fit.max_sequence_tokens
        prompts = -(-trial.tokens // longest)
        affordable = max(1, TRIAL_ROWS_BYTES // self._model.row_bytes(longest))
        return StoreSize(min(max(trial.rows, prompts), fit.max_rows, affordable), longest, 0)

    def size(self, request: worker_pb2.PrepareRequest, room: Room) -> StoreSize:
        ask = RowsAsk(
            row_bytes=self._model.row_bytes,
            max_rows=request.max_rows,
            max_positions=self._model.max_positions,
            max_sequence_tokens=request.max_sequence_tokens,
        )
        rows = size_rows(ask, room.pool_bytes)
        return StoreSize(rows.max_rows, rows.max_sequence_tokens, 0)

    def allocate(self, size: StoreSize) -> None:
        self._model.allocate_rows(size.max_rows, size.max_sequence_tokens)

    def num_bytes(self, size: StoreSize) -> int:
        return size.max_rows * self._model.row_bytes(size.max_sequence_tokens)

    def touched_bytes(self, size: StoreSize) -> int:
        return self.num_bytes(size)


def store_of(model: Model) -> Store:
    return PageStore(paged(model)) if model.page_size else RowStore(in_rows(model))
