"""A scheduler in small: runs sequences through a model in random chunks, over pages that hold NaN until used."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from millrace_worker.kv_pool import KvPool
from millrace_worker.model import Model, in_rows, paged
from millrace_worker.models.encoder_decoder.model import EncoderDecoderModel
from millrace_worker.models.recurrent.model import RecurrentLM
from millrace_worker.step import Batch

PAGE = 16
NUM_PAGES, MAX_ROWS, MAX_CHUNK = 24, 5, 24
MAX_TOKENS = 200  # of a row that keeps what it has read
NOT_A_PAGE = NOT_A_TOKEN = 2**31 - 1  # reading it would fail
Work = tuple[int, int, int]  # sequence, row, count


def pool(model: Model) -> KvPool:
    """The pages of any backend; what lies where in a page is its own affair."""
    found = getattr(getattr(model, "backend", None), "pool", None)
    assert isinstance(found, KvPool)
    return found


class PagedRun:
    """Sequences enter rows, compute in random chunks beside one another, and leave: their pages go back poisoned."""

    def __init__(self, model: Model, *, seed: int) -> None:
        self.model, self.random = model, random.Random(seed)
        self.held: dict[int, list[int]] = {}  # by row, with those that have been returned
        self.device = self._allocate()
        self.free_pages = list(range(NUM_PAGES))
        self._poison(self.free_pages)
        self.random.shuffle(self.free_pages)
        self.free_rows = list(range(MAX_ROWS))
        self.table = np.full((MAX_ROWS, NUM_PAGES), NOT_A_PAGE, dtype=np.int32)
        self.returned: dict[int, int] = {}
        self.prompts: Mapping[int, int] = {}

    def logits(self, sequences: list[list[int]], prompts: Mapping[int, int] | None = None) -> list[torch.Tensor]:
        """[len, vocabulary] of every position of every sequence; on ranks other than 0 the tensors are empty.

        After its first `prompts[i]` tokens, sequence i computes one token in a step.
        """
        self.prompts = prompts = prompts or {}
        waiting, running = list(range(len(sequences))), dict[int, int]()
        done = [0] * len(sequences)
        found: list[list[torch.Tensor]] = [[] for _ in sequences]
        while waiting or running:
            while waiting and self.free_rows and self.random.random() < 0.7:
                running[waiting.pop(0)] = self.free_rows.pop(self.random.randrange(len(self.free_rows)))
            left = [prompts.get(i, len(tokens)) - done[i] for i, tokens in enumerate(sequences)]
            work = self._choose(left, running, done)
            if not work:
                continue
            self._step(sequences, work, done, found)
            for sequence, _, count in work:
                done[sequence] += count
                if done[sequence] == len(sequences[sequence]):
                    self._release(running.pop(sequence))
                else:
                    self._return_unseen(running[sequence], done[sequence])
        return [torch.cat(parts) if parts else torch.empty(0) for parts in found]

    def _choose(self, left: list[int], running: dict[int, int], done: list[int]) -> list[Work]:
        """Who computes now: one token, or a chunk of what is left, if the pages reach."""
        work = []
        for sequence in self.random.sample(list(running), len(running)):
            one = self.random.random() < 0.5 or left[sequence] < 2
            count = 1 if one else min(left[sequence], self.random.randint(2, MAX_CHUNK))
            row = running[sequence]
            if self.random.random() >= 0.2 and self._take_pages(row, done[sequence] + count):
                work.append((sequence, row, count))
        return work

    def _allocate(self) -> torch.device:
        paged(self.model).allocate_kv(NUM_PAGES)
        return pool(self.model).values.device

    def _take_pages(self, row: int, num_tokens: int) -> bool:
        """Whether there were enough."""
        needed = -(-num_tokens // PAGE) - len(self.held.get(row, []))
        if needed > len(self.free_pages):
            return False
        for _ in range(needed):
            pages = self.held.setdefault(row, [])
            self.table[row, len(pages)] = self.free_pages[-1]
            pages.append(self.free_pages.pop())
        return True

    def _step(self, sequences: list[list[int]], work: list[Work], done: list[int], found: list) -> None:
        entries = [(sequence, row, done[sequence], count) for sequence, row, count in work]
        tokens = [token for s, _, start, count in entries for token in sequences[s][start : start + count]]
        positions = [position for _, _, start, count in entries for position in range(start, start + count)]
        batch = Batch(
            rows=np.array([row for _, row, _, _ in entries]),
            starts=np.array([start for _, _, start, _ in entries]),
            counts=np.array([count for _, _, _, count in entries]),
            num_prompt_tokens=np.array([self.prompts.get(s, len(sequences[s])) for s, *_ in entries]),
            page_table=torch.from_numpy(self.table),
            page_table_host=self.table,
            lengths=np.array([len(sequences[sequence]) for sequence, *_ in entries]),
        )
        device = self.device
        order = self._shuffled(len(tokens)) if self.random.random() < 0.5 else None
        inputs = torch.tensor(tokens).to(device), torch.tensor(positions).to(device)
        hidden = self.model.hidden(*inputs, self.model.plan(batch))
        logits = self.model.logits(hidden if order is None else hidden.index_select(0, order.to(device)))
        if logits is None:
            return
        if order is not None:
            logits = torch.empty_like(logits).index_copy_(0, order.to(device), logits)
        for (sequence, _, _, _), part in zip(entries, logits.split([count for *_, count in entries]), strict=True):
            found[sequence].append(part.cpu())

    def _shuffled(self, length: int) -> torch.Tensor:
        return torch.tensor(self.random.sample(range(length), length))

    def _return_unseen(self, row: int, num_computed: int) -> None:
        """Pages before the window of the next token go to others at once; the page table still names them."""
        window = paged(self.model).reach.attention_window
        end = max(0, num_computed - window + 1) // PAGE if window else 0
        unseen = self.held[row][self.returned.get(row, 0) : end]
        self.returned[row] = max(end, self.returned.get(row, 0))
        self._poison(unseen)
        self.free_pages[:0] = unseen

    def _release(self, row: int) -> None:
        pages = self.held.pop(row)[self.returned.pop(row, 0) :]
        self._poison(pages)
        self.free_pages[:0] = pages
        self.table[row] = NOT_A_PAGE
        self.free_rows.append(row)

    def _poison(self, pages: list[int]) -> None:
        pool(self.model).values[:, pages] = float("nan")


def states(model: Model) -> list[torch.Tensor]:
    """What a state is made of is the model's own; the first dimension is that of rows."""
    if isinstance(model, EncoderDecoderModel):
        held = model._states
        assert held
        return [held.prompts, held._kv.transpose(0, 1)]
    if isinstance(model, RecurrentLM):
        return [state for each in model._rows for state in (each.tails, each.states)]
    return []  # transformers' caches, made anew for each sequence


class RowsRun(PagedRun):
    """The same where states lie in rows: those of sequences that have left, and of all before the first, hold NaN."""

    def _allocate(self) -> torch.device:
        in_rows(self.model).allocate_rows(MAX_ROWS, MAX_TOKENS)
        self._states = states(self.model)
        for row in range(MAX_ROWS):
            self._poison_row(row)
        return self._states[0].device if self._states else torch.device("cpu")

    def _take_pages(self, row: int, num_tokens: int) -> bool:
        return True

    def _return_unseen(self, row: int, num_computed: int) -> None:
        pass

    def _release(self, row: int) -> None:
        self._poison_row(row)
        self.free_rows.append(row)

    def _poison(self, pages: list[int]) -> None:
        pass

    def _poison_row(self, row: int) -> None:
        for state in self._states:
            state[row] = float("nan") if state.is_floating_point() else NOT_A_TOKEN


def run(model: Model, *, seed: int) -> PagedRun:
    return (PagedRun if model.page_size else RowsRun)(model, seed=seed)
