"""Which tokens a row has seen, and the penalties on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SampleContext:
    """Whose token is chosen.

    `rows` int64 [R] on the host, `positions` int64 [R] on the host: the position of the token being chosen, that is the
    number of tokens known. `token_ids` integer [max_rows, L] on the device; of a row only the first `position` entries
    are read, what stands behind them may be anything.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_ids: Tensor

    def select(self, places: NDArray[np.int64]) -> SampleContext:
        return SampleContext(self.rows[places], self.positions[places], self.token_ids)

    def upload(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self.token_ids.device, non_blocking=True)

    def previous_tokens(self) -> Tensor:
        """The last known token of each row, int64 [R] on the device."""
        return self.token_ids[self.upload(self.rows), self.upload(self.positions - 1)].long()

    def history(self, first: NDArray[np.int64] | None = None) -> tuple[Tensor, Tensor]:
        """Token ids [R, L] int64 and which of them lie at positions `first` (default 0) up to the chosen one, bool [R, L].

        Ids outside are replaced by the row's first token, so that they can be used as indices.
        """
        longest = int(self.positions.max())
        ids_RL = self.token_ids[:, :longest].index_select(0, self.upload(self.rows)).long()
        columns_L = torch.arange(longest, device=ids_RL.device)
        known_RL = columns_L < self.upload(self.positions)[:, None]
        ids_RL = torch.where(known_RL, ids_RL, ids_RL[:, :1])
        if first is not None:
            known_RL = known_RL & (columns_L >= self.upload(first)[:, None])
        return ids_RL, known_RL


def token_counts(context: SampleContext, vocab_size: int, first: NDArray[np.int64] | None = None) -> Tensor:
    """How often each token stands at positions `first` .. `positions` of each row: float32 [R, V], exact below 2**24."""
    ids_RL, counted_RL = context.history(first)
    counts_RV = torch.zeros(len(context.rows), vocab_size, device=ids_RL.device)
    return counts_RV.scatter_add_(1, ids_RL, counted_RL.float())


def repetition_penalty(scores_SV: Tensor, context: SampleContext, penalty_S1: Tensor) -> Tensor:
    """Keskar et al. 2019: the score of each token of prompt or output is divided by the penalty, multiplied if negative."""
    ids_SL, _ = context.history()
    seen_SL = scores_SV.gather(1, ids_SL)
    # A token that occurs twice is written twice with the same value.
    return scores_SV.scatter(1, ids_SL, torch.where(seen_SL < 0, seen_SL * penalty_S1, seen_SL / penalty_S1))


def frequency_penalty(scores_SV: Tensor, context: SampleContext, penalty_S1: Tensor) -> Tensor:
    """Text Generation Inference's: minus penalty * count / length, over prompt and output."""
    lengths_S1 = context.upload(context.positions)[:, None]
    return scores_SV - token_counts(context, scores_SV.shape[1]) / lengths_S1 * penalty_S1


def output_penalties(
    scores_SV: Tensor, context: SampleContext, num_prompt_tokens: NDArray[np.int64], penalties: tuple[Tensor, Tensor]
) -> Tensor:
    """OpenAI's: minus presence for each token of the output, and minus count for each time it occurs there."""
    presence_S1, count_S1 = penalties
    counts_SV = token_counts(context, scores_SV.shape[1], num_prompt_tokens)
    return scores_SV - (counts_SV > 0) * presence_S1 - counts_SV * count_S1
