"""A model that wants to break out of every grammar: its scores are noise, behind the demo's real tokenizer."""

from __future__ import annotations

from pathlib import Path

import millrace_launcher
import pytest
import torch
from millrace_worker.grammar import Vocabulary, read_vocabulary

DEMO = Path(millrace_launcher.__file__).parent / "demo"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return read_vocabulary(DEMO)
