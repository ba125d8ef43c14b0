"""An engine over a model whose scores are noise, a pure function of the token and its position; and a router in small.

Scores have a wide spread, so that a sampled token is nearly always one that no grammar allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.grammar import Vocabulary
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import RowsShape
from millrace_worker.sampling import Watermark
from millrace_worker.step import Batch

from worker.tests.engine.plans import Answers, PlanBook

VOCAB = 4160  # the demo's 4096, padded
END = 1
TABLE = 509


class NoisyModel:
    """Without pages. Scores of the token after token t at position p: a row of a table of noise, chosen by (t, p)."""

    implementation, missing, page_size, max_positions = "noise", {}, 0, 4000

    def __init__(self, vocab_size: int = VOCAB, spread: float = 3.0) -> None:
        self.vocab_size = vocab_size
        self.scores = spread * torch.randn(TABLE, vocab_size, generator=torch.Generator().manual_seed(5))

    def forget_rows(self, *_: object) -> None:
        """It keeps nothing."""

    def plan(self, batch: Batch) -> Batch:
        return batch

    def hidden(self, token_ids: torch.Tensor, positions: torch.Tensor, _: object) -> torch.Tensor:
        return (token_ids * 31 + positions * 7)[:, None]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.scores.index_select(0, hidden[:, 0] % TABLE)


def parts_of(vocabulary: Vocabulary | None, model: NoisyModel, group: Group) -> EngineParts:
    return EngineParts(
        model=model,  # pyright: ignore[reportArgumentType]
        group=group,
        device=torch.device("cpu"),
        watermark=Watermark(),
        vocabulary=vocabulary if group.rank == 0 else None,
    )


def noisy_engine(
    vocabulary: Vocabulary | None, model: NoisyModel | None = None, *, max_rows: int = 8, group: Group | None = None
) -> Engine:
    model = model or NoisyModel()
    shape = RowsShape(
        max_rows=max_rows,
        max_sequence_tokens=3000,
        page_size=0,
        num_pages=0,
        vocab_size=model.vocab_size,
        max_step_tokens=4000,
        max_top_n_tokens=5,
        grammars=True,
    )
    return Engine(parts_of(vocabulary, model, group or Group()), shape)


def sampling(grammar: str = "", *, ends: Sequence[int] = (END,), **over: object) -> worker_pb2.Sampling:
    """Greedy and neutral but for what is named."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
    ids = np.asarray(ends, dtype="<u4").tobytes()
    return worker_pb2.Sampling(**(neutral | over), grammar=grammar, end_token_ids=ids)  # pyright: ignore[reportArgumentType]


def seeded(grammar: str = "", *, seed: int = 11, **over: object) -> worker_pb2.Sampling:
    """Drawn from flattened noise."""
    return sampling(grammar, **({"do_sample": True, "seed": seed, "temperature": 1.5} | over))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Request:
    """What a router admits; with `output`, a sequence that goes on after a preemption or a restart."""

    sampling: worker_pb2.Sampling
    prompt: Sequence[int] = (7, 8, 9)
    output: Sequence[int] = ()
    most: int = 200  # tokens of output

    def resumed(self, output: Sequence[int]) -> Request:
        return replace(self, output=tuple(output))


@dataclass
class Generated:
    """The whole output of each row, its end token included, and the failures."""

    ids: dict[int, list[int]]
    logprobs: dict[int, list[float]]
    failed: dict[int, str]


def generate(
    engine: Engine, requests: dict[int, Request], *, chunk: int | None = None, ends: Sequence[int] = (END,)
) -> Generated:
    """Runs the requests to their ends, beside one another, from empty rows. Plans are made one step ahead: a row that
    has ended computes one step more, whose token nobody reads."""
    engine.reset()
    book, answers, failed = PlanBook(0, 0), Answers(), dict[int, str]()
    for row, request in requests.items():
        tokens = [*request.prompt, *request.output]
        book.admit(row, tokens, num_prompt_tokens=len(request.prompt), sampling=request.sampling)
    ids = {row: list(request.output) for row, request in requests.items()}
    running, ended = list(requests), list[int]()
    while running or ended:
        for row in running + ended:
            book.work(row, chunk)
        before = {row: len(answers.token_ids.get(row, ())) for row in running}
        book.plan_and(engine, answers)
        for row in ended:
            book.release(row)
        failed |= {row: answers.failed[row + 100] for row in running if row + 100 in answers.failed}
        for row in running:
            ids[row] += answers.token_ids.get(row, [])[before[row] :]
        ended = [row for row in running if row in failed or _has_ended(ids[row], requests[row], ends)]
        running = [row for row in running if row not in ended]
    logprobs = {row: answers.logprobs.get(row, [])[: len(ids[row])] for row in requests}
    return Generated(ids, logprobs, failed)


def _has_ended(ids: list[int], request: Request, ends: Sequence[int]) -> bool:
    return len(ids) >= request.most or (bool(ids) and ids[-1] in ends)
