"""The attention of one rank: its heads, its part of the projections, and what happens to q, k and v between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.layers.norm import RmsNorm
from millrace_worker.layers.qkv import HeadLayerNorm, QkvSteps, QkWidthNorm
from millrace_worker.models import spec as kinds
from millrace_worker.models.build.parts import Parts, shifted
from millrace_worker.models.decoder import AttentionLayer
from millrace_worker.models.names import Names
from millrace_worker.models.sharding import local_attention, qkv_pieces
from millrace_worker.models.weights import Weights
from millrace_worker.workspace import Role


def local_heads(names: Names, weights: Weights, layer: int, attention: kinds.Attention) -> Heads:
    """This rank's heads of one layer; loads the norms of q and k where the backend applies them."""
    local, query_heads, _ = local_attention(attention, weights.rank)
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    alibi = None
    if isinstance(attention.position, kinds.Alibi):
        slopes = alibi_slopes(attention.num_heads, attention.position.max_bias)
        factor = scale if attention.position.scaled else 1.0
        alibi = tuple(slopes[head] * factor for head in query_heads)
    neighbours = isinstance(attention.position, kinds.Rotary) and attention.position.interleaved
    qk_norm = None
    if isinstance(attention.qk_norm, kinds.HeadNorm) and _is_backends(attention):
        weight = _head_vectors(names, weights, layer, attention, "weight")
        qk_norm = RmsNorm(shifted(weight, attention.qk_norm.norm), attention.qk_norm.norm.eps)
    return Heads(
        layer=layer,
        num_heads=local.num_heads,
        num_kv_heads=local.num_kv_heads,
        head_dim=local.head_dim,
        scale=scale,
        rule=ScoreRule(attention.window, attention.softcap, alibi, attention.chunk),
        qk_norm=qk_norm,
        pairs="neighbours" if neighbours else "halves",
        sinks=_sinks(names, weights, layer, attention) if attention.sinks else None,
    )


def build_attention(
    parts: Parts, attention: kinds.Attention, heads: Heads, rotaries: list[kinds.Rotary]
) -> AttentionLayer:
    names, weights, linear = parts.names, parts.weights, parts.operators.linear
    at, hidden = parts.at(heads.layer), parts.spec.hidden
    _, query_heads, _ = local_attention(attention, weights.rank)
    part = range(query_heads.start * heads.head_dim, query_heads.stop * heads.head_dim)
    shape = (hidden, attention.num_heads * heads.head_dim)
    qkv = weights.columns(qkv_pieces(names, attention, weights.rank, at), hidden, bias=attention.qkv_bias)
    out = weights.rows(at + names.out, shape, part, bias=attention.out_bias)
    position = attention.position
    return AttentionLayer(
        qkv=linear(*qkv, Role.QKV),
        steps=_qkv_steps(parts, heads, attention),
        out=linear(*out, Role.ATTENTION_DELTA),
        heads=heads,
        rotary=rotaries.index(position) if isinstance(position, kinds.Rotary) else None,
        backend=parts.operators.backend,
    )


def _sinks(names: Names, weights: Weights, layer: int, attention: kinds.Attention) -> tuple[float, ...]:
    _, held, _ = local_attention(attention, weights.rank)
    name = f"{names.layer.format(layer)}.{names.sinks}"
    return tuple(weights.part(name, (attention.num_heads,), slice(held.start, held.stop)).tolist())


def _is_backends(attention: kinds.Attention) -> bool:
    """Whether the backend applies the norm of q and k: an RMSNorm with nothing between it and the rotation."""
    spec = attention.qk_norm
    return (
        isinstance(spec, kinds.HeadNorm)
        and isinstance(spec.norm, kinds.RmsNorm)
        and not spec.after_rotation
        and attention.clip is None
        and attention.query_growth is None
    )


def _qkv_steps(parts: Parts, heads: Heads, attention: kinds.Attention) -> QkvSteps | None:
    """What the backend does not do itself."""
    spec, norm = attention.qk_norm, None
    match spec:
        case kinds.HeadNorm() if not _is_backends(attention):
            norm = _head_norm(parts, heads.layer, attention, spec.norm)
        case kinds.WidthNorm():
            norm = _width_norm(parts, heads.layer, attention, spec.norm)
    growth = attention.query_growth and growths(parts.spec).index(attention.query_growth)
    if norm is None and attention.clip is None and growth is None:
        return None
    rotates = isinstance(spec, kinds.HeadNorm) and spec.after_rotation
    return QkvSteps(heads, norm, attention.clip, growth, rotates)


def growths(spec: kinds.Decoder) -> list[kinds.QueryGrowth]:
    """The different ones of all layers."""
    found = (getattr(layer.attention, "query_growth", None) for layer in spec.layers)
    return list(dict.fromkeys(each for each in found if each is not None))


def _head_norm(
    parts: Parts, layer: int, attention: kinds.Attention, norm: kinds.RmsNorm | kinds.LayerNorm
) -> RmsNorm | HeadLayerNorm:
    weight = shifted(_head_vectors(parts.names, parts.weights, layer, attention, "weight"), norm)
    if isinstance(norm, kinds.RmsNorm):
        return RmsNorm(weight, norm.eps)
    bias = _head_vectors(parts.names, parts.weights, layer, attention, "bias") if norm.bias else None
    return HeadLayerNorm(weight, bias, norm.eps)


def _width_norm(parts: Parts, layer: int, attention: kinds.Attention, norm: kinds.RmsNorm) -> QkWidthNorm:
    weights, size = parts.weights, attention.head_dim
    local, *places = local_attention(attention, weights.rank)
    found = []
    for path, total, held in zip(
        (parts.names.q_norm, parts.names.k_norm), (attention.num_heads, attention.num_kv_heads), places, strict=True
    ):
        part = slice(held.start * size, held.stop * size)
        found.append(shifted(weights.part(f"{parts.at(layer)}{path}.weight", (total * size,), part), norm))
    copies = weights.rank.size * local.num_kv_heads // attention.num_kv_heads
    totals = (attention.num_heads * size, attention.num_kv_heads * size * copies)
    return QkWidthNorm(found[0], found[1], totals, norm.eps, parts.group)


def _head_vectors(names: Names, weights: Weights, layer: int, attention: kinds.Attention, leaf: str) -> Tensor:
    """A norm's weight or bias for this rank's heads of q, then of k: [N + K, H]."""
    assert isinstance(attention.qk_norm, kinds.HeadNorm)
    at, size = names.layer.format(layer) + ".", attention.head_dim
    _, *places = local_attention(attention, weights.rank)
    if leaf == "weight" and not attention.qk_norm.norm.weight:
        return torch.ones(sum(map(len, places)), size, device=weights.device)
    found = []
    for path, total, held in zip(
        (names.q_norm, names.k_norm), (attention.num_heads, attention.num_kv_heads), places, strict=True
    ):
        name = f"{at}{path}.{leaf}"
        if not attention.qk_norm.own_weights:
            found.append(weights.vector(name, size).expand(len(held), size))
        elif "{}" in path:
            every = [weights.vector(name.format(head), size) for head in range(total)]
            found.append(torch.stack(every[held.start : held.stop]))
        else:
            found.append(weights.part(name, (total, size), slice(held.start, held.stop)))
    return torch.cat(found)


def alibi_slopes(num_heads: int, max_bias: float) -> list[float]:
    """The slope of each head: a geometric series; for other than powers of two, every second of the next larger one's
    fills up (Press et al. 2021, appendix A)."""
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-max_bias / power * index) for index in range(1, power + 1)]
    return slopes if power == num_heads else (slopes[1::2] + slopes[::2])[:num_heads]
