"""Who multiplies by weights of bfloat16 on CPUs that have tiles for it (AMX), which the kernels do not use.

oneDNN does. A short measurement at load tells who is faster on this machine; a layer has one form, so that it takes
oneDNN for one row too, and one row must not suffer much. What is measured and chosen is logged. A level that is asked
for by name means the kernels, and so do several ranks: they have to choose alike, or a token is sent to different
experts. The router of a mixture, the head, attention, norms, experts, quantized weights and sampling stay the kernels'.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from millrace_worker import logs
from millrace_worker.layers.linear import Linear, NativeLinear, PackedLinear, can_pack
from millrace_worker.workspace import FreshRows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from millrace_kernels import Machine

# Of /proc/cpuinfo.
TILES = "amx_bf16"
SIZE = 2048  # of a weight [SIZE, SIZE]
ONE, MANY = 1, 256  # rows
TURNS = 5
# oneDNN takes over where many rows take it at most this part of the kernels' time, and one row at most that.
MANY_AT_MOST, ONE_AT_MOST = 0.75, 1.25


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a product with one row and with many, by the kernels and by oneDNN."""

    native: tuple[float, float]
    onednn: tuple[float, float]

    @property
    def prefers_onednn(self) -> bool:
        (native_one, native_many), (one, many) = self.native, self.onednn
        return many <= MANY_AT_MOST * native_many and one <= ONE_AT_MOST * native_one


def settled(machine: Machine, flags: Collection[str], measure: Callable[[Machine], Measured] | None = None) -> Machine:
    """The machine, without products of bfloat16 where oneDNN is to do them. Nothing is measured on a CPU without tiles.

    `flags`: what /proc/cpuinfo says this CPU has. `measure`: `compare`, in place of which a test may tell its own.
    """
    weight = torch.zeros(1, 1, dtype=torch.bfloat16)
    if TILES not in flags or not can_pack(weight):
        return machine
    measured = (measure or compare)(machine)
    names = ("kernels_one_row_ms", "kernels_many_rows_ms", "onednn_one_row_ms", "onednn_many_rows_ms")
    figures = dict(zip(names, (round(value, 3) for value in measured.native + measured.onednn), strict=True))
    chosen = "oneDNN" if measured.prefers_onednn else "the kernels"
    logs.info(f"{chosen} multiply by weights of bfloat16", rows=MANY, **figures)
    if not measured.prefers_onednn:
        return machine
    logs.warning(
        "results of products are rounded to bfloat16, and may depend on what else is computed in their step: so may "
        "what a seed gives, also from start to start; "
        f"MILLRACE_CPU_KERNELS={machine.level} keeps to the kernels"
    )
    return machine.without_products()


def compare(machine: Machine) -> Measured:
    """Both in turn, the least of several times each."""
    weight = torch.randn(SIZE, SIZE).to(torch.bfloat16)
    native = NativeLinear(machine, weight, None, FreshRows(SIZE, torch.bfloat16))
    onednn = PackedLinear(weight, None)
    times: dict[tuple[str, int], list[float]] = {}
    for rows in (ONE, MANY):
        x = torch.randn(rows, SIZE).to(torch.bfloat16)
        for _ in range(TURNS):
            for name, linear in (("native", native), ("onednn", onednn)):
                times.setdefault((name, rows), []).append(_milliseconds(linear, x))
    least = {key: min(values) for key, values in times.items()}
    return Measured(
        native=(least["native", ONE], least["native", MANY]), onednn=(least["onednn", ONE], least["onednn", MANY])
    )


def _milliseconds(linear: Linear, x: torch.Tensor) -> float:
    begun = time.perf_counter()
    linear(x)
    return (time.perf_counter() - begun) * 1000
