"""What every builder takes: the spec, where its tensors are, and who makes operators of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.distributed import Group
from millrace_worker.layers.norm import Norm, NormWeights
from millrace_worker.layers.operators import Operators
from millrace_worker.models import spec as kinds
from millrace_worker.models.names import Names
from millrace_worker.models.weights import Weights
from millrace_worker.workspace import Role


@dataclass(frozen=True)
class Parts:
    spec: kinds.Decoder
    names: Names
    weights: Weights
    group: Group
    operators: Operators

    def at(self, layer: int) -> str:
        """What the names of a layer's tensors begin with."""
        return self.names.layer.format(layer) + "."

    def norm(self, norm: kinds.RmsNorm | kinds.LayerNorm, path: str, role: Role) -> Norm:
        """Of the residual stream, or of what is added to it; `path` is the tensor's name without its end."""
        width = self.spec.hidden
        weight = self.weights.vector(f"{path}.weight", width) if norm.weight else torch.ones(width)
        weight = shifted(weight, norm).to(self.weights.device)
        if isinstance(norm, kinds.RmsNorm):
            return self.operators.norm(NormWeights(True, norm.eps, weight), role)
        bias = self.weights.vector(f"{path}.bias", width) if norm.bias and norm.weight else None
        return self.operators.norm(NormWeights(False, norm.eps, weight, bias), role)


def shifted(weight: Tensor, norm: kinds.RmsNorm | kinds.LayerNorm) -> Tensor:
    """The weight as it is multiplied: 1 is added where the family stores it without."""
    return weight.float() + 1.0 if norm.unit_offset else weight
