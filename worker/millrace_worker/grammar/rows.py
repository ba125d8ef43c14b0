"""The grammars of the rows: a matcher each, and the masks of a step, made in another thread during the forward pass.

A matcher's mask says which tokens go on in the grammar, and by one more bit whether the text may end here. A row's end
tokens stand for that bit in the row's mask:

    the grammar goes on            its tokens, and the end tokens where it accepts (not before `min_new_tokens`)
    nothing can follow any more    the end tokens alone, however often; special tokens where no token ends a text

Who owns what: the compute thread owns everything here, but from `begin` to `apply` the mask thread owns the matchers,
what it has to tell them (`RowGrammar`) and the masks.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLExecutor, LLMatcher

from millrace_worker.grammar.masks import Masks, bits
from millrace_worker.grammar.matchers import AMBIGUOUS, GrammarError, Matchers, reason
from millrace_worker.grammar.row import RowGrammar

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from millrace_worker.grammar.vocabulary import Vocabulary
    from millrace_worker.proto import worker_pb2
    from millrace_worker.sampling.workspace import Workspace

ANYTHING = np.uint32(0xFFFFFFFF)

# Masks are made by so many threads beside a device that computes. A CPU's cores are busy with the model: there the mask
# thread makes them itself, for waking another one costs more of the model's time than all the masks of a step.
DEVICE_THREADS = 8


@dataclass
class _Step:
    """The rows of a step that have a grammar, in its order: `places` among all rows that sample, `positions` of what
    they sample. `errors` by row."""

    rows: list[int]
    places: NDArray[np.int64]
    positions: list[int]
    errors: dict[int, str] = field(default_factory=dict)


class GrammarRows:
    """The grammars of up to `max_rows` rows; most rows have none. `failures`: the rows whose grammar has failed, and
    why, until they are cleared: they are sampled as if they had none."""

    def __init__(self, max_rows: int, vocabulary: Vocabulary, vocab_size: int, workspace: Workspace) -> None:
        """`vocab_size` is the width of the scores, whatever the tokenizer has."""
        num_threads = DEVICE_THREADS if workspace.device.type == "cuda" else 1
        self.failures: dict[int, str] = {}
        self._constrained = np.zeros(max_rows, dtype=np.bool_)
        self._rows: dict[int, RowGrammar] = {}
        self._step: tuple[_Step, Future[None]] | None = None
        self._end, num_words = vocabulary.end, vocabulary.num_words
        self._vocab_size = vocab_size
        sayable = set(range(min(vocab_size, vocabulary.end))).difference(vocabulary.odd)
        self._possible = bits(sayable, num_words)
        self._hidden = [token for token in vocabulary.hidden if token < vocab_size]
        self._matchers = Matchers(vocabulary, num_threads)
        self._executor = LLExecutor(num_threads) if num_threads > 1 else None
        self._thread = ThreadPoolExecutor(1, "masks")
        self._masks = Masks(max_rows, num_words, vocab_size, workspace)

    def admit(self, row: int, sampling: worker_pb2.Sampling, num_prompt_tokens: int, output: list[int]) -> None:
        """The row's sequence has a grammar, and already `output` after its prompt: both are read in other threads."""
        self._settle()
        ids = np.frombuffer(sampling.end_token_ids, dtype="<u4").tolist()
        ids = [token for token in ids if token < min(self._vocab_size, self._end)] or self._hidden
        self._constrained[row] = True
        self._rows[row] = RowGrammar(
            grammar=sampling.grammar,
            compiled=self._matchers.compiled(sampling.grammar),
            ends=bits(ids, self._masks.words.shape[1]),
            end_ids=frozenset(ids),
            opens_at=num_prompt_tokens + sampling.min_new_tokens,
            position=num_prompt_tokens + len(output),
            output=output,
        )

    def clear(self, rows: NDArray[np.int64]) -> None:
        """These rows have no grammar any more."""
        cleared = rows[self._constrained[rows]]
        if not len(cleared):
            return
        self._settle()
        self._constrained[cleared] = False
        for row in cleared.tolist():
            self._rows.pop(row, None)
            self.failures.pop(row, None)

    def begin(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Makes the masks, from now on and in another thread, of those of `rows` [R] that have a grammar; the tokens
        that will be sampled stand at `positions` [R]."""
        self._settle()
        if not self._rows:
            return
        places = np.flatnonzero(self._constrained[rows])
        if self.failures:
            places = places[~np.isin(rows[places], np.fromiter(self.failures, dtype=np.int64))]
        if len(places):
            step = _Step(rows[places].tolist(), places, positions[places].tolist())
            self._step = step, self._thread.submit(self._make_masks, step)

    def apply(self, logits_RV: Tensor) -> None:
        """Waits for the masks and makes impossible what they forbid, in place; the rows are those of `begin`."""
        if self._step is None:
            return
        step, made = self._step
        made.result()
        self._masks.apply(logits_RV, step.places)
        self.failures |= step.errors

    def advance(self, token_ids_R: Tensor) -> None:
        """What was sampled, of the rows of `begin`."""
        if self._step is None:
            return
        step, _ = self._step
        self._step = None
        ids = token_ids_R.cpu().numpy()[step.places].tolist()
        for row, token in zip(step.rows, ids, strict=True):
            self._rows[row].append(token)

    def _settle(self) -> None:
        """A step that failed between `begin` and `apply`: its thread must let go of the matchers first."""
        if self._step is not None:
            self._step[1].exception()
            self._step = None

    # What follows runs in the mask thread.

    def _make_masks(self, step: _Step) -> None:
        going_on: list[tuple[LLMatcher, int]] = []
        for slot, (row, position) in enumerate(zip(step.rows, step.positions, strict=True)):
            state = self._rows[row]
            try:
                if state.position != position:
                    raise GrammarError(f"position {position} was to be sampled, but the grammar is at {state.position}")
                matcher = self._told(state)
                if not state.ended:
                    going_on.append((matcher, slot))
            except GrammarError as error:
                step.errors[row] = str(error)
        self._fill(going_on)
        failed = [(matcher, slot) for matcher, slot in going_on if matcher.is_error()]
        full = [(self._rows[step.rows[slot]], slot) for matcher, slot in failed if AMBIGUOUS not in matcher.get_error()]
        for state, slot in full:
            try:
                self._fill([(state.reread(self._matchers), slot)])
            except GrammarError as error:
                step.errors[step.rows[slot]] = str(error)
        for slot, (row, position) in enumerate(zip(step.rows, step.positions, strict=True)):
            try:
                if row not in step.errors:
                    self._finish(self._rows[row], position, self._masks.words[slot])
            except GrammarError as error:
                step.errors[row] = str(error)
            if row in step.errors:
                self._masks.words[slot] = ANYTHING

    def _told(self, state: RowGrammar) -> LLMatcher:
        try:
            return state.read()
        except GrammarError:
            return state.reread(self._matchers)

    def _fill(self, matchers: list[tuple[LLMatcher, int]]) -> None:
        words = self._masks.words
        address, stride = words.ctypes.data, words.strides[0]
        if self._executor is not None and matchers:
            self._executor.unsafe_compute_mask_ptr(matchers, address, stride, len(words))
            return
        for matcher, slot in matchers:
            matcher.unsafe_compute_mask_ptr(address + slot * stride, stride)

    def _finish(self, state: RowGrammar, position: int, mask: NDArray[np.uint32]) -> None:
        """The matcher's mask becomes the row's, in place. Raises GrammarError."""
        if state.ended:
            mask[:] = state.ends
        else:
            if state.matcher is None or state.matcher.is_error():
                why = "it has no matcher" if state.matcher is None else reason(state.matcher)
                raise GrammarError(f"the grammar cannot go on: {why}")
            may_end = bool(mask[self._end // 32] >> (self._end % 32) & 1)
            mask &= self._possible
            if may_end and (position >= state.opens_at or not mask.any()):
                mask |= state.ends
        if not mask.any():
            raise GrammarError("no token of the model goes on in the grammar")
