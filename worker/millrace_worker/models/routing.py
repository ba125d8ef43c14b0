"""Which experts compute a token, and how much each counts. T tokens, E experts, K of them chosen."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from millrace_worker.layers.moe import Route, sigmoid
from millrace_worker.models import spec as kinds

# The sum of scores is never taken for smaller than this.
MIN_SUM = 1e-20


def routing(moe: kinds.Moe, correction_E: Tensor | None) -> Route:
    """`correction_E` float32, where `TopK.corrected`."""
    match moe.routing:
        case kinds.TopK() as rule:
            return partial(top_k, rule, moe.top_k, correction_E)
        case kinds.SparseMixer(jitter=jitter):
            return partial(sparse_mixer, jitter)
        case kinds.InputSigmoid():
            return partial(input_sigmoid, moe.top_k)


def top_k(rule: kinds.TopK, count: int, correction_E: Tensor | None, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    scores_TE = logits_TE.softmax(dim=-1) if rule.score is kinds.Score.SOFTMAX else sigmoid(logits_TE)
    if correction_E is None and rule.groups is None:
        weights_TK, chosen_TK = scores_TE.topk(count, dim=-1)
    else:
        ranked_TE = scores_TE if correction_E is None else scores_TE + correction_E
        if rule.groups is not None:
            ranked_TE = best_groups(rule.groups, ranked_TE)
        chosen_TK = ranked_TE.topk(count, dim=-1).indices
        weights_TK = scores_TE.gather(-1, chosen_TK)
    if rule.normalize == 1.0:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_(min=MIN_SUM)
    elif rule.normalize is not None:
        weights_TK = weights_TK / torch.linalg.vector_norm(weights_TK, rule.normalize, dim=-1, keepdim=True)
    return chosen_TK, weights_TK if rule.scale == 1.0 else weights_TK * rule.scale


def best_groups(groups: kinds.Groups, ranked_TE: Tensor) -> Tensor:
    """Minus infinity where an expert's group is not among the best."""
    grouped = ranked_TE.view(len(ranked_TE), groups.count, -1)
    worth_TG = grouped.topk(groups.best, dim=-1).values.sum(dim=-1)
    kept_TG = torch.zeros_like(worth_TG, dtype=torch.bool)
    kept_TG.scatter_(-1, worth_TG.topk(groups.chosen, dim=-1).indices, True)
    return grouped.masked_fill(~kept_TG[..., None], -torch.inf).view_as(ranked_TE)


def sparse_mixer(jitter: float, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The best expert, weighted by a softmax over the logits within `2 * jitter` of it, relative to the larger of the
    two; then the best of the others, likewise."""
    left_TE, chosen, weights = logits_TE, [], []
    for _ in range(2):
        best_T1, at_T1 = left_TE.max(dim=-1, keepdim=True)
        distance_TE = (best_T1 - logits_TE) / torch.maximum(logits_TE.abs(), best_T1)
        near_TE = left_TE.masked_fill(distance_TE > 2 * jitter, -torch.inf)
        chosen.append(at_T1)
        weights.append(near_TE.softmax(dim=-1).gather(-1, at_T1))
        left_TE = left_TE.scatter(-1, at_T1, -torch.inf)
    return torch.cat(chosen, dim=-1), torch.cat(weights, dim=-1)


def input_sigmoid(count: int, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    best_TK, chosen_TK = logits_TE.topk(count, dim=-1)
    return chosen_TK, sigmoid(best_TK)
