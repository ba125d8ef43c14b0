"""One decoder for every architecture: a spec's parts, made into operators, in the order of the forward pass.

T tokens of a step, D hidden width, R positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from millrace_worker.attention.interface import AttentionBackend, Heads
from millrace_worker.attention.rotary import RotaryTable, StepRotation, SwitchedRotaryTable, split
from millrace_worker.distributed import Group
from millrace_worker.layers.embedding import Embed, Head
from millrace_worker.layers.linear import Linear, Named
from millrace_worker.layers.norm import Norm
from millrace_worker.layers.qkv import Places, QkvSteps, QueryGrowth
from millrace_worker.models.reach import reach_of
from millrace_worker.models.spec import Decoder, Residual
from millrace_worker.step import Batch


class Attention(Protocol):
    """The first sublayer of a block: the normalized stream [T, D] to this rank's part of what it adds."""

    @property
    def linears(self) -> tuple[Linear, ...]: ...

    def __call__(self, h_TD: Tensor, places: Places, step: object) -> Tensor: ...


class FeedForward(Protocol):
    """The second sublayer of a block: the normalized stream [T, D] to this rank's part of what it adds."""

    @property
    def linears(self) -> tuple[Named, ...]: ...

    def __call__(self, h_TD: Tensor) -> Tensor: ...


