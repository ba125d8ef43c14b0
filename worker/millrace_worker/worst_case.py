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
    plan = worker_pb2.StepPlan(step=1, released=_bytes(range(shape.max_rows)))
    plan.admitted.extend(_admission(shape, row, count) for row, count in enumerate(counts))
    _set_work(plan, starts=[0] * len(counts), counts=counts)
    return plan


def long_prompt_plans(shape: RowsShape, num_tokens: int) -> list[worker_pb2.StepPlan]:
    """Steps that bring a prompt of `num_tokens`, each as much of it as it may."""
    plans = []
    for start in range(0, num_tokens, shape.max_step_tokens):
        plan = worker_pb2.StepPlan(step=1)
        if start == 0:
            plan.released = _bytes(range(shape.max_rows))
            plan.admitted.append(_admission(shape, 0, num_tokens))
        count = min(shape.max_step_tokens, num_tokens - start)
        _set_work(plan, starts=[start], counts=[count])
        plan.work.samples = bytes([start + count == num_tokens])
        plans.append(plan)
    return plans


def late_prefill_plan(shape: RowsShape, num_tokens: int, context: int) -> worker_pb2.StepPlan:
    """The last `num_tokens` of a prompt of `context`: what attention makes of all that stands before. No scores."""
    start = context - num_tokens if shape.page_size else 0
    plan = worker_pb2.StepPlan(step=2, released=_bytes(range(shape.max_rows)))
    plan.admitted.append(_admission(shape, 0, context))
    _set_work(plan, starts=[start], counts=[num_tokens])
    plan.work.samples = b"\0"
    return plan


def decode_plans(shape: RowsShape, num_rows: int, context: int) -> list[worker_pb2.StepPlan]:
    """Steps of `num_rows` rows, each with `context` tokens, one of them computed: every sampling feature on in all
    rows, in none, in every second one (a block of rows is copied then). The first copies as many pages as it may.

    Without pages there is one token: a row's state cannot begin in the middle, and mostly costs the same anywhere."""
    context = context if shape.page_size else 1
    rows = range(num_rows)
    plans = []
    for step, plain in enumerate(([], rows, rows[::2]), start=3):
        plan = worker_pb2.StepPlan(step=step, released=_bytes(range(shape.max_rows)))
        plan.admitted.extend(_admission(shape, row, context, plain=row in plain) for row in rows)
        _set_work(plan, starts=[context - 1] * num_rows, counts=[1] * num_rows)
        plans.append(plan)
    if shape.page_size:
        plans[0].copies.sources = plans[0].copies.targets = _bytes([0] * num_rows)
    return plans


def mixed_plan(shape: RowsShape, num_rows: int, num_tokens: int) -> worker_pb2.StepPlan:
    """A step of `num_tokens`: a token of each of `num_rows` rows but the last, whose prompt begins with all others."""
    count = min(num_tokens - num_rows + 1, shape.max_sequence_tokens)
    plan = worker_pb2.StepPlan(step=6, released=_bytes(range(shape.max_rows)))
    counts = [1] * (num_rows - 1) + [count]
    plan.admitted.extend(_admission(shape, row, tokens) for row, tokens in enumerate(counts))
    _set_work(plan, starts=[0] * num_rows, counts=counts)
    return plan


def _admission(shape: RowsShape, row: int, num_tokens: int, *, plain: bool = False) -> worker_pb2.Admission:
    """All rows share the same pages, again and again: what they hold does not matter, and the pool is still small."""
    pages = np.arange(shape.pages_of(num_tokens)) % max(1, shape.num_pages)
    return worker_pb2.Admission(
        sequence=row + 1,
        row=row,
        token_ids=_bytes(np.arange(num_tokens) % shape.vocab_size),
        num_prompt_tokens=num_tokens,
        pages=_bytes(pages),
        sampling=no_features() if plain else all_features(shape),
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


def no_features() -> worker_pb2.Sampling:
    """The best raw score, and nothing else asked for."""
    return worker_pb2.Sampling(temperature=1.0, top_p=1.0, typical_p=1.0, repetition_penalty=1.0)


def _set_work(plan: worker_pb2.StepPlan, *, starts: list[int], counts: list[int]) -> None:
    plan.work.rows = _bytes(range(len(starts)))
    plan.work.starts = _bytes(starts)
    plan.work.counts = _bytes(counts)
    plan.work.samples = bytes([1] * len(starts))


def _bytes(values: range | list[int] | np.ndarray | Iterator[int]) -> bytes:
    return np.asarray(list(values), dtype="<u4").tobytes()
