"""One transformer block: its two sublayers by the types of their kinds, and how they join the residual stream."""

from __future__ import annotations

from millrace_worker.attention.interface import Heads
from millrace_worker.layers.norm import Norm, PassThrough
from millrace_worker.models import spec as kinds
from millrace_worker.models.build.attention import build_attention
from millrace_worker.models.build.mlp import build_mlp
from millrace_worker.models.build.moe import build_moe
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.decoder import Block, DecoderLayer, FeedForward, NormedStreamLayer
from millrace_worker.workspace import Role


def build_layer(parts: Parts, heads: Heads, rotaries: list[kinds.Rotary]) -> Block:
    """Layer `heads.layer` of the spec."""
    spec, names, at = parts.spec.layers[heads.layer], parts.names, parts.at(heads.layer)
    attn, mlp = build_attention(parts, heads, rotaries), build_feed_forward(parts, at, spec.mlp)
    if spec.residual is kinds.Residual.NORMED_STREAM:
        return NormedStreamLayer(
            attn=attn,
            attn_norm=parts.norm(spec.norm, at + names.attn_norm, Role.STREAM),
            mlp=mlp,
            mlp_norm=parts.norm(spec.norm, at + names.mlp_norm, Role.STREAM),
            group=parts.group,
            dtype=parts.weights.dtype,
        )
    shared = spec.residual is kinds.Residual.PARALLEL_SHARED_NORM
    return DecoderLayer(
        residual=spec.residual,
        attn_norm=_pre_norm(parts, spec, at + names.attn_norm),
        attn=attn,
        attn_post_norm=_post_norm(parts, spec, at + names.attn_post_norm),
        mlp_norm=None if shared else _pre_norm(parts, spec, at + names.mlp_norm),
        mlp=mlp,
        mlp_post_norm=_post_norm(parts, spec, at + names.mlp_post_norm),
        scale=spec.residual_scale,
        group=parts.group,
    )


def build_feed_forward(parts: Parts, at: str, spec: kinds.FeedForward) -> FeedForward:
    """The second sublayer of the layer whose names begin with `at`."""
    match spec:
        case kinds.Mlp():
            return build_mlp(parts, at, spec)
        case kinds.Moe():
            return build_moe(parts, at, spec)


def _pre_norm(parts: Parts, layer: kinds.Layer, path: str) -> Norm:
    return parts.norm(layer.norm, path, Role.NORMED) if layer.pre_norm else PassThrough(parts.weights.dtype)


def _post_norm(parts: Parts, layer: kinds.Layer, path: str) -> Norm | None:
    return parts.norm(layer.norm, path, Role.DELTA_NORMED) if layer.post_norm else None
