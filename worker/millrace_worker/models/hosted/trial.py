"""The proof at load: in chunks, beside another sequence, a model has to give the scores of its own code alone."""

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
TRIAL_PAGES = 2 * TOKENS  # enough for two sequences at any page size
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
    """[T, V] as a sequence gets them, in chunks, beside another one; None on ranks other than 0."""
    num_pages = -(-TOKENS // model.page_size) if model.page_size else 1
    table = np.arange(2 * num_pages, dtype=np.int32).reshape(2, num_pages)
    found = []
    for start, count in CHUNKS:
        positions = torch.arange(start, start + count, device=tokens_T.device)
        batch = Batch(
            rows=np.arange(2),
            starts=np.full(2, start),
            counts=np.full(2, count),
            page_table=torch.from_numpy(table).to(tokens_T.device),
            page_table_host=table,
        )
        mine = tokens_T[start : start + count]
        step = model.plan(batch)
        hidden = model.hidden(torch.cat((mine, mine.flip(0))), torch.cat((positions, positions)), step)
        found.append(model.logits(hidden[:count]))
    scores = [each for each in found if each is not None]
    return torch.cat(scores) if len(scores) == len(found) else None


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, root mean square; infinite when anything is not finite."""
    expected = expected - expected.mean(dim=-1, keepdim=True)
    found = found - found.mean(dim=-1, keepdim=True)
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-9))
