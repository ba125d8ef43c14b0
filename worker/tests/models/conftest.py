"""Checkpoints are made once per session; sequences straddle pages, chunks and windows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from .checkpoints import CASES, VOCAB, Saved, save


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """The checkpoint of a case, made when it is first asked for."""
    made: dict[str, Saved] = {}

    def get(case: str) -> Saved:
        if case not in made:
            made[case] = save(tmp_path_factory.mktemp("checkpoint"), CASES[case])
        return made[case]

    return get


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """Drawn anew in each session, so that the reference of a case is computed once."""
    return [torch.randint(VOCAB, (length,)).tolist() for length in (15, 16, 17, 1, 33, 63)]
