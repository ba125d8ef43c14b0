"""The proof at load: over pages, in chunks, a model has to give the scores that its own code gives without us."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from millrace_worker.step import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from millrace_worker.model import Model

TOKENS = 24
# The steps that compute them: a chunk, one token, the rest.
CHUNKS = ((0, 13), (13, 1), (14, TOKENS - 14))

# Root mean square of the difference, relative to that of the scores. A wrong mask or position costs some tenths;
# rounding to bfloat16 some hundredths.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def trial_tokens(vocab_size: int, device: torch.device) -> Tensor:
    """int64 [TOKENS], the same on every rank."""
    return (torch.arange(TOKENS, device=device) * 7919 + 11) % vocab_size


@torch.inference_mode()
def own_scores(model: PreTrainedModel, tokens_T: Tensor) -> Tensor:
    """[T, V] by the model's own code alone, in one piece."""
    return model(input_ids=tokens_T[None], use_cache=False).logits[0].float()


@torch.inference_mode()
def served_scores(model: Model, tokens_T: Tensor) -> Tensor | None:
    """[T, V] as a sequence in row 0 gets them, in chunks; None on ranks other than 0."""
    num_pages = -(-TOKENS // model.page_size) if model.page_size else 0
    table = np.arange(max(1, num_pages), dtype=np.int32)[None]
    found = []
    for start, count in CHUNKS:
        positions = torch.arange(start, start + count, device=tokens_T.device)
        batch = Batch(
            rows=np.zeros(1, dtype=np.int64),
            starts=np.array([start]),
            counts=np.array([count]),
            page_table=torch.from_numpy(table).to(tokens_T.device),
            page_table_host=table,
        )
        step = model.plan(batch)
        hidden = model.hidden(tokens_T[start : start + count], positions, step)
        found.append(model.logits(hidden))
    scores = [each for each in found if each is not None]
    return torch.cat(scores) if len(scores) == len(found) else None


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, root mean square; infinite when anything is not finite."""
    expected = expected - expected.mean(dim=-1, keepdim=True)
    found = found - found.mean(dim=-1, keepdim=True)
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-9))
