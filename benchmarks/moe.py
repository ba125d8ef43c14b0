"""A mixture of experts at decode: our layer against the plain loop over all experts, alternating, on one thread.

python -m benchmarks.moe [--rows 16] [--experts 64] [--chosen 8] [--hidden 1024] [--size 512] [--rounds 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from millrace_worker import cpu_kernels
from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.layers.experts import ExpertKind, ExpertWeights
from millrace_worker.layers.linear import Epilogue
from millrace_worker.layers.operators import Operators, choose_operators
from torch import Tensor

from benchmarks.machine import describe

CPU = torch.device("cpu")
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    rows: int
    experts: int
    chosen: int
    hidden: int
    size: int


def plain_loop(weights: list[ExpertWeights], x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Every expert in turn, on the rows that chose it."""
    out_TD = torch.zeros_like(x_TD)
    for index, (up, _, down, _) in enumerate(weights):
        token, place = (experts_TK == index).nonzero(as_tuple=True)
        gate, value = F.linear(x_TD[token], up).chunk(2, dim=-1)
        found = F.linear(F.silu(gate) * value, down)
        out_TD.index_add_(0, token, found * weights_TK[token, place, None].to(found.dtype))
    return out_TD


def every_row(weights: list[ExpertWeights], x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Every expert in turn, on all rows: what needs no routing of rows."""
    dense_TE = torch.zeros(len(x_TD), len(weights)).scatter_(1, experts_TK, weights_TK).to(x_TD.dtype)
    out_TD = torch.zeros_like(x_TD)
    for index, (up, _, down, _) in enumerate(weights):
        gate, value = F.linear(x_TD, up).chunk(2, dim=-1)
        out_TD += F.linear(F.silu(gate) * value, down) * dense_TE[:, index : index + 1]
    return out_TD


def operators(choice: str, dtype: torch.dtype) -> Operators:
    """Of a model with one layer of attention, which nothing here runs."""
    heads = Heads(layer=0, num_heads=1, num_kv_heads=1, head_dim=64, scale=1.0, rule=ScoreRule())
    return choose_operators(cpu_kernels.find(choice, 1), [heads], dtype, CPU)


def compare(shape: Shape, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Median milliseconds of each form. Each round has tokens of its own, the same for all."""
    weights = [
        ExpertWeights(
            torch.randn(2 * shape.size, shape.hidden).mul_(shape.hidden**-0.5).to(dtype),
            None,
            torch.randn(shape.hidden, shape.size).mul_(shape.size**-0.5).to(dtype),
            None,
        )
        for _ in range(shape.experts)
    ]
    kind = ExpertKind(shape.experts, Epilogue("silu", True))
    layers: dict[str, Layer] = {
        "loop over all experts": partial(plain_loop, weights),
        "all experts, all rows": partial(every_row, weights),
        "ours, torch": operators(cpu_kernels.OFF, dtype).experts(kind, weights),
        "ours, native": operators("", dtype).experts(kind, weights),
    }
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds):
        x_TD = torch.randn(shape.rows, shape.hidden, dtype=torch.float32).to(dtype)
        scores, chosen = torch.randn(shape.rows, shape.experts).softmax(-1).topk(shape.chosen)
        expected = None
        for name, layer in layers.items():
            start = time.perf_counter()
            found = layer(x_TD, chosen, scores)
            times[name].append(1000 * (time.perf_counter() - start))
            expected = found.float() if expected is None else expected
            torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 16), ("experts", 64), ("chosen", 8), ("hidden", 1024), ("size", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=20)
    given = vars(parser.parse_args())
    rounds = given.pop("rounds")
    shape = Shape(**given)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(describe())
    print(shape)
    for dtype in (torch.float32, torch.bfloat16):
        found = compare(shape, dtype, rounds)
        loop = found["loop over all experts"]
        for name, ms in found.items():
            print(f"{str(dtype).removeprefix('torch.'):10} {name:24} {ms:8.2f} ms  {loop / ms:5.2f} x")


if __name__ == "__main__":
    main()
