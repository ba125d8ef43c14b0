"""What happens to q, k and v between their projection and the attention, where the backend does not do it itself.

T tokens, C columns of q, k, v side by side, N and K heads of this rank, H head_dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.attention.interface import Heads
from millrace_worker.attention.rotary import Rotation, rotate_
from millrace_worker.distributed import Group


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


class QkvSteps:
    """In their order: norm, clipping, rotation; or rotation and then the norm."""

    def __init__(self, heads: Heads, norm: QkNorm | None, clip: float | None, *, rotates_first: bool = False) -> None:
        self._heads, self._norm, self._clip, self._rotates_first = heads, norm, clip, rotates_first

    def __call__(self, qkv_TC: Tensor, rotation: Rotation | None) -> Rotation | None:
        """Changes `qkv_TC` in place; returns the rotation that is left to the backend."""
        heads = self._heads
        qk = qkv_TC.view(len(qkv_TC), -1, heads.head_dim)[:, : heads.num_heads + heads.num_kv_heads]
        if self._rotates_first and rotation is not None:
            rotate_(qk, rotation, heads.pairs)
            rotation = None
        if self._norm is not None:
            qk.copy_(self._norm(qk))
        if self._clip is not None:
            qkv_TC.clamp_(-self._clip, self._clip)
        return rotation
