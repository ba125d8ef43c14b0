"""The Transformers backend gives the logits and ids of transformers for every checkpoint, on one rank and on two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from .cases import CASES
from .checkpoints import Saved
from .rank_group import RankGroup
from .table import BACKEND, Row, measure


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.backend])
def test_the_backend_equals_transformers(
    case: str, saved: Callable[[str], Saved], ranks: Callable[[int], RankGroup]
) -> None:
    """On two ranks it may refuse: a model without a plan for that, or with a cache per sequence."""
    row = Row("", CASES[case].model_type)
    measure(case, replace(CASES[case], native=False), row, saved(case), {2: ranks(2)})
    assert not row.red, row.red
    assert (BACKEND, 1) in row.found, row.notes
