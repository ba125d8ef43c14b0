"""Scores that a client changes: single tokens made likelier or less likely, and tokens shut out until a text is long
enough. Both come before everything else that shapes the distribution (OpenAI's `logit_bias`; `min_tokens`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling.context import SampleContext

if TYPE_CHECKING:
    from millrace_worker.proto import worker_pb2


@dataclass(frozen=True)
class Edits:
    """Of one row. `biased` int64 [B] get `bias` float32 [B] added; `shut_out` int64 [S] are impossible at positions
    below `opens_at`. All on the device."""

    biased: Tensor
    bias: Tensor
    shut_out: Tensor
    opens_at: int


class ScoreEdits:
    """The edits of all rows; most rows have none."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._device = device
        self._edited = np.zeros(max_rows, dtype=bool)
        self._rows: dict[int, Edits] = {}

    def set(self, row: int, params: worker_pb2.Sampling, num_prompt_tokens: int) -> None:
        """Raises ValueError for columns that do not fit together."""
        self.clear([row])
        if not params.bias_token_ids and not params.min_new_tokens:
            return
        # Where a text may end, a grammar knows: it counts the new tokens itself.
        biased, shut_out = _ids(params.bias_token_ids), _ids(b"" if params.grammar else params.end_token_ids)
        bias = np.frombuffer(params.bias_values, dtype="<f4").astype(np.float32)
        if len(biased) != len(bias):
            raise ValueError(f"bias_token_ids has {len(biased)} entries, bias_values {len(bias)}")
        if not np.isfinite(bias).all():
            raise ValueError("bias_values holds a number that is not finite")
        opens_at = num_prompt_tokens + params.min_new_tokens
        self._rows[row] = Edits(self._upload(biased), self._upload(bias), self._upload(shut_out), opens_at)
        self._edited[row] = True

    def clear(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """These rows have no edits any more."""
        cleared = np.asarray(rows, dtype=np.int64)
        for row in cleared[self._edited[cleared]].tolist():
            self._rows.pop(row, None)
        self._edited[rows] = False

    def apply(self, scores_RV: Tensor, context: SampleContext) -> None:
        """Edits the scores in place. Ids beyond the vocabulary fail the step: whoever admits requests checks them."""
        if not self._rows:
            return
        edited = self._edited[context.rows]
        for place in np.flatnonzero(edited):
            edits, scores_V = self._rows[int(context.rows[place])], scores_RV[place]
            scores_V.index_add_(0, edits.biased, edits.bias)
            if context.positions[place] < edits.opens_at:
                scores_V.index_fill_(0, edits.shut_out, -torch.inf)

    def _upload(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _ids(column: bytes) -> NDArray[np.int64]:
    return np.frombuffer(column, dtype="<u4").astype(np.int64)
