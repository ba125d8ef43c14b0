"""From a spec to the operators of one rank: heads and columns are sharded as in any decoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from millrace_worker.layers.linear import Linear, PlainLinear
from millrace_worker.layers.norm import Norm, NormWeights, RmsNorm
from millrace_worker.models.build.ends import build_ends
from millrace_worker.models.build.mlp import build_mlp
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.decoder import MlpLayer
from millrace_worker.models.encoder_decoder.layers import (
    Block,
    CrossAttention,
    DecoderLayer,
    EncoderLayer,
    SelfAttention,
)
from millrace_worker.models.encoder_decoder.model import EncoderDecoderModel, Stacks
from millrace_worker.models.encoder_decoder.spec import EncoderDecoder, EncoderDecoderNames
from millrace_worker.models.encoder_decoder.state import StateShape
from millrace_worker.models.names import Names
from millrace_worker.models.sharding import Piece, local_attention, qkv_pieces
from millrace_worker.workspace import Role


class Builder:
    """`parts` are those of the decoder, whose spec is `spec.ends`."""

    def __init__(self, spec: EncoderDecoder, names: EncoderDecoderNames, parts: Parts) -> None:
        self.spec, self.names, self.parts = spec, names, parts
        local, self.heads, _ = local_attention(spec.attention, parts.weights.rank)
        self.num_heads, self.inner = local.num_heads, spec.attention.num_heads * spec.attention.head_dim

    def build(self) -> EncoderDecoderModel:
        """Raises CheckpointError, ShardingError."""
        spec, names, parts = self.spec, self.names, self.parts
        ends = replace(build_ends(parts, []), final_norm=self._norm(names.decoder.final_norm))
        encoder = replace(parts, names=names.encoder)
        stacks = Stacks(
            encoder=[self._encoder_layer(encoder, index) for index in range(spec.num_encoder_layers)],
            encoder_norm=self._norm(names.encoder_norm),
            decoder=[self._decoder_layer(index) for index in range(spec.num_decoder_layers)],
            biases=(self._bias(names.encoder_bias), self._bias(names.decoder_bias)),
        )
        shape = StateShape(
            num_layers=spec.num_decoder_layers,
            num_heads=self.num_heads,
            head_dim=spec.attention.head_dim,
            dtype=parts.weights.dtype,
            device=parts.weights.device,
        )
        return EncoderDecoderModel(spec, ends, stacks, shape)

    def _encoder_layer(self, parts: Parts, index: int) -> EncoderLayer:
        at = parts.at(index)
        return EncoderLayer(self._self_attention(at, parts.names), self._block(parts, at), self.num_heads)

    def _decoder_layer(self, index: int) -> DecoderLayer:
        at, names = self.parts.at(index), self.names
        cross = CrossAttention(
            norm=self._norm(at + names.cross_norm),
            query=self._columns([at + names.cross_q]),
            kv=self._columns([at + path for path in names.cross_kv]),
            out=self._rows(at + names.cross_out),
        )
        attention = self._self_attention(at, names.decoder)
        return DecoderLayer(index, attention, cross, self._block(self.parts, at), self.num_heads)

    def _self_attention(self, at: str, names: Names) -> SelfAttention:
        pieces = qkv_pieces(names, self.spec.attention, self.parts.weights.rank, at)
        qkv, _ = self.parts.weights.columns(pieces, self.spec.ends.hidden, bias=False)
        return SelfAttention(
            norm=self._norm(at + names.attn_norm),
            qkv=self.parts.operators.linear(qkv, None, Role.QKV),
            out=self._rows(at + names.out),
        )

    def _block(self, parts: Parts, at: str) -> Block:
        mlp = build_mlp(parts, at, self.spec.mlp)
        if parts.weights.dtype is torch.float16:
            mlp = self._wide(parts, at, mlp)
        return Block(self._norm(at + parts.names.mlp_norm), mlp, parts.group)

    def _wide(self, parts: Parts, at: str, mlp: MlpLayer) -> MlpLayer:
        """What T5's MLPs add to the stream does not fit into float16."""
        weights, size = replace(parts.weights, dtype=torch.float32), self.spec.mlp.size
        part = weights.rank.columns(size, "columns of the MLP")
        down, _ = weights.plain_rows(at + parts.names.down, (self.spec.ends.hidden, size), part, bias=False)
        return replace(mlp, down=WideLinear(down))

    def _columns(self, paths: list[str]) -> Linear:
        """This rank's heads of the projections `paths`, one after the other."""
        size = self.spec.attention.head_dim
        here = (self.heads.start * size, self.heads.stop * size)
        pieces = [Piece(path, self.inner, *here) for path in paths]
        weight, _ = self.parts.weights.columns(pieces, self.spec.ends.hidden, bias=False)
        return self.parts.operators.linear(weight, None, Role.QKV)

    def _rows(self, path: str) -> Linear:
        size = self.spec.attention.head_dim
        part = range(self.heads.start * size, self.heads.stop * size)
        weight, _ = self.parts.weights.rows(path, (self.spec.ends.hidden, self.inner), part, bias=False)
        return self.parts.operators.linear(weight, None, Role.ATTENTION_DELTA)

    def _norm(self, path: str) -> Norm:
        """Of the float32 stream, to what linear layers take."""
        weights, operators, eps = self.parts.weights, self.parts.operators, self.spec.norm.eps
        weight = weights.vector(f"{path}.weight", self.spec.ends.hidden)
        if operators.stream_dtype is torch.float32:
            return operators.norm(NormWeights(True, eps, weight), Role.NORMED)
        return RmsNorm(weight, eps, weights.dtype)

    def _bias(self, path: str) -> Tensor:
        """[buckets, N] of this rank's heads."""
        shape, heads = (self.spec.bias.buckets, self.spec.attention.num_heads), self.heads
        stored = self.parts.weights.checkpoint.read(
            f"{path}.weight", shape, slice(None), slice(heads.start, heads.stop)
        )
        return stored.to(self.parts.weights.device, self.parts.weights.dtype, copy=True)


class WideLinear(PlainLinear):
    """Computes in its weight's dtype, whatever it is given."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight, None)
        self._dtype = weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.to(self._dtype))
