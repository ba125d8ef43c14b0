"""What happens to q, k and v between their projection and the attention, where the backend does not do it itself.

T tokens, C columns of q, k, v side by side, N and K heads of this rank, H head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.attention.interface import Heads
from millrace_worker.attention.rotary import Rotation, rotate_
from millrace_worker.distributed import Group


class Places(NamedTuple):
    """What the positions of a step's tokens mean to the layers."""

    rotations: list[Rotation]
    growths: list[Tensor]  # each float32 [T, 1, 1]


class QueryGrowth:
    """Queries grow with the logarithm of their position p: times 1 + beta log(1 + floor((p + offset) / step))."""

    def __init__(self, beta: float, step: int, offset: int) -> None:
        self._beta, self._step, self._offset = beta, step, offset

    def __call__(self, positions_T: Tensor) -> Tensor:
        """float32 [T, 1, 1]."""
        steps = (positions_T + self._offset).div(self._step, rounding_mode="floor")
        return steps.float().log1p_().mul_(self._beta).add_(1.0)[:, None, None]


class QkNorm(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """[T, N + K, H], the heads of q, then those of k."""
        ...


class HeadLayerNorm:
    """LayerNorm of each head, in float32; `weight` and `bias` [N + K, H]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self._weight, self._bias, self._eps = weight.float(), None if bias is None else bias.float(), eps

    def __call__(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), x.shape[-1:], None, None, self._eps) * self._weight
        return (normed if self._bias is None else normed.add_(self._bias)).to(x.dtype)


class QkWidthNorm:
    """RMSNorm of all heads of q as one vector, and of all heads of k as one, wherever they are: the ranks add up their
    squares."""

    def __init__(self, q: Tensor, k: Tensor, totals: tuple[int, int], eps: float, group: Group) -> None:
        """`q` and `k`: the weights of this rank's heads, flat. `totals`: values that all ranks square, for q and for
        k; a head that several ranks hold counts as often."""
        self._weight = torch.cat((q, k)).float()
        self._num_q, self._eps, self._group = len(q), eps, group
        self._shares = torch.tensor(totals, dtype=torch.float32, device=q.device).reciprocal_()

    def __call__(self, x: Tensor) -> Tensor:
        flat_TC = x.flatten(1).to(torch.float32, copy=True)
        q_TC, k_TC = flat_TC[:, : self._num_q], flat_TC[:, self._num_q :]
        squares_T2 = torch.stack([torch.linalg.vector_norm(each, dim=-1) for each in (q_TC, k_TC)], dim=1).square_()
        means_T2 = self._group.all_reduce(squares_T2).mul_(self._shares)
        factors_T2 = means_T2.add_(self._eps).rsqrt_()
        normed_TC = flat_TC * self._weight
        normed_TC[:, : self._num_q].mul_(factors_T2[:, :1])
        normed_TC[:, self._num_q :].mul_(factors_T2[:, 1:])
        return normed_TC.view(x.shape).to(x.dtype)


@dataclass(frozen=True)
class QkvSteps:
    """In their order: norm, clipping, growth of q, rotation; or the rotation before all others."""

    heads: Heads
    norm: QkNorm | None = None
    clip: float | None = None
    growth: int | None = None  # which of the step's growths
    rotates_first: bool = False

    def __call__(self, qkv_TC: Tensor, rotation: Rotation | None, places: Places) -> Rotation | None:
        """Changes `qkv_TC` in place; returns the rotation that is left to the backend."""
        heads = self.heads
        qk = qkv_TC.view(len(qkv_TC), -1, heads.head_dim)[:, : heads.num_heads + heads.num_kv_heads]
        if self.rotates_first and rotation is not None:
            rotate_(qk, rotation, heads.pairs)
            rotation = None
        if self.norm is not None:
            qk.copy_(self.norm(qk))
        if self.clip is not None:
            qkv_TC.clamp_(-self.clip, self.clip)
        if self.growth is not None:
            qk[:, : heads.num_heads].mul_(places.growths[self.growth])
        return rotation
