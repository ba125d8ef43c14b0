"""Operators of the sampler with an implementation for CPUs beside torch's: numpy's use vector instructions there.

All of them treat each row by itself: what a row gets does not depend on how many rows there are, nor on threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def argmax(values_SV: Tensor, out_S: Tensor) -> Tensor:
    """The largest value of each row, the first of equals: int64 [S]. torch's is 13 times slower on a CPU."""
    if values_SV.device.type == "cpu":
        np.argmax(values_SV.numpy(), axis=1, out=out_S.numpy())
        return out_S
    return torch.argmax(values_SV, dim=1, out=out_S)


def argmin(values_SV: Tensor, out_S: Tensor) -> Tensor:
    """The smallest value of each row, the first of equals: int64 [S]."""
    if values_SV.device.type == "cpu":
        np.argmin(values_SV.numpy(), axis=1, out=out_S.numpy())
        return out_S
    return torch.argmin(values_SV, dim=1, out=out_S)


def shares(gaps_SV: Tensor, out_SV: Tensor) -> Tensor:
    """exp(-gaps), divided by the row's sum: the softmax, which costs less than an exponential alone."""
    torch.neg(gaps_SV, out=out_SV)
    return torch.softmax(out_SV, dim=1, out=out_SV)


def row_sums(values_SV: Tensor) -> Tensor:
    """[S, 1]. torch would split the sum of a single row among its threads."""
    if values_SV.device.type == "cpu":
        return torch.from_numpy(values_SV.numpy().sum(axis=1, keepdims=True))
    return values_SV.sum(dim=1, keepdim=True)


def sort(values_SV: Tensor, out_SV: Tensor) -> Tensor:
    """Each row from its smallest value up."""
    if values_SV.device.type == "cpu":
        out_SV.copy_(values_SV)
        out_SV.numpy().sort(axis=1)
        return out_SV
    return out_SV.copy_(values_SV.sort(dim=1).values)


def prefix_sums(values_SK: Tensor, out_SK1: Tensor) -> Tensor:
    """float64 [S, K + 1]: column i is the sum of the first i values. float32 is too short for it."""
    out_SK1[:, 0] = 0
    sums_SK = out_SK1[:, 1:].copy_(values_SK)
    torch.cumsum(sums_SK, dim=1, out=sums_SK)
    return out_SK1
