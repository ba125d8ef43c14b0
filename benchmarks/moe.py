"""A mixture of experts: our layer against the plain loop over all experts, and its native form in one call against the
one in which Python goes from expert to expert; alternating.

python -m benchmarks.moe [--rows 1 16 256] [--experts 64] [--chosen 8] [--hidden 1024] [--size 512] [--rounds 20]
    [--threads 1]
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
from millrace_worker.layers.experts import ExpertKind, ExpertWeights, LoopedExperts
from millrace_worker.layers.linear import Epilogue
from millrace_worker.layers.operators import Operators, choose_operators, expert_linears
from torch import Tensor

from benchmarks.machine import describe

CPU = torch.device("cpu")
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
LOOP, EXPERT_BY_EXPERT, ONE_CALL = "loop over all experts", "ours, native, expert by expert", "ours, native, one call"


@dataclass(frozen=True)
class Shape:
    experts: int
    chosen: int
    hidden: int
    size: int


def plain_loop(weights: list[ExpertWeights[Tensor]], x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Every expert in turn, on the rows that chose it."""
    out_TD = torch.zeros_like(x_TD)
    for index, (up, _, down, _) in enumerate(weights):
        token, place = (experts_TK == index).nonzero(as_tuple=True)
        gate, value = F.linear(x_TD[token], up).chunk(2, dim=-1)
        found = F.linear(F.silu(gate) * value, down)
        out_TD.index_add_(0, token, found * weights_TK[token, place, None].to(found.dtype))
    return out_TD


def every_row(weights: list[ExpertWeights[Tensor]], x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Every expert in turn, on all rows: what needs no routing of rows."""
    dense_TE = torch.zeros(len(x_TD), len(weights)).scatter_(1, experts_TK, weights_TK).to(x_TD.dtype)
    out_TD = torch.zeros_like(x_TD)
    for index, (up, _, down, _) in enumerate(weights):
        gate, value = F.linear(x_TD, up).chunk(2, dim=-1)
        out_TD += F.linear(F.silu(gate) * value, down) * dense_TE[:, index : index + 1]
    return out_TD


def operators(choice: str, dtype: torch.dtype, threads: int) -> Operators:
    """Of a model with one layer of attention, which nothing here runs."""
    heads = Heads(layer=0, num_heads=1, num_kv_heads=1, head_dim=64, scale=1.0, rule=ScoreRule())
    return choose_operators(cpu_kernels.find(choice, threads), [heads], dtype, CPU)


def forms(shape: Shape, dtype: torch.dtype, threads: int) -> dict[str, Layer]:
    """The layer in each form, by its name, the plain loop first."""
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
    native = operators("", dtype, threads)
    pairs = [expert_linears(native.linear, kind, each) for each in weights]
    return {
        LOOP: partial(plain_loop, weights),
        "all experts, all rows": partial(every_row, weights),
        "ours, torch": operators(cpu_kernels.OFF, dtype, threads).experts(kind, weights),
        EXPERT_BY_EXPERT: LoopedExperts(kind, pairs, native.stream_dtype),
        ONE_CALL: native.experts(kind, weights),
    }


def compare(layers: dict[str, Layer], shape: Shape, dtype: torch.dtype, rows: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each form. Each round has tokens of its own, the same for all.

    Of one thread it is the time that it computed: what else runs on the machine does not count.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds):
        x_TD = torch.randn(rows, shape.hidden, dtype=torch.float32).to(dtype)
        scores, chosen = torch.randn(rows, shape.experts).softmax(-1).topk(shape.chosen)
        expected = None
        for name, layer in layers.items():
            start = clock()
            found = layer(x_TD, chosen, scores)
            times[name].append(1000 * (clock() - start))
            expected = found.float() if expected is None else expected
            torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("experts", 64),
        ("chosen", 8),
        ("hidden", 1024),
        ("size", 512),
        ("rounds", 20),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256])
    given = vars(parser.parse_args())
    rounds, threads, all_rows = given.pop("rounds"), given.pop("threads"), given.pop("rows")
    shape = Shape(**given)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    print(describe())
    print(shape, f"{threads} threads, {rounds} rounds")
    for dtype in (torch.float32, torch.bfloat16):
        layers = forms(shape, dtype, threads)
        for rows in all_rows:
            found = compare(layers, shape, dtype, rows, rounds)
            for name, ms in found.items():
                print(
                    f"{str(dtype).removeprefix('torch.'):10} {rows:4} rows  {name:32} {ms:8.2f} ms  "
                    f"{found[LOOP] / ms:5.2f} x the loop  {found[EXPERT_BY_EXPERT] / ms:5.2f} x expert by expert"
                )
    print(describe())


if __name__ == "__main__":
    main()
