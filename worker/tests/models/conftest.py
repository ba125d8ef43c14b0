"""Checkpoints are made once per session; sequences straddle pages, chunks and windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch

from .checkpoints import CASES, VOCAB, Saved, save
from .rank_group import RankGroup


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


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], RankGroup]]:
    """The processes of a group of that size, for all tests that need them."""
    started: dict[int, RankGroup] = {}
    with ExitStack() as stack:

        def get(size: int) -> RankGroup:
            if size not in started:
                started[size] = stack.enter_context(RankGroup(size, tmp_path_factory.mktemp("ranks")))
            return started[size]

        yield get
