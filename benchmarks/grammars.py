"""What grammars cost: a mask, a compilation, and the throughput of streams that keep to one.

    python -m benchmarks.grammars [--streams 16] [--steps 128] [--rounds 5] [--threads N]

Masks and compilations: every schema of `worker/tests/grammar/schemas.py`, its text drawn at random among what
is allowed, with the demo's vocabulary and with one of 128,000 tokens. Streams: decoding steps of `mid` in this process,
in turns: without a grammar, and with one that the streams stay in to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import millrace_launcher
import numpy as np
import torch
from millrace_worker.config import WorkerConfig
from millrace_worker.engine import Engine
from millrace_worker.grammar import Vocabulary, read_vocabulary
from millrace_worker.grammar.matchers import Matchers
from millrace_worker.load import load_rank
from millrace_worker.placement import Place
from millrace_worker.proto import worker_pb2

from benchmarks import models, processes
from worker.tests.grammar.schemas import corpus

DEMO = Path(millrace_launcher.__file__).parent / "demo"
WIDE = 128_000
PROMPT = 32
# What the router writes into schemas.
WRITING = {"whitespace_pattern": r"\x20{1,2}|\x20{0,2}\r?\n[\x20\x09]{0,40}", "json_allowed_escapes": 'nrbtf\\"'}
ENDLESS = {
    "type": "array",
    "minItems": 5000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "kind": {"enum": ["person", "place", "thing"]},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        },
        "required": ["name", "kind", "score", "tags"],
        "additionalProperties": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    processes.begin_as_a_worker("benchmarks.grammars")
    print(f"load before: {' '.join(f'{load:.2f}' for load in os.getloadavg())}\n")
    named = ["mean µs", "p50 µs", "p99 µs", "p99.9 µs"]
    head = ["vocabulary", "schemas", "compile p50 ms", "p95 ms", "tokens"]
    head += [f"mask {name}" for name in named] + [f"mask's CPU {name}" for name in named]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for folder in (DEMO, wide_folder()):
        print(measure_masks(read_vocabulary(folder)))
    print("\n| streams | round | without a grammar, tokens/s | with, tokens/s | ratio |\n|---|---|---|---|---|")
    ratios = []
    for index, (free, held) in enumerate(streams(arguments), 1):
        ratios.append(held / free)
        print(f"| {arguments.streams} | {index} | {free:.0f} | {held:.0f} | {held / free:.3f} |")
    print(f"\nmedian ratio: {statistics.median(ratios):.3f}")


def grammar(schema: dict[str, object]) -> str:
    return json.dumps({"grammars": [{"json_schema": schema | {"x-guidance": WRITING}}]})


def measure_masks(vocabulary: Vocabulary) -> str:
    """One line of the table."""
    matchers = Matchers(vocabulary, 1)
    draw = np.random.default_rng(1)
    compiled, masks, cpu = list[float](), list[float](), list[float]()
    for _, schema in corpus():
        started = time.perf_counter()
        matcher = matchers.own(grammar(schema))
        compiled.append(time.perf_counter() - started)
        for _ in range(400):
            if matcher.is_stopped():
                break
            started = time.perf_counter()
            busy = time.thread_time()
            mask = matcher.compute_bitmask()
            cpu.append(time.thread_time() - busy)
            masks.append(time.perf_counter() - started)
            allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little"))
            token = int(draw.choice(allowed))
            if token == vocabulary.end:
                break
            matcher.consume_token(token)
    milliseconds = np.array(compiled) * 1e3
    figures = [f"{value:.2f}" for value in np.percentile(milliseconds, [50, 95])] + [str(len(masks))]
    for microseconds in (np.array(masks) * 1e6, np.array(cpu) * 1e6):
        figures += [f"{value:.0f}" for value in (microseconds.mean(), *np.percentile(microseconds, [50, 99, 99.9]))]
    return "| " + " | ".join([str(vocabulary.end), str(len(compiled)), *figures]) + " |"


def wide_folder() -> Path:
    """A tokenizer of 128,000 tokens under `target/benchmarks`: the demo's, and random joins of its tokens."""
    folder = models.FOLDER / "wide"
    if not (folder / "tokenizer.json").exists():
        described = json.loads((DEMO / "tokenizer.json").read_text())
        tokens, merges = described["model"]["vocab"], described["model"]["merges"]
        draw, plain = random.Random(0), [token for token in tokens if not token.startswith("<")]
        while len(tokens) < WIDE:
            pair = draw.choice(plain), draw.choice(plain)
            joined = "".join(pair)
            if joined not in tokens and len(joined) <= 14:
                tokens[joined] = len(tokens)
                merges.append(list(pair))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


def streams(arguments: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Tokens per second of each round: without a grammar, and with one."""
    torch.set_num_threads(arguments.threads)
    config = WorkerConfig(model_path=models.path("mid"), uds_path="unused", place=Place(arguments.threads))
    rank = load_rank(config)
    tokens = arguments.streams * (PROMPT + arguments.steps + 32)
    rank.prepare(
        worker_pb2.PrepareRequest(
            max_rows=arguments.streams,
            max_step_tokens=max(512, arguments.streams * PROMPT),
            max_pool_tokens=tokens,
            grammars=True,
        )
    )
    held = grammar(ENDLESS)
    for text in ("", held):  # once to warm up
        decode(rank.engine, arguments, text)
    for _ in range(arguments.rounds):
        yield decode(rank.engine, arguments, ""), decode(rank.engine, arguments, held)


def decode(engine: Engine, arguments: argparse.Namespace, text: str) -> float:
    """Tokens per second of streams that are all at the same length."""
    engine.reset()
    shape, rows = engine.shape, np.arange(arguments.streams)
    pages = shape.pages_of(PROMPT + arguments.steps)
    plan = worker_pb2.StepPlan(step=1)
    for row in rows.tolist():
        drawn = worker_pb2.Sampling(
            do_sample=True, seed=row, temperature=0.8, top_p=1, typical_p=1, repetition_penalty=1, grammar=text
        )
        plan.admitted.add(
            sequence=row + 1,
            row=row,
            token_ids=u32((np.arange(PROMPT) + row) % 200),
            num_prompt_tokens=PROMPT,
            pages=u32(np.arange(row * pages, (row + 1) * pages)),
            sampling=drawn,
        )
    started = 0.0
    for step in range(arguments.steps):
        first = step == 0
        plan = plan if first else worker_pb2.StepPlan(step=step + 1)
        plan.work.rows = u32(rows)
        plan.work.starts = u32(np.full_like(rows, 0 if first else PROMPT + step - 1))
        plan.work.counts = u32(np.full_like(rows, PROMPT if first else 1))
        plan.work.samples = bytes([1]) * len(rows)
        result = engine.compute(plan)
        if result.failed:
            raise RuntimeError(result.failed[0].message)
        if first:
            started = time.perf_counter()
    return arguments.streams * (arguments.steps - 1) / (time.perf_counter() - started)


def u32(values: np.ndarray) -> bytes:
    return values.astype("<u4").tobytes()


if __name__ == "__main__":
    main()
