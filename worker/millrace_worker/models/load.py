"""From a folder to a running model: read the configuration, build the spec's operators over this rank's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.attention.rotary import RotaryTable
from millrace_worker.distributed import Group
from millrace_worker.layers.embedding import Embed, Head, TableSlice
from millrace_worker.layers.linear import Epilogue, Linear
from millrace_worker.layers.norm import Norm, NormWeights, RmsNorm
from millrace_worker.layers.operators import Operators, choose_operators
from millrace_worker.models import spec as kinds
from millrace_worker.models.architectures import describe
from millrace_worker.models.checkpoint import Checkpoint
from millrace_worker.models.decoder import AttentionLayer, CausalLM, DecoderLayer, Ends, MlpLayer
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.rope import frequencies
from millrace_worker.models.sharding import Piece, Rank, local_attention, qkv_pieces, up_pieces
from millrace_worker.models.weights import Weights
from millrace_worker.workspace import Role

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine


def load_model(
    path: Path, *, dtype: torch.dtype, device: torch.device, group: Group, kernels: Machine | None = None
) -> CausalLM:
    """Loads this rank's part of the checkpoint in `path`. `kernels`: what `cpu_kernels.find` answered.

    Raises ConfigError (the configuration), CheckpointError (the weights) or ShardingError (the number of ranks), all
    of them ValueErrors whose message names the file and what was expected.
    """
    config = ModelConfig.read(path)
    spec, names = describe(config)
    checkpoint = Checkpoint(path, names.optional_prefix)
    rank = Rank(group.rank, group.size)
    weights = Weights(checkpoint=checkpoint, rank=rank, dtype=dtype, device=device, transposed=names.transposed)
    with torch.inference_mode():
        model = _load(spec, names, weights, group, kernels)
    # A tied head may be stored all the same; the embedding is what counts.
    tied = (f"{names.head}.weight",) if spec.tied else ()
    checkpoint.check_all_read(names.ignored + tied)
    return model


def _load(spec: kinds.Decoder, names: Names, weights: Weights, group: Group, kernels: Machine | None) -> CausalLM:
    heads = [_heads(names, weights, index, layer.attention) for index, layer in enumerate(spec.layers)]
    operators = choose_operators(kernels, heads, weights.dtype, weights.device)
    return _Builder(spec, names, weights, group, operators).build(heads)


@dataclass(frozen=True)
class _Builder:
    spec: kinds.Decoder
    names: Names
    weights: Weights
    group: Group
    operators: Operators

    def build(self, heads: list[Heads]) -> CausalLM:
        spec = self.spec
        rotaries = list(dict.fromkeys(p for p in map(_position, spec.layers) if isinstance(p, kinds.Rotary)))
        ends = self._ends(rotaries)
        layers = [self._layer(each, rotaries) for each in heads]
        return CausalLM(spec, ends, layers, self.operators.backend)

    def _ends(self, rotaries: list[kinds.Rotary]) -> Ends:
        spec, names, weights, operators = self.spec, self.names, self.weights, self.operators
        embed, head = self._vocabulary()
        positions = None
        if spec.learned_positions:
            learned = weights.table(names.positions, spec.max_positions, spec.hidden)
            positions = operators.embedding(learned, TableSlice())
        return Ends(
            embed=embed,
            positions=positions,
            rotaries=[
                RotaryTable(frequencies(rotary).to(weights.device), spec.max_positions, operators.rotary_dtype)
                for rotary in rotaries
            ],
            final_norm=self._norm(spec.final_norm, names.final_norm, Role.NORMED),
            head=Head(head, spec.vocab, self.group, spec.logit_softcap),
        )

    def _vocabulary(self) -> tuple[Embed, Linear]:
        spec, names, weights, operators = self.spec, self.names, self.weights, self.operators
        table = weights.vocabulary(names.embed, spec.vocab, spec.hidden)
        part = TableSlice(weights.rank.padded_share(spec.vocab).start, self.group, spec.embed_scale)
        if spec.tied:
            return operators.tied(table, part)
        head = weights.vocabulary(names.head, spec.vocab, spec.hidden)
        return operators.embedding(table, part), operators.linear(head, None, Role.LOGITS)

    def _layer(self, heads: Heads, rotaries: list[kinds.Rotary]) -> DecoderLayer:
        spec, names = self.spec.layers[heads.layer], self.names
        at = names.layer.format(heads.layer) + "."
        shared = spec.residual is kinds.Residual.PARALLEL_SHARED_NORM
        return DecoderLayer(
            residual=spec.residual,
            attn_norm=self._norm(spec.norm, at + names.attn_norm, Role.NORMED),
            attn=self._attention(at, heads, rotaries),
            attn_post_norm=self._post_norm(spec, at + names.attn_post_norm),
            mlp_norm=None if shared else self._norm(spec.norm, at + names.mlp_norm, Role.NORMED),
            mlp=self._mlp(at, spec.mlp),
            mlp_post_norm=self._post_norm(spec, at + names.mlp_post_norm),
            group=self.group,
        )

    def _attention(self, at: str, heads: Heads, rotaries: list[kinds.Rotary]) -> AttentionLayer:
        linear, attention, names, hidden = (
            self.operators.linear,
            self.spec.layers[heads.layer].attention,
            self.names,
            self.spec.hidden,
        )
        _, query_heads, _ = local_attention(attention, self.weights.rank)
        pieces = [_at(at, piece) for piece in qkv_pieces(names, attention, self.weights.rank)]
        part = range(query_heads.start * heads.head_dim, query_heads.stop * heads.head_dim)
        shape = (hidden, attention.num_heads * heads.head_dim)
        position = attention.position
        return AttentionLayer(
            qkv=linear(*self.weights.columns(pieces, hidden, bias=attention.qkv_bias), Role.QKV),
            out=linear(*self.weights.rows(at + names.out, shape, part, bias=attention.out_bias), Role.ATTENTION_DELTA),
            heads=heads,
            rotary=rotaries.index(position) if isinstance(position, kinds.Rotary) else None,
            backend=self.operators.backend,
        )

    def _mlp(self, at: str, mlp: kinds.Mlp) -> MlpLayer:
        hidden, rank = self.spec.hidden, self.weights.rank
        pieces = [_at(at, piece) for piece in up_pieces(self.names, mlp, rank)]
        up = self.weights.columns(pieces, hidden, bias=mlp.bias)
        part = rank.share(mlp.size, "columns of the MLP")
        down = self.weights.rows(at + self.names.down, (hidden, mlp.size), part, bias=mlp.bias)
        linear = self.operators.linear
        return MlpLayer(
            up=linear(*up, Role.UP, Epilogue(mlp.activation, mlp.gated)), down=linear(*down, Role.MLP_DELTA)
        )

    def _post_norm(self, layer: kinds.Layer, path: str) -> Norm | None:
        return self._norm(layer.norm, path, Role.DELTA_NORMED) if layer.post_norm else None

    def _norm(self, norm: kinds.RmsNorm | kinds.LayerNorm, path: str, role: Role) -> Norm:
        weight = self.weights.vector(f"{path}.weight", self.spec.hidden)
        if isinstance(norm, kinds.RmsNorm):
            return self.operators.norm(NormWeights(True, norm.eps, _rms_weight(weight, norm)), role)
        bias = self.weights.vector(f"{path}.bias", self.spec.hidden) if norm.bias else None
        return self.operators.norm(NormWeights(False, norm.eps, weight, bias), role)


def _position(layer: kinds.Layer) -> kinds.Rotary | kinds.Alibi | None:
    return layer.attention.position


def _rms_weight(weight: Tensor, norm: kinds.RmsNorm) -> Tensor:
    return weight.float() + 1.0 if norm.unit_offset else weight


def _heads(names: Names, weights: Weights, layer: int, attention: kinds.Attention) -> Heads:
    """This rank's heads of one layer; loads the norms of q and k."""
    local, query_heads, _ = local_attention(attention, weights.rank)
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    alibi = None
    if isinstance(attention.position, kinds.Alibi):
        slopes = alibi_slopes(attention.num_heads, attention.position.max_bias)
        factor = scale if attention.position.scaled else 1.0
        alibi = tuple(slopes[head] * factor for head in query_heads)
    return Heads(
        layer=layer,
        num_heads=local.num_heads,
        num_kv_heads=local.num_kv_heads,
        head_dim=local.head_dim,
        scale=scale,
        rule=ScoreRule(attention.window, attention.softcap, alibi),
        qk_norm=_qk_norm(names, weights, layer, local),
    )


def _qk_norm(names: Names, weights: Weights, layer: int, attention: kinds.Attention) -> RmsNorm | None:
    """One norm over the heads of q and k together."""
    if attention.qk_norm is None:
        return None
    at, size = names.layer.format(layer) + ".", attention.head_dim
    q = weights.vector(f"{at}{names.q_norm}.weight", size).expand(attention.num_heads, size)
    k = weights.vector(f"{at}{names.k_norm}.weight", size).expand(attention.num_kv_heads, size)
    return RmsNorm(_rms_weight(torch.cat((q, k)), attention.qk_norm), attention.qk_norm.eps)


def _at(prefix: str, piece: Piece) -> Piece:
    return replace(piece, name=prefix + piece.name)


def alibi_slopes(num_heads: int, max_bias: float) -> list[float]:
    """The slope of each head: a geometric series; for other than powers of two, every second of the next larger one's
    fills up (Press et al. 2021, appendix A)."""
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-max_bias / power * index) for index in range(1, power + 1)]
    return slopes if power == num_heads else (slopes[1::2] + slopes[::2])[:num_heads]
