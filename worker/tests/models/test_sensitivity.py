"""No tensor is read and ignored: a change of a single weight changes the logits. A few tensors of each checkpoint are
tried; every one of all checkpoints with MILLRACE_SOAK=1 in the environment."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.models.load import load_native
from millrace_worker.models.weight_files import Stored, find_tensors
from torch import Tensor

from .cases import CASES, NATIVE, POSITIONS, VOCAB
from .checkpoints import Saved
from .paged import run

SAMPLED, TRIES = 3, 48  # three quarters of StableLM's bias of keys do not rotate: no try sees them
CHANGE, SEEN = 2.0, 1e-4
LENGTH = 120
SOAK = bool(os.environ.get("MILLRACE_SOAK"))


def logits(folder: Path, tokens: list[int], prompts: Mapping[int, int]) -> Tensor:
    """The same steps whenever it is called."""
    model = load_native(folder, dtype=torch.float32, device=torch.device("cpu"), group=Group())
    (found,) = run(model, seed=7).logits([tokens], prompts)
    return found


def used_element(shape: tuple[int, ...], tokens: list[int], drawn: random.Random) -> int:
    """The flat index of a weight that these tokens cannot but use; tables are told by their number of rows."""
    flat, width = drawn.randrange(math.prod(shape)), math.prod(shape[1:])
    rows = shape[0] if len(shape) > 1 else 0
    if rows == VOCAB:
        return drawn.choice(tokens) * width + flat % width
    if POSITIONS <= rows <= POSITIONS + 2:
        return drawn.randrange(2, len(tokens)) * width + flat % width
    return flat


class Changed:
    """One weight of a file has another value inside of this block."""

    def __init__(self, stored: Stored, element: int) -> None:
        self._path, size = stored.path, 4 if stored.dtype == "F32" else 1
        self._at = stored.start + element * size
        whole = stored.path.read_bytes()
        self._before = whole[self._at : self._at + size]
        if stored.dtype == "F32":
            self._after = struct.pack("<f", struct.unpack("<f", self._before)[0] + CHANGE)
        else:
            assert stored.dtype == "U8", stored.dtype
            self._after = bytes([self._before[0] ^ 0b01100110])  # of 4-bit floats both, of a scale the exponent

    def __enter__(self) -> None:
        self._write(self._after)

    def __exit__(self, *_: object) -> None:
        self._write(self._before)

    def _write(self, value: bytes) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._at)
            file.write(value)


def is_seen(stored: Stored, tokens: list[int], drawn: random.Random, changes: Callable[[], bool]) -> bool:
    """Some weights cannot show: a key's bias without rotation, what ReLU cuts off. Then another is tried."""
    for _ in range(TRIES):
        with Changed(stored, used_element(stored.shape, tokens, drawn)):
            if changes():
                return True
    return False


def siblings(name: str, names: Iterable[str]) -> list[str]:
    """The same tensor of the other experts of its layer, if it is an expert's: no token may have chosen this one."""
    pattern = re.escape(re.sub(r"\.experts\.\d+\.", ".experts.#.", name)).replace("\\#", r"\d+")
    return [other for other in names if other != name and ".experts." in name and re.fullmatch(pattern, other)]


@pytest.mark.parametrize("case", NATIVE)
def test_every_weight_counts(case: str, saved: Callable[[str], Saved], tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    drawn = random.Random(seed)
    reference = saved(case)
    folder = Path(shutil.copytree(reference.folder, tmp_path / "changed"))
    tokens = [drawn.randrange(VOCAB) for _ in range(LENGTH)]
    prompts = reference.prompts([tokens])
    expected = logits(folder, tokens, prompts)

    def changes() -> bool:
        return float((logits(folder, tokens, prompts) - expected).abs().max()) > SEEN

    tensors = find_tensors(folder)
    names = [name for name in tensors if not any(fnmatch(name, pattern) for pattern in CASES[case].inert)]
    if not SOAK:
        names = drawn.sample(names, SAMPLED)
    ignored = [
        name
        for name in names
        if not any(is_seen(tensors[each], tokens, drawn, changes) for each in (name, *siblings(name, tensors)))
    ]
    assert not ignored, f"{seed=}: changes of these tensors change no logit: {ignored}"
    assert torch.equal(logits(folder, tokens, prompts), expected)
