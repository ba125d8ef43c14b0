"""The learned bias of T5 on scores, by the distance between query and key (Raffel et al. 2020, section 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from millrace_worker.models.encoder_decoder.spec import RelativeBias


def bucket(distances: Tensor, buckets: int, max_distance: int) -> Tensor:
    """The class of each distance, at least 0 (int64): half of the classes are for single distances, the others grow
    with the logarithm, in float32 as the models were trained."""
    single = buckets // 2
    grown = torch.log(distances.float() / single) / math.log(max_distance / single) * (buckets - single)
    far = (single + grown.nan_to_num(neginf=0.0).long()).clamp(max=buckets - 1)
    return torch.where(distances < single, distances, far)


class DistanceBias:
    """A value of each head for each distance. What a block of queries adds is a view of these values: written out, it
    would grow with the square of a prompt."""

    def __init__(self, by_distance: Tensor) -> None:
        """`by_distance` [N, 2 M - 1]: from a key M - 1 behind its query to one M - 1 ahead."""
        self._by_distance, self._same = by_distance.contiguous(), by_distance.shape[1] // 2

    def backwards(self, first: int, count: int, num_keys: int) -> Tensor:
        """[N, count, num_keys] for the queries `first .. first + count`, the last one first, and keys from 0 on."""
        start = self._same - (first + count - 1)
        return self._by_distance[:, start : start + num_keys + count - 1].unfold(1, num_keys, 1)


def decoder_bias(weight: Tensor, spec: RelativeBias, max_tokens: int) -> DistanceBias:
    """`weight` [buckets, N]: of this rank's heads. Keys stand at or before their query: others are not seen."""
    distances = torch.arange(max_tokens - 1, -1, -1, device=weight.device)
    behind = weight[bucket(distances, spec.buckets, spec.max_distance)].t()
    return DistanceBias(torch.cat((behind, torch.full_like(behind[:, 1:], -torch.inf)), dim=1))


def encoder_bias(weight: Tensor, spec: RelativeBias, max_tokens: int) -> DistanceBias:
    """`weight` [buckets, N]: of this rank's heads. Half of the classes are for keys behind their query, half for those
    ahead."""
    offsets = torch.arange(1 - max_tokens, max_tokens, device=weight.device)
    half = spec.buckets // 2
    return DistanceBias(weight[bucket(offsets.abs(), half, spec.max_distance) + half * (offsets > 0)].t())
