"""All blocks in one call of the kernels give the bits that they give one by one, and only what is native is chained."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.models.decoder import CausalLM
from millrace_worker.models.load import load_model

from .checkpoints import Saved
from .paged import PagedRun

# Plain blocks, biases, norms on all sides, windows on some layers, norms of heads, two rotations, or none at all.
CHAINED = ["llama", "qwen2, windows", "qwen3", "gemma2, window 18", "gemma3", "gpt2", "bloom", "phi3, partial, tied"]
# A mixture; a sum beside the attention; a norm of all heads as one.
NOT_CHAINED = ["mixtral", "gpt-neox, parallel", "olmo2"]


def loaded(saved: Saved, dtype: torch.dtype) -> CausalLM:
    kernels = cpu_kernels.find("", 1)
    return load_model(saved.folder, dtype=dtype, device=torch.device("cpu"), group=Group(), kernels=kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CHAINED)
def test_a_chain_gives_the_bits_of_its_blocks(
    case: str, dtype: torch.dtype, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    model = loaded(saved(case), dtype)
    assert model.chain is not None
    seed = random.randrange(2**32)
    at_once = PagedRun(model, seed=seed).logits(sequences)
    model.chain = None
    for logits, again in zip(at_once, PagedRun(model, seed=seed).logits(sequences), strict=True):
        assert torch.equal(logits, again)


@pytest.mark.parametrize("case", NOT_CHAINED)
def test_where_python_is_needed_in_between_there_is_no_chain(case: str, saved: Callable[[str], Saved]) -> None:
    assert loaded(saved(case), torch.float32).chain is None


def test_a_chain_of_too_little_is_refused(saved: Callable[[str], Saved]) -> None:
    from millrace_kernels import Chain

    chain = Chain()
    model = loaded(saved("llama"), torch.float32)
    attention = model.backend.layers[0].kernel  # pyright: ignore[reportAttributeAccessIssue]
    chain.attend(attention, 1, 0, 3, 1, 2)
    for slots, turns in (([0] * 3, [(0, 0)]), ([0] * 4, []), ([0] * 4, [(0, 0)])):
        with pytest.raises(ValueError, match="4 slots, 2 plans and 1 turns"):
            chain.run(1, slots, [], turns)
