"""What comes before and after the layers: the vocabulary on both sides, positions, the last norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from millrace_worker.layers.embedding import Embed, Head, TableSlice
from millrace_worker.layers.linear import Linear
from millrace_worker.layers.norm import PassThrough
from millrace_worker.layers.qkv import QueryGrowth
from millrace_worker.models import spec as kinds
from millrace_worker.models.build.attention import growths
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.decoder import Ends
from millrace_worker.models.rope import rotary_table
from millrace_worker.workspace import Role


def build_ends(parts: Parts, rotaries: list[kinds.Rotary]) -> Ends:
    spec, names, weights, operators = parts.spec, parts.names, parts.weights, parts.operators
    embed, head = _vocabulary(parts)
    embed_in, embed_out = _projections(parts)
    return Ends(
        embed=embed,
        embed_in=embed_in,
        positions=_positions(parts),
        embed_norm=None if spec.embed_norm is None else parts.norm(spec.embed_norm, names.embed_norm, Role.STREAM),
        rotaries=[
            rotary_table(rotary, spec.max_positions, operators.rotary_dtype, weights.device) for rotary in rotaries
        ],
        growths=[QueryGrowth(each.beta, each.step, each.offset) for each in growths(spec)],
        final_norm=(
            PassThrough(weights.dtype)
            if spec.final_norm is None
            else parts.norm(spec.final_norm, names.final_norm, Role.NORMED)
        ),
        embed_out=embed_out,
        head=Head(head, spec.vocab, parts.group, scale=spec.logit_scale, softcap=spec.logit_softcap),
        dtype=weights.dtype,
    )


def _positions(parts: Parts) -> Embed | None:
    spec = parts.spec
    if not spec.learned_positions:
        return None
    rows = spec.position_offset + spec.max_positions
    table = parts.weights.table(parts.names.positions, rows, spec.hidden)
    return parts.operators.embedding(table[spec.position_offset :], TableSlice())


def _vocabulary(parts: Parts) -> tuple[Embed, Linear]:
    spec, names, weights, operators = parts.spec, parts.names, parts.weights, parts.operators
    width = spec.embed_width or spec.hidden
    table = weights.vocabulary(names.embed, spec.vocab, width)
    part = TableSlice(weights.rank.padded_share(spec.vocab).start, parts.group, spec.embed_scale)
    bias = weights.vocabulary_vector(f"{names.head}.bias", spec.vocab) if spec.head_bias else None
    if spec.tied and bias is None:
        return operators.tied(table, part)
    head = table if spec.tied else weights.vocabulary(names.head, spec.vocab, width)
    if spec.head_normed:
        head = _of_length_one(head)
    return operators.embedding(table, part), operators.linear(head, bias, Role.LOGITS)


def _of_length_one(rows: Tensor) -> Tensor:
    return F.normalize(rows.float()).to(rows.dtype)


def _projections(parts: Parts) -> tuple[Linear | None, Linear | None]:
    """Between the table's width and the layers'; whole on every rank."""
    spec, names, weights, linear = parts.spec, parts.names, parts.weights, parts.operators.linear
    if spec.embed_width is None:
        return None, None
    into = weights.table(names.embed_in, spec.hidden, spec.embed_width)
    back = weights.table(names.embed_out, spec.embed_width, spec.hidden)
    return linear(into, None, Role.STREAM), linear(back, None, Role.NORMED)
