"""What a step computes, as its plan says: which sequences, from where on, how many tokens of each.

While the same sequences go on, plans differ in where these start: what follows from the rest (`Layout`) is worked out
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from millrace_worker.proto import worker_pb2

    Column = np.ndarray[tuple[int], np.dtype[np.int64]]
    Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


class PlanError(ValueError):
    """A plan that contradicts what this rank holds. It fails whole: the router's book-keeping is wrong."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Who computes how many tokens: one entry per sequence, columns of one length B on the host.

    `samples`: whether the token after an entry's last one is chosen.
    """

    rows: Column
    counts: Column
    samples: Flags

    @cached_property
    def num_tokens(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def samples_all(self) -> bool:
        """Of every entry a token is chosen."""
        return bool(self.samples.all())

    @cached_property
    def sampled_rows(self) -> Column:
        """[R]"""
        return self.rows[self.samples]


@dataclass(frozen=True, eq=False)
class Work:
    """A layout, and at which position each of its entries starts (int64 [B])."""

    layout: Layout
    starts: Column

    @cached_property
    def ends(self) -> Column:
        """One past the last position of each entry."""
        return self.starts + self.layout.counts

    @property
    def sampled_positions(self) -> Column:
        """[R]: where the chosen tokens will stand."""
        return self.ends if self.layout.samples_all else self.ends[self.layout.samples]

    def select(self, kept: Flags) -> Work:
        """The entries where `kept` is true."""
        layout = self.layout
        return Work(Layout(layout.rows[kept], layout.counts[kept], layout.samples[kept]), self.starts[kept])


class WorkReader:
    """Reads the work of one stream's plans; keeps the last layout."""

    def __init__(self) -> None:
        self._key: tuple[bytes, bytes, bytes] | None = None
        self._layout: Layout | None = None

    def read(self, plan: worker_pb2.StepPlan) -> Work:
        """Raises PlanError when the columns do not have one length."""
        work = plan.work
        key = (work.rows, work.counts, work.samples)
        layout, starts = self._layout, column(work.starts)
        if layout is None or key != self._key:
            samples = np.frombuffer(work.samples, dtype=np.uint8).astype(np.bool_)
            layout = Layout(column(work.rows), column(work.counts), samples)
        lengths = (len(layout.rows), len(starts), len(layout.counts), len(layout.samples))
        if len(set(lengths)) != 1:
            raise PlanError(f"work columns rows, starts, counts, samples have lengths {lengths}")
        self._key, self._layout = key, layout
        return Work(layout, starts)


def column(data: bytes) -> Column:
    """A packed column of little-endian u32 values as int64. Raises PlanError for bytes that are no whole values."""
    if len(data) % 4:
        raise PlanError(f"a column of {len(data)} bytes is not a whole number of 4-byte values")
    return np.frombuffer(data, dtype="<u4").astype(np.int64)
