"""Linear layers of 8 and 4 bits against those of bfloat16, in this CPU's kernels: the same layers, one form after the
other in every round.

python -m benchmarks.quantized_linear [--rows 1 4 16 64 256] [--hidden 2048] [--size 5632] [--layers 6] [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from millrace_worker import cpu_kernels
from millrace_worker.layers.linear import Epilogue, NativeLinear
from millrace_worker.layers.quantized import (
    NativeQuantizedLinear,
    QuantizedWeight,
    greatest,
    packed_nibbles,
    quantize,
)
from millrace_worker.workspace import Workspace
from torch import Tensor

from benchmarks.machine import GIBIBYTE, describe, load, read_bandwidth

if TYPE_CHECKING:
    from millrace_kernels import Machine

GATED = Epilogue("silu", True)
BASE = "bfloat16"


@dataclass(frozen=True)
class Form:
    name: str
    make: Callable[[Tensor, Workspace, Epilogue | None], Callable[[Tensor], Tensor]]
    num_bytes: list[int]  # of each layer


def four_bits(weight: Tensor, group: int, *, zeros: bool) -> QuantizedWeight:
    """Of the shape of `weight`, with any codes: speed does not depend on them."""
    outputs, inputs = weight.shape
    shape = (outputs, -(-inputs // group))
    codes = packed_nibbles(torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8))
    scales = (torch.rand(shape) * 0.01).bfloat16()
    return QuantizedWeight(codes, scales, inputs, group, torch.full(shape, 7, dtype=torch.uint8) if zeros else None)


def forms(machine: Machine) -> list[Form]:
    def quantized(name: str, of: Callable[[Tensor], QuantizedWeight]) -> Form:
        sizes: list[int] = []

        def make(weight: Tensor, out: Workspace, epilogue: Epilogue | None) -> Callable[[Tensor], Tensor]:
            layer = NativeQuantizedLinear(machine, of(weight), None, out, epilogue, dtype=torch.bfloat16)
            sizes.append(layer.num_bytes)
            return layer

        return Form(name, make, sizes)

    plain: list[int] = []

    def make_plain(weight: Tensor, out: Workspace, epilogue: Epilogue | None) -> Callable[[Tensor], Tensor]:
        plain.append(weight.nbytes)
        return NativeLinear(machine, weight, None, out, epilogue)

    return [
        Form(BASE, make_plain, plain),
        quantized("int8, a scale for each output", lambda weight: quantize(weight, greatest(weight))),
        quantized("int4, groups of 128", lambda weight: four_bits(weight, 128, zeros=False)),
        quantized("int4, groups of 128, zeros", lambda weight: four_bits(weight, 128, zeros=True)),
        quantized("int4, groups of 32", lambda weight: four_bits(weight, 32, zeros=False)),
    ]


@dataclass(frozen=True)
class Layer:
    """What a decoder layer multiplies: queries, keys and values, what they become, the MLP."""

    steps: list[tuple[Callable[[Tensor], Tensor], Tensor]]

    def run(self, rows: int) -> None:
        for linear, x in self.steps:
            linear(x[:rows])


def build(form: Form, hidden: int, size: int, most_rows: int, count: int) -> list[Layer]:
    shapes = [
        (hidden * 3 // 2, hidden, None),
        (hidden, hidden, None),
        (2 * size, hidden, GATED),
        (hidden, size, None),
    ]
    inputs = [torch.randn(most_rows, shape[1]).bfloat16() for shape in shapes]
    weights = [(torch.randn(shape[0], shape[1]) * 0.02).bfloat16() for shape in shapes]
    outs = [Workspace(shape[0] // (2 if shape[2] else 1), torch.float32) for shape in shapes]
    layers = []
    for _ in range(count):
        made = [
            form.make(weight, out, epilogue)
            for weight, (_, _, epilogue), out in zip(weights, shapes, outs, strict=True)
        ]
        layers.append(Layer(list(zip(made, inputs, strict=True))))
    return layers


def measure(built: dict[str, list[Layer]], rows: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a pass over all layers, round by round: of one thread those that it computed, of several those that
    went by."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for number in range(rounds + 1):
        for name, layers in built.items():
            started = clock()
            for layer in layers:
                layer.run(rows)
            if number:
                seconds[name].append(clock() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--size", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--level", default="", help="instruction-set level; default: the best")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    machine = cpu_kernels.find(asked.level, asked.threads)
    if machine is None:
        raise SystemExit("there are no native kernels")
    print(
        f"{describe()}; {asked.threads} threads, {machine.level}; memory is read at {read_bandwidth() / 1e9:.1f} GB/s"
    )
    made = forms(machine)
    built = {form.name: build(form, asked.hidden, asked.size, max(asked.rows), asked.layers) for form in made}
    bytes_of = {form.name: sum(form.num_bytes) for form in made}
    size = f"{bytes_of[BASE] / GIBIBYTE:.2f} GiB in {BASE}"
    print(f"{asked.layers} layers, hidden {asked.hidden}, MLP {asked.size}: {size}\n")
    print("| rows | form | MB | ms, median (best) | GB/s of weights | times bfloat16's speed |")
    print("|---|---|---|---|---|---|")
    for rows in asked.rows:
        seconds = measure(built, rows, asked.rounds)
        for name, all_seconds in seconds.items():
            middle = statistics.median(all_seconds)
            ratio = statistics.median(b / a for a, b in zip(all_seconds, seconds[BASE], strict=True))
            best = f"{middle * 1e3:.2f} ({min(all_seconds) * 1e3:.2f})"
            speed = bytes_of[name] / middle / 1e9
            print(f"| {rows} | {name} | {bytes_of[name] / 1e6:.0f} | {best} | {speed:.1f} | {ratio:.2f} |", flush=True)
    print(f"\nload after {load()}")


if __name__ == "__main__":
    main()
