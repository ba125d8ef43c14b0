"""Latent attention of one rank: heads are sharded, the latents and what makes them are the same everywhere."""

from __future__ import annotations

from millrace_worker.attention.latent_backend import LatentBackend, LatentHeads
from millrace_worker.layers.latent import LatentAttentionLayer, QueryLatent
from millrace_worker.layers.linear import Linear
from millrace_worker.layers.norm import Norm, NormWeights
from millrace_worker.models.build.parts import Parts, shifted
from millrace_worker.models.names import LatentNames, Names
from millrace_worker.models.sharding import Piece
from millrace_worker.models.spec import LatentAttention, Rotary
from millrace_worker.models.weights import Weights
from millrace_worker.workspace import Role


def latent_heads(names: Names, weights: Weights, layer: int, spec: LatentAttention) -> LatentHeads:
    """This rank's heads of one layer; loads what makes keys and values of latents."""
    local, size = _local_heads(spec, weights), spec.plain_dim + spec.value_dim
    path = f"{names.layer.format(layer)}.{_names(names).up}"
    rows = Piece(path, spec.num_heads * size, local.start * size, local.stop * size)
    up, _ = weights.plain_columns([rows], spec.latent_dim, bias=False)
    return LatentHeads(
        layer=layer,
        num_heads=len(local),
        latent_dim=spec.latent_dim,
        shared_dim=spec.rotated_dim,
        plain_dim=spec.plain_dim,
        value_dim=spec.value_dim,
        scale=spec.scale,
        up=up.view(len(local), size, spec.latent_dim),
        pairs="neighbours" if spec.position.interleaved else "halves",
    )


def build_latent_attention(
    parts: Parts, spec: LatentAttention, heads: LatentHeads, rotaries: list[Rotary]
) -> LatentAttentionLayer:
    names, weights, linear = _names(parts.names), parts.weights, parts.operators.linear
    backend = parts.operators.backend
    assert isinstance(backend, LatentBackend), "operators of layers with latents have a backend for them"
    at, local = parts.at(heads.layer), _local_heads(spec, weights)
    query_width = spec.plain_dim + spec.rotated_dim
    rows = Piece(at + names.query, spec.num_heads * query_width, local.start * query_width, local.stop * query_width)
    query = weights.columns([rows], spec.query_latent_dim or parts.spec.hidden, bias=False)
    values = range(local.start * spec.value_dim, local.stop * spec.value_dim)
    shape = (parts.spec.hidden, spec.num_heads * spec.value_dim)
    out = weights.rows(at + parts.names.out, shape, values, bias=spec.bias)
    return LatentAttentionLayer(
        query_latent=_query_latent(parts, spec, at),
        query=linear(*query, Role.LATENT_QUERY),
        down=_down(parts, spec, at + names.down, heads.width),
        norm=_norm(parts, spec, at + names.norm, spec.latent_dim),
        out=linear(*out, Role.ATTENTION_DELTA),
        heads=heads,
        rotary=rotaries.index(spec.position),
        backend=backend,
    )


def _query_latent(parts: Parts, spec: LatentAttention, at: str) -> QueryLatent | None:
    if spec.query_latent_dim is None:
        return None
    names, width = _names(parts.names), spec.query_latent_dim
    return QueryLatent(
        _down(parts, spec, at + names.query_down, width), _norm(parts, spec, at + names.query_norm, width)
    )


def _down(parts: Parts, spec: LatentAttention, path: str, width: int) -> Linear:
    """Whole on every rank."""
    rows = Piece(path, width, 0, width)
    return parts.operators.linear(*parts.weights.columns([rows], parts.spec.hidden, bias=spec.bias), Role.LATENT)


def _norm(parts: Parts, spec: LatentAttention, path: str, width: int) -> Norm:
    weight = shifted(parts.weights.vector(f"{path}.weight", width), spec.norm)
    return parts.operators.norm(NormWeights(True, spec.norm.eps, weight), Role.LATENT_NORMED)


def _names(names: Names) -> LatentNames:
    assert names.latent is not None, "a family with latents names their tensors"
    return names.latent


def _local_heads(spec: LatentAttention, weights: Weights) -> range:
    return weights.rank.share(spec.num_heads, "attention heads")
