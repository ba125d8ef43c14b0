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


class DecoderBias:
    """Keys stand at or before their query."""

    def __init__(self, weight: Tensor, spec: RelativeBias, max_tokens: int) -> None:
        """`weight` [buckets, N]: of this rank's heads."""
        distances = torch.arange(max_tokens, device=weight.device)
        by_distance = weight[bucket(distances, spec.buckets, spec.max_distance)].t()
        self._by_place = by_distance.flip(1).contiguous()  # [N, max_tokens]: the last is of distance 0

    def __call__(self, first: int, count: int) -> Tensor:
        """[N, count, first + count] for queries `first ..` and all keys up to the last of them."""
        last = self._by_place.shape[1] - 1
        if count == 1:
            return self._by_place[:, None, last - first :]
        queries = torch.arange(first, first + count, device=self._by_place.device)
        keys = torch.arange(first + count, device=self._by_place.device)
        distances = queries[:, None] - keys
        bias = self._by_place[:, last - distances.clamp(min=0)]
        return bias.masked_fill_(distances < 0, -torch.inf)


class EncoderBias:
    """Keys stand on both sides: half of the classes are for those behind their query, half for those ahead."""

    def __init__(self, weight: Tensor, spec: RelativeBias, max_tokens: int) -> None:
        """`weight` [buckets, N]: of this rank's heads."""
        offsets = torch.arange(1 - max_tokens, max_tokens, device=weight.device)
        half = spec.buckets // 2
        classes = bucket(offsets.abs(), half, spec.max_distance) + half * (offsets > 0)
        self._by_offset, self._middle = weight[classes].t().contiguous(), max_tokens - 1

    def __call__(self, first: int, count: int, num_keys: int) -> Tensor:
        """[N, count, num_keys] for queries `first ..` and keys from 0 on."""
        device = self._by_offset.device
        queries = torch.arange(first, first + count, device=device)
        return self._by_offset[:, torch.arange(num_keys, device=device) - queries[:, None] + self._middle]
