"""A step's batch as index arrays: which slots are written, which pages gathered together, who sees what.

Rows that compute one token are gathered in groups, padded to the longest of the group. A row reads no page but its own:
padding repeats its own last page, so that what one sequence computes cannot reach another, not even as NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace_worker.attention.interface import ScoreRule
from millrace_worker.step import Batch

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """How rows are grouped: pages that one gather may hold; padded pages that are cheaper than a further group."""

    group_pages: int
    spare_pages: int


@dataclass(frozen=True)
class DecodeGroup:
    """Rows of one token each that are attended together."""

    tokens: slice | Ints  # which of the step's tokens
    pages: Ints  # [B, P]
    begins: Ints  # [B]: the first key that each row sees, counted from its first page
    ends: Ints  # [B]: one past the last, which is the query's own position

    @property
    def num_keys(self) -> int:
        """Keys of the padded rows that anybody sees: at most P * page_size."""
        return int(self.ends.max())

    @property
    def sees_all(self) -> bool:
        """Every row sees all `num_keys` keys."""
        return not self.begins.any() and int(self.ends.min()) == self.num_keys


@dataclass(frozen=True)
class Chunk:
    """Several successive tokens of one row: positions start .. start + count, keys from position `first_key` on."""

    tokens: slice
    pages: Ints  # [P]
    start: int
    first_key: int


def token_positions(batch: Batch) -> Ints:
    """[T] int64: the position of each token in its sequence."""
    counts, starts = batch.counts, batch.starts
    if len(counts) and int(counts.max()) == 1:
        return starts
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(starts - before, counts)


def token_slots(batch: Batch, positions: Ints, page_size: int) -> Ints:
    """[T] int64: where each token's K and V go."""
    rows = batch.rows if len(positions) == len(batch.rows) else np.repeat(batch.rows, batch.counts)
    pages = batch.page_table_host[rows, positions // page_size].astype(np.int64)
    return pages * page_size + positions % page_size


def begun_pages(batch: Batch, page_size: int) -> Ints:
    """Pages whose first slot this step writes but whose last it does not: what they held before must not be read."""
    ends = batch.starts + batch.counts
    last = (ends - 1) // page_size
    begun = (last * page_size >= batch.starts) & (ends % page_size != 0)
    return batch.page_table_host[batch.rows[begun], last[begun]].astype(np.int64)


def decode_groups(batch: Batch, rule: ScoreRule, page_size: int, limits: Limits) -> list[DecodeGroup]:
    """The rows that compute one token, in groups of similar length."""
    entries = np.flatnonzero(batch.counts == 1)
    if not len(entries):
        return []
    rows, lengths = batch.rows[entries], batch.starts[entries] + 1
    first_seen = np.maximum(lengths - rule.window, 0) if rule.window else np.zeros_like(lengths)
    first_page, last_page = first_seen // page_size, (lengths - 1) // page_size
    tokens = entries if len(entries) == len(batch.rows) else (np.cumsum(batch.counts) - batch.counts)[entries]
    groups = []
    for members in group_by_length(last_page - first_page + 1, limits):
        first, last = first_page[members], last_page[members]
        reach = np.arange(int((last - first).max()) + 1)
        pages = batch.page_table_host[rows[members, None], np.minimum(first[:, None] + reach, last[:, None])]
        shift = first * page_size
        begins, ends = first_seen[members] - shift, lengths[members] - shift
        groups.append(DecodeGroup(_as_slice(tokens[members]), pages.astype(np.int64), begins, ends))
    return groups


def group_by_length(num_pages: Ints, limits: Limits) -> Iterator[Ints]:
    """Indices of rows in groups whose padding costs less than the work of a further group.

    Rows are sorted into classes by length (two to an octave), so that the loop is over a few classes, not over rows.
    """
    longest = int(num_pages.max())
    if len(num_pages) * longest - int(num_pages.sum()) <= limits.spare_pages:
        yield from _bounded(np.arange(len(num_pages)), longest, limits)
        return
    classes = np.ceil(2 * np.log2(num_pages)).astype(np.int64)
    members: list[Ints] = []
    for each in np.unique(classes)[::-1]:
        indices = np.flatnonzero(classes == each)
        padding = len(indices) * longest - int(num_pages[indices].sum())
        if members and padding > limits.spare_pages:
            yield from _bounded(np.sort(np.concatenate(members)), longest, limits)
            members = []
        if not members:
            longest = int(num_pages[indices].max())
        members.append(indices)
    yield from _bounded(np.sort(np.concatenate(members)), longest, limits)


def _bounded(indices: Ints, longest: int, limits: Limits) -> Iterator[Ints]:
    """`indices` in parts that fit into one gather."""
    size = max(1, limits.group_pages // longest)
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def chunks(batch: Batch, rule: ScoreRule, page_size: int) -> list[Chunk]:
    """The rows that compute several tokens, each on its own."""
    found = []
    offsets = np.cumsum(batch.counts) - batch.counts
    for entry in np.flatnonzero(batch.counts > 1):
        start, count, offset = int(batch.starts[entry]), int(batch.counts[entry]), int(offsets[entry])
        first_page = max(0, start - rule.window + 1) // page_size if rule.window else 0
        last_page = (start + count - 1) // page_size
        pages = batch.page_table_host[batch.rows[entry], first_page : last_page + 1].astype(np.int64)
        found.append(Chunk(slice(offset, offset + count), pages, start, first_page * page_size))
    return found


def _as_slice(tokens: Ints) -> slice | Ints:
    """A slice when the tokens follow one another: it costs no gather."""
    first, last = int(tokens[0]), int(tokens[-1])
    return slice(first, last + 1) if last - first + 1 == len(tokens) else tokens