class Block(Protocol):
    """One layer. `x` is the residual stream, `delta` the update not yet added to it; `x` may be changed in place."""

    @property
    def attn(self) -> Attention: ...

    @property
    def mlp(self) -> FeedForward: ...

    def __call__(
        self, x: Tensor, delta: Tensor | None, places: Places, step: object
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    qkv: Linear
    steps: QkvSteps | None
    out: Linear
    heads: Heads
    rotary: int | None  # which of the model's rotary tables
    backend: AttentionBackend

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.out

    def __call__(self, h_TD: Tensor, places: Places, step: object) -> Tensor:
        rotation, qkv_TC = None if self.rotary is None else places.rotations[self.rotary], self.qkv(h_TD)
        if self.steps is not None:
            rotation = self.steps(qkv_TC, rotation, places)
        return self.out(self.backend.attend(self.heads, qkv_TC, rotation, step))


@dataclass(frozen=True)
class MlpLayer:
    up: Linear  # its epilogue is the activation, and the gate where there is one
    down: Linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.up, self.down

    def __call__(self, h_TD: Tensor) -> Tensor:
        return self.down(self.up(h_TD))


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """A block whose norms stand before its sublayers, after them, or both; the residual stream itself is never normed.

    Results of operators lie in workspaces: each is used up before its operator, or another of its role, runs again.
    """

    residual: Residual
    attn_norm: Norm
    attn: Attention
    attn_post_norm: Norm | None
    mlp_norm: Norm | None  # None: the attention's norm is shared
    mlp: FeedForward
    mlp_post_norm: Norm | None
    scale: float  # of what each sublayer adds to the stream
    group: Group

    def __call__(self, x: Tensor, delta: Tensor | None, places: Places, step: object) -> tuple[Tensor, Tensor | None]:
        h = self.attn_norm.add(x, delta)
        attended = self.attn(h, places, step)
        if self.residual is Residual.SEQUENTIAL and self.mlp_norm is not None:
            h = self.mlp_norm.add(x, self._update(attended, self.attn_post_norm))
            return x, self._update(self.mlp(h), self.mlp_post_norm)
        if self.mlp_norm is not None:
            h = self.mlp_norm(x)
        return x, self._update(attended.add_(self.mlp(h)), None)

    def _update(self, part: Tensor, norm: Norm | None) -> Tensor:
        """What is added to the stream, of this rank's part of it."""
        whole = self.group.all_reduce(part)
        whole = whole if norm is None else norm(whole)
        return whole if self.scale == 1.0 else whole.mul_(self.scale)


@dataclass(frozen=True, kw_only=True)
class NormedStreamLayer:
    """A block that normalizes the stream after each addition; norms answer the stream's dtype, in memory of its own."""

    attn: Attention
    attn_norm: Norm
    mlp: FeedForward
    mlp_norm: Norm
    group: Group
    dtype: torch.dtype  # what linear layers take

    def __call__(self, x: Tensor, delta: Tensor | None, places: Places, step: object) -> tuple[Tensor, Tensor | None]:
        if delta is not None:
            x.add_(delta)
        x = self.attn_norm.add(x, self.group.all_reduce(self.attn(x.to(self.dtype), places, step)))
        return self.mlp_norm.add(x, self.group.all_reduce(self.mlp(x.to(self.dtype)))), None


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What comes before and after the layers."""

    embed: Embed
    embed_in: Linear | None  # from the table's width to the layers', where they differ
    positions: Embed | None
    embed_norm: Norm | None
    rotaries: list[RotaryTable | SwitchedRotaryTable]
    growths: list[QueryGrowth]
    final_norm: Norm
    embed_out: Linear | None
    head: Head
    dtype: torch.dtype  # what linear layers take

    def first(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """The residual stream [T, D] before the first layer."""
        x = self.embed(token_ids_T)
        if self.embed_in is not None:
            x = self.embed_in(x.to(self.dtype))
        if self.positions is not None:
            x.add_(self.positions(positions_T))
        return x if self.embed_norm is None else self.embed_norm(x)

    def last(self, hidden_RD: Tensor) -> Tensor | None:
        """float32 [R, V] on rank 0, None on the others."""
        h_RD = self.final_norm(hidden_RD)
        return self.head(h_RD if self.embed_out is None else self.embed_out(h_RD))


@dataclass(frozen=True)
class DecoderStep:
    """What all layers need to know of a step."""

    attention: Any
    rotaries: list[StepRotation]


class BlockChain(Protocol):
    """The embedding and all blocks at once (`chain.py`)."""

    def run(self, token_ids_T: Tensor, positions_T: Tensor, step: DecoderStep) -> Tensor:
        """As `CausalLM.hidden`; valid until the next call."""
        ...


class CausalLM:
    """A loaded model on this rank, as `model.Model` describes it."""

    implementation = "native"

    def __init__(
        self, spec: Decoder, ends: Ends, layers: list[Block], backend: AttentionBackend, chain: BlockChain | None = None
    ) -> None:
        """`chain`: what does in one call what the layers do, where there is such a thing."""
        self.spec, self.backend, self.chain = spec, backend, chain
        self.vocab_size, self.max_positions = spec.vocab, spec.max_positions
        self.page_size, self.missing = backend.page_size, dict[str, str]()
        self.reach = reach_of(spec)
        self._ends, self._layers = ends, layers

    def plan(self, batch: Batch) -> DecoderStep:
        return DecoderStep(self.backend.plan(batch), [table.plan(batch) for table in self._ends.rotaries])

    @torch.inference_mode()
    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: DecoderStep) -> Tensor:
        """The residual stream [T, D] after the last layer, for `logits`; K and V of every token go to the pool.

        Valid until the next call. `token_ids_T` and `positions_T` are int64 on the device; `step` is `plan(batch)` of
        the same tokens.
        """
        if self.chain is not None:
            return self.chain.run(token_ids_T, positions_T, step)
        x, delta = self._ends.first(token_ids_T, positions_T), None
        turns = [rotary.rows(positions_T) for rotary in step.rotaries]
        places = Places(list(map(split, turns)), [growth(positions_T) for growth in self._ends.growths])
        for layer in self._layers:
            x, delta = layer(x, delta, places, step.attention)
        return x if delta is None else x.add_(delta)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        """float32 [R, V] on rank 0, None on the others: every rank has to call it."""
        return self._ends.last(hidden_RD)

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, step: DecoderStep, logits_index_R: Tensor | None
    ) -> Tensor | None:
        """`logits` of the tokens that `logits_index_R` (int64, on the device) names; None names all."""
        hidden_TD = self.hidden(token_ids_T, positions_T, step)
        return self.logits(hidden_TD if logits_index_R is None else hidden_TD.index_select(0, logits_index_R))

    def allocate_kv(self, num_pages: int) -> None:
        """Makes the KV pool; an earlier one is dropped first."""
        self.backend.allocate(num_pages)

    def page_bytes(self) -> int:
        """KV bytes of one page on this rank, all layers."""
        return self.backend.page_bytes()

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        """Copies whole pages (integer ids on the device), K and V of all layers."""
        self.backend.copy_pages(sources, targets)

    def implementations(self) -> dict[str, str]:
        """Which implementation each operator got, for the log."""
        linears = sorted({each.name for layer in self._layers for each in (*layer.attn.linears, *layer.mlp.linears)})
        return {
            "attention": self.backend.name,
            "linear": ", ".join(linears),
            "norm": self._ends.final_norm.name,
            "embed": self._ends.embed.name,
            "logits": self._ends.head.name,
        }
