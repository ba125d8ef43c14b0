"""From what a step computed to its `StepResult`: the one place where tensors become bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from millrace_worker.proto import worker_pb2

if TYPE_CHECKING:
    from millrace_worker.inputs import PromptInputs
    from millrace_worker.rows import Rows
    from millrace_worker.sampling import PromptScores, Sampled, TopTokens
    from millrace_worker.work import Flags, Work

# What stands for the token of a sequence that failed.
NO_TOKEN = 0xFFFFFFFF


class Stopwatch:
    """Where a step's time went, in microseconds of this host's clock.

    On a GPU the forward pass is only launched in `forward`; waiting for it falls to whoever first reads a result.
    """

    def __init__(self, timings: worker_pb2.Timings) -> None:
        self._started = self._last = time.perf_counter()
        self._timings = timings

    def lap(self, name: str) -> None:
        """The time since the last lap is that of the named field of `Timings`."""
        now = time.perf_counter()
        setattr(self._timings, name, round((now - self._last) * 1e6))
        self._last = now

    def stop(self) -> None:
        self._timings.total_us = round((time.perf_counter() - self._started) * 1e6)


def add_tokens(
    result: worker_pb2.StepResult, work: Work, rows: Rows, living: Flags | None, sampled: Sampled | None
) -> None:
    """One id and logprob per sampling entry of `work`; NO_TOKEN where `living` is false, the grammar has failed or the
    scores were not numbers.

    `sampled` holds the living entries only, in the plan's order.
    """
    samples, sampled_rows = work.layout.samples, work.layout.sampled_rows
    num_answers = len(sampled_rows)
    if not num_answers:
        return
    # Answers of the sampled entries: all of them, but for those that are not living.
    places = None if living is None else np.flatnonzero(living[samples])
    token_ids, logprobs = _columns(sampled, num_answers, places)
    if sampled is not None:
        if rows.grammars.failures:
            left = np.isin(sampled_rows, np.fromiter(rows.grammars.failures, dtype=np.int64))
            token_ids[left], logprobs[left] = NO_TOKEN, 0.0
        are_numbers = np.isfinite(logprobs)
        if np.count_nonzero(are_numbers) < num_answers:
            token_ids[~are_numbers], logprobs[~are_numbers] = NO_TOKEN, 0.0
            for row in sampled_rows[~are_numbers].tolist():
                add_failure(result, rows, row, "the model's scores are not numbers")
        if sampled.top_tokens is not None:
            _add_top_tokens(result, num_answers, places, sampled.top_tokens)
    result.token_ids = token_ids.tobytes()
    result.logprobs = logprobs.tobytes()


def _columns(sampled: Sampled | None, num_answers: int, places: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and logprobs of all answers. `places`: of those that were sampled; None: every one was."""
    if sampled is not None and places is None:
        return sampled.token_ids.cpu().numpy().astype("<u4"), sampled.logprobs.cpu().numpy().astype("<f4")
    token_ids = np.full(num_answers, NO_TOKEN, dtype="<u4")
    logprobs = np.zeros(num_answers, dtype="<f4")
    if sampled is not None:
        token_ids[places] = sampled.token_ids.cpu().numpy()
        logprobs[places] = sampled.logprobs.cpu().numpy()
    return token_ids, logprobs


def _add_top_tokens(result: worker_pb2.StepResult, num_answers: int, places: np.ndarray | None, top: TopTokens) -> None:
    counts = np.zeros(num_answers, dtype="<u4")
    counts[slice(None) if places is None else places] = np.asarray(top.counts)
    result.top_tokens.counts = counts.tobytes()
    result.top_tokens.token_ids = np.asarray(top.ids).astype("<u4").tobytes()
    result.top_tokens.logprobs = np.asarray(top.logprobs).astype("<f4").tobytes()


def add_prompt_logprobs(
    result: worker_pb2.StepResult, prompt: PromptInputs, living: Flags | None, scores: PromptScores
) -> None:
    """`prompt.entries` count among the living entries; the answer counts among all of the plan."""
    entries = prompt.entries if living is None else np.flatnonzero(living)[prompt.entries]
    result.prompt_logprobs.work = entries.astype("<u4").tobytes()
    result.prompt_logprobs.counts = prompt.counts.astype("<u4").tobytes()
    result.prompt_logprobs.logprobs = scores.logprobs.cpu().numpy().astype("<f4", copy=False).tobytes()
    most = scores.top_ids.shape[1]
    if most:
        counts_P = np.minimum(np.repeat(prompt.num_top, prompt.counts), most)
        told_PK = np.arange(most) < counts_P[:, None]
        top = result.prompt_logprobs.top_tokens
        top.counts = counts_P.astype("<u4").tobytes()
        top.token_ids = scores.top_ids.cpu().numpy()[told_PK].astype("<u4").tobytes()
        top.logprobs = scores.top_logprobs.cpu().numpy()[told_PK].astype("<f4", copy=False).tobytes()


def add_failure(result: worker_pb2.StepResult, rows: Rows, row: int, message: str) -> None:
    result.failed.append(worker_pb2.Failure(sequence=int(rows.sequences[row]), message=message))
