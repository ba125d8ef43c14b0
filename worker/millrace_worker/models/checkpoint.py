"""Tensors of a safetensors checkpoint, read by memory map, only the part that is asked for.

Format: https://github.com/huggingface/safetensors; `model.safetensors`, or shards listed in
`model.safetensors.index.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """The weights are missing or do not fit the configuration; the message names tensor, file and what was expected."""


class Checkpoint:
    """All tensors of a folder, and which of them have been read."""

    def __init__(self, folder: Path, optional_prefix: str = "") -> None:
        """Raises CheckpointError when the folder has no readable safetensors."""
        self._prefix = optional_prefix
        self._folder = folder
        self._files: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        for path in _weight_files(folder):
            try:
                opened: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
            self._files[path] = opened
            self._where.update(dict.fromkeys(opened.keys(), path))
        self._unused = set(self._where)

    def read(self, name: str, shape: tuple[int, ...], *parts: slice) -> Tensor:
        """`parts` of the tensor `name`, which must have `shape`: a view of the mapped file, in its own dtype.

        Raises CheckpointError when it is missing or has another shape.
        """
        stored = self._stored_name(name)
        if stored is None:
            raise CheckpointError(f"{self._folder}: the tensor {name} of shape {list(shape)} is missing")
        path = self._where[stored]
        tensor = self._files[path].get_slice(stored)
        found = tuple(tensor.get_shape())
        if found != shape:
            raise CheckpointError(
                f"{path}: the tensor {stored} has shape {list(found)}, config.json makes it {list(shape)}"
            )
        self._unused.discard(stored)
        return tensor[parts] if parts else tensor[:]

    def check_all_read(self, ignored: Iterable[str]) -> None:
        """Raises CheckpointError when tensors are left that match no pattern of `ignored`: a spec that reads less than
        the checkpoint holds would answer nonsense."""
        patterns = tuple(ignored)
        left = sorted(name for name in self._unused if not any(fnmatch(f".{name}", f"*{p}") for p in patterns))
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise CheckpointError(
                f"{self._where[left[0]]}: {len(left)} tensors belong to no part of the model "
                f"that config.json describes: {shown}"
            )

    def _stored_name(self, name: str) -> str | None:
        if name in self._where:
            return name
        bare = name.removeprefix(self._prefix)
        return bare if self._prefix and bare in self._where else None


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; those of an index must all be there."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index}: is not an index of safetensors: {error!r}") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{index}: names files that are not in the folder: {', '.join(missing)}")
        return [folder / name for name in names]
    others = [path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in sorted(folder.glob(pattern))]
    hint = f"; it has {', '.join(others[:3])}: convert it to safetensors" if others else ""
    raise CheckpointError(f"{folder}: neither {SINGLE} nor {INDEX} is there{hint}")
