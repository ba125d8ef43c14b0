"""Attention by this CPU's kernels: one call per layer from the unrotated q, k, v to what the output projection takes.

The pages have the kernels' own layout (worker/kernels/core/src/attention/layout.rs). None has to be cleared here: a
kernel zeroes the values of a page that a sequence begins without filling it, and never looks at a key beyond the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from millrace_worker.attention.interface import Heads
from millrace_worker.attention.pooled import Pooled
from millrace_worker.attention.rotary import Rotation
from millrace_worker.step import Batch
from millrace_worker.workspace import FreshRows, Role, Workspace, Workspaces

if TYPE_CHECKING:
    from millrace_kernels import Attention, Chain, Machine, Plan

# Heads are computed in whole vectors of this many dimensions, up to that many.
LANES = 16
MAX_HEAD_DIM = 256

# q, k and v come as the native linear layers compute them; cosines and sines as exact as they are.
QKV_DTYPE = ROTARY_DTYPE = torch.float32

NOTHING_ROTATED = (0, 0)

# Of layers that share a plan: query heads, KV heads, dimensions of a head, window, chunk.
Shape = tuple[int, int, int, int | None, int | None]


@dataclass(frozen=True)
class Layer:
    kernel: Attention
    shape: Shape
    chunk: int | None
    qkv_columns: int
    out: Workspace | FreshRows


@dataclass(frozen=True)
class NativeStep:
    num_tokens: int
    plans: dict[Shape, Plan]


class NativeBackend(Pooled):
    """The KV pool of one rank and attention over it, for float32 and bfloat16. `addresses`: of each layer's pages."""

    def __init__(self, machine: Machine, layers: list[Heads], dtype: torch.dtype, workspaces: Workspaces) -> None:
        """Results have `dtype` and are valid until the next call. Raises ValueError as `Pooled`."""
        from millrace_kernels import Step

        super().__init__(layers, dtype, torch.device("cpu"))
        self._make_step = Step
        self._machine, self.name = machine, f"native ({machine.level})"
        self.layers = [_layer(machine, heads, dtype, workspaces) for heads in layers]
        self.addresses: list[int] = []
        # One plan of a step is for all layers of a shape.
        self._planned = {layer.shape: layer for layer in self.layers}
        self._chunks = {layer.chunk for layer in self.layers}

    @staticmethod
    def supports(layers: list[Heads], dtype: torch.dtype) -> bool:
        """Whether there are kernels for all layers; `TorchBackend` takes the others."""
        return dtype in (torch.float32, torch.bfloat16) and all(
            heads.head_dim % LANES == 0 and heads.head_dim <= MAX_HEAD_DIM for heads in layers
        )

    def empty_chain(self) -> Chain:
        """For operators of this CPU that are to run in one call, attention among them."""
        from millrace_kernels import Chain

        return Chain(self._machine)

    def allocate(self, num_pages: int) -> None:
        self.addresses = []
        super().allocate(num_pages)
        self.addresses = [pages.data_ptr() for pages in self.pool.pages]

    def plan(self, batch: Batch) -> NativeStep:
        """Raises ValueError for a position without a page of the pool."""
        num_pages, num_tokens, steps = self.pool.num_pages, 0, {}
        for chunk in self._chunks:
            seen = batch if chunk is None else batch.in_chunks(chunk, self.page_size)
            rows, starts, counts = map(np.ascontiguousarray, (seen.rows, seen.starts, seen.counts))
            steps[chunk] = step = self._make_step(rows, starts, counts, seen.page_table_host, num_pages)
            num_tokens = step.num_tokens
        plans = {shape: layer.kernel.plan(steps[layer.chunk]) for shape, layer in self._planned.items()}
        return NativeStep(num_tokens, plans)

    def attend(self, heads: Heads, qkv_TC: Tensor, rotation: Rotation | None, step: NativeStep) -> Tensor:
        layer = self.layers[heads.layer]
        if qkv_TC.shape != (step.num_tokens, layer.qkv_columns) or not _is_plain(qkv_TC):
            raise ValueError(
                f"attention takes [{step.num_tokens}, {layer.qkv_columns}] float32, contiguous; "
                f"this is {tuple(qkv_TC.shape)} {qkv_TC.dtype}"
            )
        turns = NOTHING_ROTATED if rotation is None else turns_of(rotation, step.num_tokens)
        attended = layer.out.rows(step.num_tokens)
        kv, qkv, out = self.addresses[heads.layer], qkv_TC.data_ptr(), layer.out.address
        layer.kernel.attend(step.plans[layer.shape], kv, qkv, turns, out)
        return attended


def _layer(machine: Machine, heads: Heads, dtype: torch.dtype, workspaces: Workspaces) -> Layer:
    from millrace_kernels import Attention

    rule, norm, size = heads.rule, heads.qk_norm, heads.head_dim
    slopes = None if rule.alibi is None else list(rule.alibi)
    kernel = Attention(
        machine,
        (heads.num_heads, heads.num_kv_heads, size),
        (heads.scale, rule.window, rule.softcap, slopes, None if heads.sinks is None else list(heads.sinks)),
        heads.pairs,
        None if norm is None else (norm.eps, norm.weight.float().flatten().tolist()),
        ("float32", str(dtype).removeprefix("torch.")),
    )
    return Layer(
        kernel=kernel,
        shape=(heads.num_heads, heads.num_kv_heads, size, rule.window, rule.chunk),
        chunk=rule.chunk,
        qkv_columns=(heads.num_heads + 2 * heads.num_kv_heads) * size,
        out=workspaces.take(Role.ATTENDED, heads.num_heads * size, dtype),
    )


def _is_plain(x: Tensor) -> bool:
    """What a kernel that sees an address only relies on."""
    return x.dtype is torch.float32 and x.is_contiguous()


def turns_of(rotation: Rotation, num_tokens: int) -> tuple[int, int]:
    """The address of cosines and sines that lie side by side, as `RotaryTable.rows` makes them, and how many dimensions
    turn."""
    cos, sin = rotation
    width = cos.shape[-1]
    first, rows = cos.data_ptr(), (num_tokens, 1, width)
    side_by_side = cos.stride(0) == sin.stride(0) == 2 * width and sin.data_ptr() == first + width * cos.itemsize
    if cos.dtype is not ROTARY_DTYPE or cos.shape != rows or not side_by_side:
        raise ValueError(f"rotations are float32 rows of cosines and sines, not {tuple(cos.shape)} {cos.dtype}")
    return first, width
