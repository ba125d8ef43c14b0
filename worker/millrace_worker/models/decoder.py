"""One decoder for every architecture: a spec's parts, made into operators, in the order of the forward pass.

T tokens of a step, D hidden width, R positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from millrace_worker.attention.interface import AttentionBackend, Heads
from millrace_worker.attention.rotary import RotaryTable, Rotation
from millrace_worker.distributed import Group
from millrace_worker.layers.embedding import Embed, Head
from millrace_worker.layers.linear import Linear
from millrace_worker.layers.norm import Norm
from millrace_worker.models.spec import Decoder, Residual
from millrace_worker.step import Batch


@dataclass(frozen=True)
class AttentionLayer:
    qkv: Linear
    out: Linear
    heads: Heads
    rotary: int | None  # which of the model's rotary tables
    backend: AttentionBackend

    def __call__(self, h_TD: Tensor, rotations: list[Rotation], step: object) -> Tensor:
        rotation = None if self.rotary is None else rotations[self.rotary]
        return self.out(self.backend.attend(self.heads, self.qkv(h_TD), rotation, step))


@dataclass(frozen=True)
class MlpLayer:
    up: Linear  # its epilogue is the activation, and the gate where there is one
    down: Linear

    def __call__(self, h_TD: Tensor) -> Tensor:
        return self.down(self.up(h_TD))


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """One transformer block. `x` is the residual stream, `delta` the update not yet added to it.

    Results of operators lie in workspaces: each is used up before its operator, or another of its role, runs again.
    """

    residual: Residual
    attn_norm: Norm
    attn: AttentionLayer
    attn_post_norm: Norm | None
    mlp_norm: Norm | None  # None: the attention's norm is shared
    mlp: MlpLayer
    mlp_post_norm: Norm | None
    group: Group

    def __call__(
        self, x: Tensor, delta: Tensor | None, rotations: list[Rotation], step: object
    ) -> tuple[Tensor, Tensor]:
        h = self.attn_norm.add(x, delta)
        attended = self.attn(h, rotations, step)
        if self.residual is Residual.SEQUENTIAL and self.mlp_norm is not None:
            h = self.mlp_norm.add(x, _normed(self.attn_post_norm, self.group.all_reduce(attended)))
            return x, _normed(self.mlp_post_norm, self.group.all_reduce(self.mlp(h)))
        if self.mlp_norm is not None:
            h = self.mlp_norm(x)
        return x, self.group.all_reduce(attended.add_(self.mlp(h)))


def _normed(norm: Norm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What comes before and after the layers."""

    embed: Embed
    positions: Embed | None
    rotaries: list[RotaryTable]
    final_norm: Norm
    head: Head


class CausalLM:
    """A loaded model on this rank, as `model.Model` describes it."""

    implementation = "native"

    def __init__(self, spec: Decoder, ends: Ends, layers: list[DecoderLayer], backend: AttentionBackend) -> None:
        self.spec, self.backend = spec, backend
        self.vocab_size, self.max_positions = spec.vocab, spec.max_positions
        self.page_size, self.missing = backend.page_size, dict[str, str]()
        self._ends, self._layers = ends, layers

    def plan(self, batch: Batch) -> Any:
        """The step as the attention of all layers sees it."""
        return self.backend.plan(batch)

    @torch.inference_mode()
    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: object) -> Tensor:
        """The residual stream [T, D] after the last layer, for `logits`; K and V of every token go to the pool.

        `token_ids_T` and `positions_T` are int64 on the device; `step` is `plan(batch)` of the same tokens.
        """
        ends = self._ends
        x, delta = ends.embed(token_ids_T), None
        if ends.positions is not None:
            x.add_(ends.positions(positions_T))
        rotations = [table.gather(positions_T) for table in ends.rotaries]
        for layer in self._layers:
            x, delta = layer(x, delta, rotations, step)
        return x if delta is None else x.add_(delta)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        """float32 [R, V] on rank 0, None on the others: every rank has to call it."""
        return self._ends.head(self._ends.final_norm(hidden_RD))

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, step: object, logits_index_R: Tensor | None
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
        layer = self._layers[0]
        linears = sorted({each.name for each in (layer.attn.qkv, layer.attn.out, layer.mlp.up, layer.mlp.down)})
        return {
            "attention": self.backend.name,
            "linear": ", ".join(linears),
            "norm": layer.attn_norm.name,
            "embed": self._ends.embed.name,
            "logits": self._ends.head.name,
        }
