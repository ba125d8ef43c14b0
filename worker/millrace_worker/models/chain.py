"""A forward pass in one call of the kernels, where nothing of Python is needed between its operators.

The blocks themselves (`decoder.py`) say what is computed; a chain is their operators written down once, in the same
order and on the same workspaces, so that its bits are theirs.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from millrace_worker.attention.native_backend import NativeBackend, NativeStep
from millrace_worker.attention.rotary import RotaryTable
from millrace_worker.layers.embedding import Embedding, PackedEmbedding
from millrace_worker.layers.linear import NativeLinear
from millrace_worker.layers.norm import NativeNorm
from millrace_worker.layers.quantized import NativeQuantizedLinear
from millrace_worker.models.decoder import AttentionLayer, DecoderLayer, MlpLayer
from millrace_worker.models.spec import Residual
from millrace_worker.workspace import FreshRows, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from millrace_worker.attention.interface import AttentionBackend
    from millrace_worker.attention.native_backend import Shape
    from millrace_worker.attention.rotary import SwitchedRotaryTable
    from millrace_worker.models.decoder import Block, DecoderStep, Ends

# The slot of the residual stream; then come the layers' pages, then workspaces.
STREAM = 0
# Tables whose rows are picked: the embedding's, then those of the rotations.
EMBEDDING = 0
DTYPES: dict[torch.dtype, Literal["float32", "bfloat16"]] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class NotNativeError(Exception):
    """Python is needed between two operators of a block."""


def chained(layers: Sequence[Block], ends: Ends, backend: AttentionBackend) -> Chain | None:
    """None where Python is needed in between: an operator of torch, a sum over ranks, a mixture, steps of q and k."""
    if not layers or not isinstance(backend, NativeBackend):
        return None
    try:
        return Chain(layers, ends, backend)
    except NotNativeError:
        return None


@contextmanager
def one_thread_of_torch() -> Iterator[None]:
    """Where torch only looks up and copies. Its other threads would go on looking out for work for milliseconds, on
    cores that the kernels' helpers need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Chain:
    """`run` is what the blocks do one after the other, and what is before them where that is only a look-up."""

    def __init__(self, layers: Sequence[Block], ends: Ends, backend: NativeBackend) -> None:
        """Raises NotNativeError."""
        self._chain, self._backend, self._ends = backend.empty_chain(), backend, ends
        # Workspaces' slots follow those of the layers' pages, of which the backend has one for each of its own layers.
        self._num_layers = len(layers)
        _check(len(backend.layers) == len(layers))
        self._width = 0  # of the stream, as its first norm takes it
        self._workspaces: list[Workspace] = []
        self._shapes: list[Shape] = []
        self._embedding = self._embed(ends)
        self._turns = [self._turn(number, table) for number, table in enumerate(ends.rotaries)]
        self._is_torch_needed = self._embedding is None or not all(isinstance(t, RotaryTable) for t in ends.rotaries)
        delta: Workspace | None = None
        for layer in layers:
            delta = self._add(layer, delta)
        assert delta is not None
        _check((delta.dtype, delta.width) == (torch.float32, self._width))
        self._chain.add(STREAM, self._slot(delta), self._width)
        self._stream = Workspace(self._width, torch.float32)

    def run(self, token_ids_T: Tensor, positions_T: Tensor, step: DecoderStep) -> Tensor:
        """The stream after the last block [T, D], in a workspace. Raises ValueError for tensors of another form, and
        without the pages of all layers."""
        if not self._is_torch_needed:
            return self._run(token_ids_T, positions_T, step)
        with one_thread_of_torch():
            return self._run(token_ids_T, positions_T, step)

    def _run(self, token_ids_T: Tensor, positions_T: Tensor, step: DecoderStep) -> Tensor:
        number, pages = token_ids_T.shape[0], self._backend.addresses
        if len(pages) != self._num_layers:
            raise ValueError(f"a chain of {self._num_layers} layers got the pages of {len(pages)}")
        if self._embedding is None:
            x_TD = self._stream_of(self._ends.first(token_ids_T, positions_T), number)
            tables = [(0, 0, 0)]  # of which nothing is picked
        else:
            x_TD = self._stream.rows(number)
            tables = [(*self._embedding, _numbers(token_ids_T, number))]
        rotations = [rotary.table(positions_T) for rotary in step.rotaries]  # the kernels see addresses: they must last
        for (table, rows_T), turns in zip(rotations, self._turns, strict=True):
            if table.dtype is not torch.float32 or table.shape[1] != turns.width or not table.is_contiguous():
                raise ValueError(f"rotations are [., {turns.width}] float32, not {tuple(table.shape)} {table.dtype}")
            tables.append((table.data_ptr(), len(table), _numbers(rows_T, number)))
        slots = [x_TD.data_ptr(), *pages, *[each.reach(number) for each in self._workspaces]]
        attention: NativeStep = step.attention
        self._chain.run(number, slots, [attention.plans[shape] for shape in self._shapes], tables)
        return x_TD

    def _stream_of(self, x_TD: Tensor, number: int) -> Tensor:
        if x_TD.shape != (number, self._width) or x_TD.dtype is not torch.float32 or not x_TD.is_contiguous():
            raise ValueError(f"a stream of [T, {self._width}] float32, contiguous, is {tuple(x_TD.shape)} {x_TD.dtype}")
        return x_TD

    def _embed(self, ends: Ends) -> tuple[int, int] | None:
        """Address and rows of the table that the stream begins with; None where there is more to it than that."""
        if ends.embed_in is not None or ends.positions is not None or ends.embed_norm is not None:
            return None
        embed = ends.embed
        if isinstance(embed, PackedEmbedding):
            self._width = embed.head.num_inputs
            self._chain.lookup(embed.head.kernel, EMBEDDING, embed.part.first, embed.scale, STREAM)
            return 0, 0
        if not isinstance(embed, Embedding) or embed.dtype is not torch.float32:
            return None
        weight, name = embed.weight, DTYPES.get(embed.weight.dtype)
        if name is None or not weight.is_contiguous():
            return None
        self._width = weight.shape[1]
        self._chain.pick(EMBEDDING, name, self._width, embed.scale, STREAM)
        return weight.data_ptr(), len(weight)

    def _turn(self, number: int, table: RotaryTable | SwitchedRotaryTable) -> Workspace:
        """Where the cosines and sines of a step's tokens go."""
        turns = Workspace(2 * table.width, torch.float32)
        self._chain.pick(EMBEDDING + 1 + number, "float32", turns.width, 1.0, self._slot(turns))
        return turns

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
        turns = None if attn.rotary is None else self._turns[attn.rotary]
        turning = None if turns is None else (self._slot(turns), turns.width // 2)
        self._chain.attend(layer.kernel, plan, turning, kv, self._slot(qkv), self._slot(out))
        return out

    def _slot(self, workspace: Workspace) -> int:
        if workspace not in self._workspaces:
            self._workspaces.append(workspace)
        return STREAM + 1 + self._num_layers + self._workspaces.index(workspace)


def _kept(out: Workspace | FreshRows) -> Workspace:
    if not isinstance(out, Workspace):
        raise NotNativeError
    return out


def _numbers(numbers_T: Tensor, number: int) -> int:
    """The address of a table's rows that are wanted."""
    if numbers_T.shape != (number,) or numbers_T.dtype is not torch.int64 or not numbers_T.is_contiguous():
        raise ValueError(f"rows are named by [{number}] int64, not {tuple(numbers_T.shape)} {numbers_T.dtype}")
    return numbers_T.data_ptr()


def _check(fits: bool) -> None:
    """The kernels see addresses only."""
    if not fits:
        raise NotNativeError
