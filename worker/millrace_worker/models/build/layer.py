"""One transformer block: its two sublayers by the types of their kinds, and how they join the residual stream."""

from __future__ import annotations

from millrace_worker.attention.interface import Heads
from millrace_worker.attention.latent_backend import LatentHeads
from millrace_worker.layers.norm import Norm, PassThrough
from millrace_worker.models import spec as kinds
from millrace_worker.models.build.attention import build_attention, local_heads
from millrace_worker.models.build.latent import build_latent_attention, latent_heads
from millrace_worker.models.build.mlp import build_mlp
from millrace_worker.models.build.moe import build_moe
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.decoder import Attention, Block, DecoderLayer, FeedForward, NormedStreamLayer
from millrace_worker.models.names import Names
from millrace_worker.models.weights import Weights
from millrace_worker.workspace import Role


def build_layer(parts: Parts, heads: Heads | LatentHeads, rotaries: list[kinds.Rotary]) -> Block:
    """Layer `heads.layer` of the spec."""
    spec, names, at = parts.spec.layers[heads.layer], parts.names, parts.at(heads.layer)
    attn, mlp = _build_attention(parts, heads, rotaries), build_feed_forward(parts, at, spec.mlp)
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


def layer_heads(
    names: Names, weights: Weights, layer: int, spec: kinds.Attention | kinds.LatentAttention
) -> Heads | LatentHeads:
    """This rank's heads of one layer."""
    match spec:
        case kinds.Attention():
            return local_heads(names, weights, layer, spec)
        case kinds.LatentAttention():
            return latent_heads(names, weights, layer, spec)


def _build_attention(parts: Parts, heads: Heads | LatentHeads, rotaries: list[kinds.Rotary]) -> Attention:
    match parts.spec.layers[heads.layer].attention, heads:
        case kinds.Attention() as spec, Heads():
            return build_attention(parts, spec, heads, rotaries)
        case kinds.LatentAttention() as spec, LatentHeads():
            return build_latent_attention(parts, spec, heads, rotaries)
    raise TypeError("heads are of the kind of their layer's attention")


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
