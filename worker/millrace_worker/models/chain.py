"""All blocks of a model in one call of the kernels, where nothing of Python is needed between their operators.

The blocks themselves (`decoder.py`) say what is computed; a chain is their operators written down once, in the same
order and on the same workspaces, so that its bits are theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from millrace_worker.attention.native_backend import NativeBackend, NativeStep, address_of_turns
from millrace_worker.layers.linear import NativeLinear
from millrace_worker.layers.norm import NativeNorm
from millrace_worker.layers.quantized import NativeQuantizedLinear
from millrace_worker.models.decoder import AttentionLayer, DecoderLayer, MlpLayer
from millrace_worker.models.spec import Residual
from millrace_worker.workspace import FreshRows, Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millrace_worker.attention.interface import AttentionBackend
    from millrace_worker.attention.native_backend import Shape
    from millrace_worker.models.decoder import Block

# The slot of the residual stream; then come the layers' pages, then workspaces.
STREAM = 0


class NotNativeError(Exception):
    """Python is needed between two operators of a block."""


def chained(layers: Sequence[Block], backend: AttentionBackend) -> Chain | None:
    """None where Python is needed in between: an operator of torch, a sum over ranks, a mixture, steps of q and k."""
    if not layers or not isinstance(backend, NativeBackend):
        return None
    try:
        return Chain(layers, backend)
    except NotNativeError:
        return None


class Chain:
    """`run` of a step is what the blocks do one after the other."""

    def __init__(self, layers: Sequence[Block], backend: NativeBackend) -> None:
        """Raises NotNativeError."""
        self._chain, self._backend, self._num_layers = backend.empty_chain(), backend, len(layers)
        # Workspaces' slots follow those of the layers' pages, of which the backend has one for each of its own layers.
        _check(len(backend.layers) == len(layers))
        self._width = 0  # of the stream, as its first norm takes it
        self._workspaces: list[Workspace] = []
        self._shapes: list[Shape] = []
        delta: Workspace | None = None
        for layer in layers:
            delta = self._add(layer, delta)
        assert delta is not None
        _check(delta.width == self._width)
        self._delta = delta

    def run(self, x_TD: Tensor, turns: list[Tensor], step: NativeStep) -> tuple[Tensor, Tensor]:
        """The stream, changed in place, and what is still to be added to it, in a workspace. `turns`: the rows of each
        rotation [T, 1, 2 R]. Raises ValueError for a stream of another form, or without the pages of all layers."""
        number = x_TD.shape[0]
        if x_TD.shape != (number, self._width) or x_TD.dtype is not torch.float32 or not x_TD.is_contiguous():
            raise ValueError(f"a stream of [T, {self._width}] float32, contiguous, is {tuple(x_TD.shape)} {x_TD.dtype}")
        pages = self._backend.addresses
        if len(pages) != self._num_layers:
            raise ValueError(f"a chain of {self._num_layers} layers got the pages of {len(pages)}")
        for workspace in self._workspaces:
            workspace.rows(number)
        slots = [x_TD.data_ptr(), *pages, *(each.address for each in self._workspaces)]
        plans = [step.plans[shape] for shape in self._shapes]
        self._chain.run(number, slots, plans, [address_of_turns(rows, number) for rows in turns])
        return x_TD, self._delta.rows(number)

    def _add(self, layer: Block, delta: Workspace | None) -> Workspace:
        """One block, before which `delta` is still to be added to the stream. Answers what is after it."""
        if not isinstance(layer, DecoderLayer) or layer.group.size > 1 or layer.scale != 1.0:
            raise NotNativeError
        if layer.residual is not Residual.SEQUENTIAL or layer.mlp_norm is None:
            raise NotNativeError
        attn, mlp = layer.attn, layer.mlp
        if not isinstance(attn, AttentionLayer) or attn.steps is not None or not isinstance(mlp, MlpLayer):
            raise NotNativeError
        attended = self._attend(attn, self._linear(attn.qkv, self._norm(layer.attn_norm, None, delta)))
        update = self._update(self._linear(attn.out, attended), layer.attn_post_norm)
        up = self._linear(mlp.up, self._norm(layer.mlp_norm, None, update))
        return self._update(self._linear(mlp.down, up), layer.mlp_post_norm)

    def _update(self, part: Workspace, norm: object | None) -> Workspace:
        return part if norm is None else self._norm(norm, part, None)

    def _norm(self, norm: object, residual: Workspace | None, delta: Workspace | None) -> Workspace:
        """`residual` None: the stream."""
        if not isinstance(norm, NativeNorm):
            raise NotNativeError
        out = _kept(norm.out)
        if residual is None:
            self._width = self._width or norm.width
            _check(norm.width == self._width)
        _check(out.width == norm.width)
        for given in (residual, delta):
            _check(given is None or (given.dtype, given.width) == (torch.float32, norm.width))
        stream = STREAM if residual is None else self._slot(residual)
        self._chain.norm(norm.kernel, stream, None if delta is None else self._slot(delta), self._slot(out))
        return out

    def _linear(self, linear: object, x: Workspace) -> Workspace:
        if not isinstance(linear, NativeLinear | NativeQuantizedLinear):
            raise NotNativeError
        out = _kept(linear.out)
        _check((x.dtype, x.width) == (linear.dtype, linear.num_inputs))
        self._chain.linear(linear.kernel, self._slot(x), self._slot(out))
        return out

    def _attend(self, attn: AttentionLayer, qkv: Workspace) -> Workspace:
        layer = self._backend.layers[attn.heads.layer]
        out = _kept(layer.out)
        _check((qkv.dtype, qkv.width) == (torch.float32, layer.qkv_columns))
        if layer.shape not in self._shapes:
            self._shapes.append(layer.shape)
        plan, kv = self._shapes.index(layer.shape), STREAM + 1 + attn.heads.layer
        self._chain.attend(layer.kernel, plan, attn.rotary, kv, self._slot(qkv), self._slot(out))
        return out

    def _slot(self, workspace: Workspace) -> int:
        if workspace not in self._workspaces:
            self._workspaces.append(workspace)
        return STREAM + 1 + self._num_layers + self._workspaces.index(workspace)


def _kept(out: Workspace | FreshRows) -> Workspace:
    if not isinstance(out, Workspace):
        raise NotNativeError
    return out


def _check(fits: bool) -> None:
    """The kernels see addresses only."""
    if not fits:
        raise NotNativeError
