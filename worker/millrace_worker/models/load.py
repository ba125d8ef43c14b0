"""From a folder to a running model: read the configuration, build the spec's operators over this rank's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.attention.rotary import RotaryTable
from millrace_worker.attention.torch_backend import TorchBackend
from millrace_worker.distributed import Group
from millrace_worker.layers.embedding import Embedding, Head
from millrace_worker.layers.linear import Epilogue, PlainLinear, make_linear
from millrace_worker.layers.norm import LayerNorm, Norm, RmsNorm
from millrace_worker.models import spec as kinds
from millrace_worker.models.architectures import describe
from millrace_worker.models.checkpoint import Checkpoint
from millrace_worker.models.decoder import AttentionLayer, CausalLM, DecoderLayer, Ends, MlpLayer
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.rope import frequencies
from millrace_worker.models.sharding import Piece, Rank, local_attention, qkv_pieces, up_pieces
from millrace_worker.models.weights import Weights

# A tied head of at most this size is packed too, beside the table that the embedding needs: it is read in every step,
# and packed it takes half the time. A larger one stays a single copy.
MAX_TIED_COPY_BYTES = 64 << 20


def load_model(path: Path, *, dtype: torch.dtype, device: torch.device, group: Group) -> CausalLM:
    """Loads this rank's part of the checkpoint in `path`.

    Raises ConfigError (the configuration), CheckpointError (the weights) or ShardingError (the number of ranks), all
    of them ValueErrors whose message names the file and what was expected.
    """
    config = ModelConfig.read(path)
    spec, names = describe(config)
    checkpoint = Checkpoint(path, names.optional_prefix)
    rank = Rank(group.rank, group.size)
    weights = Weights(checkpoint=checkpoint, rank=rank, dtype=dtype, device=device, transposed=names.transposed)
    with torch.inference_mode():
        model = _Builder(spec, names, weights, group).build()
    # A tied head may be stored all the same; the embedding is what counts.
    tied = (f"{names.head}.weight",) if spec.tied else ()
    checkpoint.check_all_read(names.ignored + tied)
    return model


@dataclass(frozen=True)
class _Builder:
    spec: kinds.Decoder
    names: Names
    weights: Weights
    group: Group

    def build(self) -> CausalLM:
        spec, weights = self.spec, self.weights
        rotaries = list(dict.fromkeys(p for p in map(_position, spec.layers) if isinstance(p, kinds.Rotary)))
        heads = [self._heads(index, layer.attention) for index, layer in enumerate(spec.layers)]
        backend = TorchBackend(heads, weights.dtype, weights.device)
        layers = [self._layer(each, backend, rotaries) for each in heads]
        return CausalLM(spec, self._ends(rotaries), layers, backend)

    def _ends(self, rotaries: list[kinds.Rotary]) -> Ends:
        spec, names, weights = self.spec, self.names, self.weights
        table = weights.vocabulary(names.embed, spec.vocab, spec.hidden)
        first = weights.rank.padded_share(spec.vocab).start
        positions = None
        if spec.learned_positions:
            learned = weights.table(names.positions, spec.max_positions, spec.hidden)
            positions = Embedding(learned, 0, Group())
        return Ends(
            embed=Embedding(table, first, self.group, spec.embed_scale),
            positions=positions,
            rotaries=[
                RotaryTable(frequencies(rotary).to(weights.device), spec.max_positions, weights.dtype)
                for rotary in rotaries
            ],
            final_norm=self._norm(spec.final_norm, names.final_norm),
            head=self._head(table),
        )

    def _head(self, table: Tensor) -> Head:
        spec, names = self.spec, self.names
        if not spec.tied:
            linear = make_linear(self.weights.vocabulary(names.head, spec.vocab, spec.hidden))
        elif table.nbytes <= MAX_TIED_COPY_BYTES:
            linear = make_linear(table)
        else:
            linear = PlainLinear(table, None)
        return Head(linear, spec.vocab, self.group, spec.logit_softcap)

    def _layer(self, heads: Heads, backend: TorchBackend, rotaries: list[kinds.Rotary]) -> DecoderLayer:
        spec, names = self.spec.layers[heads.layer], self.names
        at = names.layer.format(heads.layer) + "."
        shared = spec.residual is kinds.Residual.PARALLEL_SHARED_NORM
        return DecoderLayer(
            residual=spec.residual,
            attn_norm=self._norm(spec.norm, at + names.attn_norm),
            attn=self._attention(at, heads, backend, rotaries),
            attn_post_norm=self._norm(spec.norm, at + names.attn_post_norm) if spec.post_norm else None,
            mlp_norm=None if shared else self._norm(spec.norm, at + names.mlp_norm),
            mlp=self._mlp(at, spec.mlp),
            mlp_post_norm=self._norm(spec.norm, at + names.mlp_post_norm) if spec.post_norm else None,
            group=self.group,
        )

    def _heads(self, layer: int, attention: kinds.Attention) -> Heads:
        """This rank's heads of one layer; loads the norms of q and k."""
        local, query_heads, _ = local_attention(attention, self.weights.rank)
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
            qk_norm=self._qk_norm(layer, local),
        )

    def _qk_norm(self, layer: int, attention: kinds.Attention) -> Norm | None:
        """One norm over the heads of q and k together."""
        if attention.qk_norm is None:
            return None
        at = self.names.layer.format(layer) + "."
        size = attention.head_dim
        q = self.weights.vector(f"{at}{self.names.q_norm}.weight", size).expand(attention.num_heads, size)
        k = self.weights.vector(f"{at}{self.names.k_norm}.weight", size).expand(attention.num_kv_heads, size)
        return _rms_norm(torch.cat((q, k)), attention.qk_norm)

    def _attention(self, at: str, heads: Heads, backend: TorchBackend, rotaries: list[kinds.Rotary]) -> AttentionLayer:
        attention, names, hidden = self.spec.layers[heads.layer].attention, self.names, self.spec.hidden
        _, query_heads, _ = local_attention(attention, self.weights.rank)
        pieces = [_at(at, piece) for piece in qkv_pieces(names, attention, self.weights.rank)]
        part = range(query_heads.start * heads.head_dim, query_heads.stop * heads.head_dim)
        shape = (hidden, attention.num_heads * heads.head_dim)
        position = attention.position
        return AttentionLayer(
            qkv=make_linear(*self.weights.columns(pieces, hidden, bias=attention.qkv_bias)),
            out=make_linear(*self.weights.rows(at + names.out, shape, part, bias=attention.out_bias)),
            heads=heads,
            rotary=rotaries.index(position) if isinstance(position, kinds.Rotary) else None,
            backend=backend,
        )

    def _mlp(self, at: str, mlp: kinds.Mlp) -> MlpLayer:
        hidden, rank = self.spec.hidden, self.weights.rank
        pieces = [_at(at, piece) for piece in up_pieces(self.names, mlp, rank)]
        up = self.weights.columns(pieces, hidden, bias=mlp.bias)
        part = rank.share(mlp.size, "columns of the MLP")
        down = self.weights.rows(at + self.names.down, (hidden, mlp.size), part, bias=mlp.bias)
        return MlpLayer(make_linear(*up, Epilogue(mlp.activation, mlp.gated)), make_linear(*down))

    def _norm(self, norm: kinds.RmsNorm | kinds.LayerNorm, path: str) -> Norm:
        weight = self.weights.vector(f"{path}.weight", self.spec.hidden)
        if isinstance(norm, kinds.RmsNorm):
            return _rms_norm(weight, norm)
        bias = self.weights.vector(f"{path}.bias", self.spec.hidden) if norm.bias else None
        return LayerNorm(weight, bias, norm.eps)


def _position(layer: kinds.Layer) -> kinds.Rotary | kinds.Alibi | None:
    return layer.attention.position


def _rms_norm(weight: Tensor, norm: kinds.RmsNorm) -> RmsNorm:
    return RmsNorm(weight.float() + 1.0 if norm.unit_offset else weight, norm.eps)


def _at(prefix: str, piece: Piece) -> Piece:
    return replace(piece, name=prefix + piece.name)


def alibi_slopes(num_heads: int, max_bias: float) -> list[float]:
    """The slope of each head: a geometric series; for other than powers of two, every second of the next larger one's
    fills up (Press et al. 2021, appendix A)."""
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-max_bias / power * index) for index in range(1, power + 1)]
    return slopes if power == num_heads else (slopes[1::2] + slopes[::2])[:num_heads]
