"""The worst steps that `Prepare` promises to survive, as ordinary plans."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from millrace_worker.proto import worker_pb2
from millrace_worker.rows import RowsShape

ANY_TEXT = r"start: /(.|\n)*/"


def prefill_plan(shape: RowsShape, num_tokens: int) -> worker_pb2.StepPlan:
    """One step of `num_tokens` prompt tokens in as few sequences as hold them, every feature of sampling on."""
    counts = [shape.max_sequence_tokens] * (num_tokens // shape.max_sequence_tokens)
    if num_tokens % shape.max_sequence_tokens:
        counts.append(num_tokens % shape.max_sequence_tokens)
    counts = counts[: shape.max_rows]
    plan = worker_pb2.StepPlan(step=1)
    plan.admitted.extend(_admission(shape, row, count) for row, count in enumerate(counts))
    _set_work(plan, starts=[0] * len(counts), counts=counts)
    return plan


def decode_plan(shape: RowsShape, num_rows: int, context: int) -> worker_pb2.StepPlan:
    """A step of `num_rows` rows, each with `context` tokens, one of them computed, every sampling feature on.

    Without pages there is one token: a row's state cannot begin in the middle, and mostly costs the same anywhere."""
    context = context if shape.page_size else 1
    plan = worker_pb2.StepPlan(step=2, released=_bytes(range(shape.max_rows)))
    plan.admitted.extend(_admission(shape, row, context) for row in range(num_rows))
    _set_work(plan, starts=[context - 1] * num_rows, counts=[1] * num_rows)
    return plan


def _admission(shape: RowsShape, row: int, num_tokens: int) -> worker_pb2.Admission:
    """All rows share the same pages: what they hold does not matter, and the pool is still small."""
    return worker_pb2.Admission(
        sequence=row + 1,
        row=row,
        token_ids=_bytes(np.arange(num_tokens) % shape.vocab_size),
        num_prompt_tokens=num_tokens,
        pages=_bytes(range(shape.pages_of(num_tokens))),
        sampling=all_features(shape),
        prompt_logprobs=shape.prompt_logprobs,
    )


def all_features(shape: RowsShape) -> worker_pb2.Sampling:
    """Nothing neutral: every processor runs."""
    return worker_pb2.Sampling(
        do_sample=True,
        seed=1,
        temperature=0.7,
        top_k=max(1, shape.vocab_size // 2),
        top_p=0.9,
        typical_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        count_penalty=0.1,
        watermark=True,
        top_n_tokens=shape.max_top_n_tokens,
        prompt_top_tokens=shape.max_top_n_tokens,
        grammar=ANY_TEXT if shape.grammars else "",
    )


def _set_work(plan: worker_pb2.StepPlan, *, starts: list[int], counts: list[int]) -> None:
    plan.work.rows = _bytes(range(len(starts)))
    plan.work.starts = _bytes(starts)
    plan.work.counts = _bytes(counts)
    plan.work.samples = bytes([1] * len(starts))


def _bytes(values: range | list[int] | np.ndarray | Iterator[int]) -> bytes:
    return np.asarray(list(values), dtype="<u4").tobytes()
