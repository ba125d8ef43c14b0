"""Whose tokens are chosen in a step, and what they have seen so far."""

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
        """Token ids int64 [R, L], and which lie at positions `first` (default 0) up to the chosen one, bool [R, L].

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
