"""On native kernels a token's logits have the same bits in any company, in bfloat16 as in float32: neither chunks nor
neighbours, neither pages nor threads change them. What a seed gives, and what comes after a preemption, rests on it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.models.load import load_model

from .cases import THOROUGH
from .checkpoints import Saved
from .paged import PagedRun


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", THOROUGH)
def test_the_same_bits_in_any_company(
    case: str, dtype: torch.dtype, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    found = []
    for threads in (1, 2):
        machine = cpu_kernels.find("", threads)
        model = load_model(saved(case).folder, dtype=dtype, device=torch.device("cpu"), group=Group(), kernels=machine)
        names = model.implementations()
        assert {names[name] for name in ("attention", "linear", "norm")} == {f"native ({Machine.levels()[-1]})"}
        found.append(PagedRun(model, seed=random.randrange(2**32)).logits(sequences))
        alone = [PagedRun(model, seed=random.randrange(2**32)).logits([tokens])[0] for tokens in sequences]
        found.append(alone)
    for others in found[1:]:
        for logits, again in zip(found[0], others, strict=True):
            assert torch.equal(logits, again)
