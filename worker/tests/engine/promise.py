"""In a process of its own: prepares small models, runs random steps as bad as may be, prints what was promised and what
was taken, in bytes. Argument: JSON; of each model the checkpoint, who computes it, the kernels and what `Prepare` is
asked."""

from __future__ import annotations

import gc
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from millrace_worker import cpu_kernels, rank
from millrace_worker.config import WorkerConfig
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.memory import peak_beyond
from millrace_worker.model import Model
from millrace_worker.models.choice import ModelAsk, choose, load
from millrace_worker.proto import worker_pb2
from millrace_worker.rank import Identity, Rank
from millrace_worker.sampling import Watermark
from millrace_worker.shortage import release_memory
from millrace_worker.store import StoreSize
from millrace_worker.worst_case import all_features, long_prompt_plans, no_features

STEPS = 24
CPU = torch.device("cpu")


def u32(values: Any) -> bytes:
    return np.asarray(values, dtype="<u4").tobytes()


class Steps:
    """Steps of random work for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._shape, self._step = engine, engine.shape, 0

    def random(self) -> None:
        """As many rows and tokens as there may be, or one long chunk, anywhere in sequences of any length. Without
        pages all begin: a state cannot begin in the middle."""
        shape = self._shape
        num_rows = random.choice([1, 2, shape.max_rows // 2, shape.max_rows])
        counts = np.ones(num_rows, dtype=np.int64)
        if random.random() < 0.7:
            counts[random.randrange(num_rows)] = min(shape.max_step_tokens - num_rows + 1, shape.max_sequence_tokens)
        late = [shape.max_sequence_tokens - int(count) if shape.page_size else 0 for count in counts]
        starts = [random.choice([0, start]) for start in late]
        plan = self._plan(range(shape.max_rows))
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            self._admit(plan, row, start + int(count))
        self._compute(plan, range(num_rows), starts, counts.tolist())

    def fill(self) -> None:
        """Every row to its longest, and then steps of all of them at their last token."""
        shape = self._shape
        longest, rows = shape.max_sequence_tokens, range(shape.max_rows)
        last = longest - 2  # what follows from it is the longest sequence's last token, which nobody computes
        for row in rows:
            for start in range(0, last, shape.max_step_tokens):
                plan = self._plan([row] if start == 0 else [])
                if start == 0:
                    self._admit(plan, row, longest)
                self._compute(plan, [row], [start], [min(shape.max_step_tokens, last - start)], samples=False)
        self._compute(self._plan([]), rows, [last] * len(rows), [1] * len(rows))

    def _plan(self, released: Any) -> worker_pb2.StepPlan:
        self._step += 1
        return worker_pb2.StepPlan(step=self._step, released=u32(list(released)))

    def _admit(self, plan: worker_pb2.StepPlan, row: int, length: int) -> None:
        shape = self._shape
        pages = np.arange(-(-length // shape.page_size)) % shape.num_pages if shape.page_size else []
        plan.admitted.add(
            sequence=row,
            row=row,
            token_ids=u32(np.random.randint(3, shape.vocab_size, length)),
            num_prompt_tokens=max(1, random.choice([length, length - 2, length // 2])),
            pages=u32(pages),
            sampling=random.choice([all_features, lambda _: no_features()])(shape),
            prompt_logprobs=shape.prompt_logprobs and random.random() < 0.5,
        )

    def _compute(
        self, plan: worker_pb2.StepPlan, rows: Any, starts: list[int], counts: list[int], *, samples: bool = True
    ) -> None:
        plan.work.rows, plan.work.starts, plan.work.counts = u32(list(rows)), u32(starts), u32(counts)
        plan.work.samples = bytes([samples]) * len(counts)
        if self._shape.page_size and random.random() < 0.3:
            plan.copies.sources = plan.copies.targets = u32(np.zeros(len(counts)))
        self._engine.trial(plan)


def loaded_model(path: str, asked: dict[str, Any]) -> Model:
    kernels = cpu_kernels.find(asked.pop("kernels"), 1)
    ask = ModelAsk(folder=Path(path), dtype=torch.float32, device=CPU, group=Group(), kernels=kernels)
    return load(ask, choose(Path(path), asked.pop("implementation", "native")))


@torch.inference_mode()
def figures(path: str, asked: dict[str, Any]) -> dict[str, int]:
    gc.collect()
    release_memory(CPU)
    rank.CPU_TRIAL_FLOPS = asked.pop("flops", rank.CPU_TRIAL_FLOPS)
    rank.CPU_TRIAL_SCORES = asked.pop("scores", rank.CPU_TRIAL_SCORES)
    rank.CPU_TRIAL_CONTEXT = asked.pop("context", rank.CPU_TRIAL_CONTEXT)
    rank.give_back_pages = lambda: None  # what a process holds is compared from before `Prepare` to after it
    kernels = cpu_kernels.find(asked["kernels"], 1)
    model = loaded_model(path, asked)
    parts = EngineParts(model=model, group=Group(), device=CPU, watermark=Watermark(), kernels=kernels)
    num_bytes = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    identity = Identity("ForCausalLM", torch.float32, "test", weight_bytes=num_bytes)
    config = WorkerConfig(model_path=Path(path), uds_path="unused", kv_cache_memory=asked.pop("pool"))
    prepared, held = None, 0
    loaded = Rank(config, parts, identity)

    def live() -> None:
        nonlocal prepared, held
        prepared = loaded.prepare(worker_pb2.PrepareRequest(**asked))
        size = StoreSize(prepared.max_rows, prepared.max_sequence_tokens, prepared.num_pages)
        steps, rows = Steps(loaded.engine), loaded.engine._rows
        held = loaded._store.num_bytes(size)
        for column in (rows.token_ids, rows.page_table):
            column.fill_(0)
            held += column.nbytes
        if parts.model.page_size:
            parts.model.backend.pool.values.fill_(0)  # pyright: ignore[reportAttributeAccessIssue] - all of it is there
        else:
            steps.fill()
            for plan in long_prompt_plans(loaded.engine.shape, prepared.max_sequence_tokens - 1):
                loaded.engine.trial(plan)
        for _ in range(STEPS):
            steps.random()

    taken = peak_beyond(live, CPU)
    assert prepared is not None
    return {"promised": prepared.workspace_bytes, "taken": taken - held, "store": held}


def main(told: str) -> None:
    torch.set_num_threads(1)
    print(json.dumps([figures(path, asked) for path, asked in json.loads(told)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
