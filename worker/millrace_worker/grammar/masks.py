"""From bits on the host to scores on the device: a forbidden token's score becomes minus infinity."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling.workspace import Workspace


def bits(token_ids: Iterable[int], num_words: int) -> NDArray[np.uint32]:
    """A mask [num_words] with the bits of these tokens, token t being bit t % 32 of word t // 32."""
    flags = np.zeros(32 * num_words, dtype=np.uint8)
    flags[np.fromiter(token_ids, dtype=np.int64)] = 1
    return np.packbits(flags, bitorder="little").view("<u4")


class Masks:
    """`words` uint32 [G, W] on the host: the masks of the rows of a step that have a grammar, in their order.

    Bits at or beyond `vocab_size` count for nothing; tokens beyond the last bit are forbidden.
    """

    def __init__(self, max_rows: int, num_words: int, vocab_size: int, workspace: Workspace) -> None:
        on_gpu = workspace.device.type == "cuda"
        self.words = np.zeros((max_rows, num_words), dtype=np.uint32)
        self._vocab_size = vocab_size
        self._workspace = workspace
        self._num_bytes = -(-vocab_size // 8)
        # What the device reads: bytes of the vocabulary's width, those beyond the masks' forever 0.
        self._bytes = torch.zeros(max_rows, self._num_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None
        flags = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._scores_of_byte = torch.from_numpy(np.where(flags, 0.0, -np.inf).astype(np.float32)).to(workspace.device)

    @property
    def num_bytes(self) -> int:
        """Bytes on the host."""
        return self.words.nbytes + self._bytes.nbytes

    def apply(self, logits_RV: Tensor, places: NDArray[np.int64]) -> None:
        """Adds 0 or minus infinity, in place: mask i is that of row `places[i]`."""
        masks_GB = self._upload(len(places))
        at_once = self._workspace.rows_at_once(self._vocab_size)
        for at in range(0, len(places), at_once):
            rows_S, masks_SB = places[at : at + at_once], masks_GB[at : at + at_once]
            added_SB8 = self._workspace.take("mask_scores", (masks_SB.numel(), 8))
            added_SV = added_SB8.view(len(masks_SB), -1)[:, : self._vocab_size]
            if logits_RV.device.type == "cpu":  # numpy takes a third of torch's time
                scores = self._scores_of_byte.numpy()
                np.take(scores, masks_SB.numpy().reshape(-1), axis=0, out=added_SB8.numpy(), mode="clip")
                for row, added_V in zip(rows_S.tolist(), added_SV.numpy(), strict=True):
                    logits_RV[row].numpy()[:] += added_V
                continue
            index_SB = self._workspace.take("mask_bytes", tuple(masks_SB.shape), torch.int32).copy_(masks_SB)
            torch.index_select(self._scores_of_byte, 0, index_SB.view(-1), out=added_SB8)
            rows = torch.from_numpy(rows_S).to(logits_RV.device, non_blocking=True)
            logits_RV.index_add_(0, rows, added_SV)

    def _upload(self, num_rows: int) -> Tensor:
        """uint8 [num_rows, B] on the device."""
        if self._copied is not None:
            self._copied.synchronize()
        told = self.words[:num_rows].view(np.uint8)[:, : self._num_bytes]
        self._bytes.numpy()[:num_rows, : told.shape[1]] = told
        if self._copied is None:
            return self._bytes[:num_rows]
        shape = (num_rows, self._num_bytes)
        uploaded = self._workspace.take("masks", shape, torch.uint8).copy_(self._bytes[:num_rows], non_blocking=True)
        self._copied.record()
        return uploaded
