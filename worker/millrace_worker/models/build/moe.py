"""The mixture of experts of one rank: the whole router, and the rank's columns of every expert."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from millrace_worker.layers.experts import ExpertKind
from millrace_worker.layers.linear import Linear
from millrace_worker.layers.moe import MoeLayer
from millrace_worker.models.build.experts import read_experts
from millrace_worker.models.build.mlp import build_mlp, epilogue
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.decoder import MlpLayer
from millrace_worker.models.names import MoeNames
from millrace_worker.models.routing import routing
from millrace_worker.models.sharding import Piece
from millrace_worker.models.spec import InputSigmoid, Mlp, Moe, TopK
from millrace_worker.workspace import Role


def build_moe(parts: Parts, at: str, moe: Moe) -> MoeLayer:
    """The mixture whose tensors' names begin with `at`."""
    names = parts.names.moe
    assert names is not None, "a family with mixtures names their tensors"
    kind = ExpertKind(
        count=moe.num_experts,
        epilogue=epilogue(moe.expert),
        weigh_input=isinstance(moe.routing, InputSigmoid),
    )
    return MoeLayer(
        router=_logits(parts, at + names.router, moe.num_experts, bias=moe.router_bias),
        route=routing(moe, _correction(parts, at, moe, names)),
        experts=parts.operators.experts(kind, read_experts(parts.weights, at, names, moe, parts.spec.hidden)),
        shared=None if moe.shared is None else _shared(parts, at, moe.shared, names),
        shared_gate=_logits(parts, at + names.shared_gate, 1, bias=False) if moe.shared_gate else None,
    )


def _shared(parts: Parts, at: str, shared: Mlp, names: MoeNames) -> MlpLayer:
    own = replace(parts.names, up=names.shared_up, down=names.shared_down)
    return build_mlp(replace(parts, names=own), at, shared)


def _logits(parts: Parts, path: str, count: int, *, bias: bool) -> Linear:
    weight = parts.weights.columns([Piece(path, count, 0, count)], parts.spec.hidden, bias=bias)
    return parts.operators.linear(*weight, Role.ROUTER)


def _correction(parts: Parts, at: str, moe: Moe, names: MoeNames) -> Tensor | None:
    """float32 [experts]."""
    if not (isinstance(moe.routing, TopK) and moe.routing.corrected):
        return None
    shape = (1, moe.num_experts) if names.correction_is_row else (moe.num_experts,)
    stored = parts.weights.checkpoint.read(at + names.correction, shape).flatten()
    return stored.to(parts.weights.device, torch.float32, copy=True)
