"""What a rule adds to the scores of a step: minus infinity where a query does not see a key, and ALiBi's slope.

A key is visible when its distance (query position - key position) is at least 0 and, with a window, below it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from millrace_worker.attention.interface import ScoreRule


def decode_bias(begins_B: Tensor, ends_B: Tensor, num_keys: int, rule: ScoreRule) -> Tensor:
    """float32 [B, 1 or N, 1, num_keys] for one query per row, at `ends - 1`, that sees keys `begins .. ends`."""
    key_S = torch.arange(num_keys, device=ends_B.device)
    unseen_BS = (key_S >= ends_B[:, None]) | (key_S < begins_B[:, None])
    if rule.alibi is None:
        bias = torch.zeros(unseen_BS.shape, device=ends_B.device)
        return bias.masked_fill_(unseen_BS, -torch.inf)[:, None, None]
    distance_BS = (ends_B[:, None] - 1 - key_S).clamp_(min=0)
    bias = _slopes(rule, ends_B.device)[:, None] * distance_BS[:, None]
    return bias.neg_().masked_fill_(unseen_BS[:, None], -torch.inf)[:, :, None]


def tail_bias(num_queries: int, num_keys: int, rule: ScoreRule, device: torch.device) -> Tensor:
    """float32 [1 or N, num_queries, num_keys] for queries that stand at the last positions of the keys.

    It depends on distances only, so its last rows and columns serve every shorter block of queries and keys.
    """
    if rule.window is None and rule.alibi is None:  # most of a long context is seen by all: nothing to compute there
        bias = torch.zeros(num_queries, num_keys, device=device)
        bias[:, num_keys - num_queries :].fill_(-torch.inf).triu_(1)
        return bias[None]
    query_Q = torch.arange(num_keys - num_queries, num_keys, dtype=torch.int32, device=device)
    distance_QS = query_Q[:, None] - torch.arange(num_keys, dtype=torch.int32, device=device)
    unseen_QS = distance_QS < 0
    if rule.window is not None:
        unseen_QS |= distance_QS >= rule.window
    if rule.alibi is None:
        return torch.zeros(unseen_QS.shape, device=device).masked_fill_(unseen_QS, -torch.inf)[None]
    bias = _slopes(rule, device)[:, None, None] * distance_QS
    return bias.neg_().masked_fill_(unseen_QS, -torch.inf)


def _slopes(rule: ScoreRule, device: torch.device) -> Tensor:
    return torch.tensor(rule.alibi, dtype=torch.float32, device=device)
