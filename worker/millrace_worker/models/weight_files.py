"""The weight files of a checkpoint: which there are, and what their headers say. Without torch, so that a broken file
is told before anything slow is imported.

Format: https://huggingface.co/docs/safetensors: eight bytes N (little-endian), N bytes of JSON that give every tensor's
dtype, shape and place, the tensors' bytes. `model.safetensors`, or shards listed in `model.safetensors.index.json`, or
the only file there is: AutoGPTQ names it after the form of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What the reference implementation reads at most; more is a broken length.
MAX_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


class CheckpointError(ValueError):
    """The weights are missing or do not fit the configuration; the message names tensor, file and what was expected."""


@dataclass(frozen=True)
class Stored:
    """One tensor: bytes `start .. stop` of the file `path`, of a `dtype` as the format calls it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder by its name.

    Raises CheckpointError when a file is missing, broken or cut off, or lacks what the index says that it holds.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    index = folder / INDEX
    if index.is_file():
        return _find_indexed(index)
    named = [path for path in folder.glob("*.safetensors") if "-of-" not in path.name]
    if len(named) == 1:
        return read_header(named[0])
    others = [path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in sorted(folder.glob(pattern))]
    hint = f"; it has {', '.join(others[:3])}: convert it to safetensors" if others else ""
    raise CheckpointError(f"{folder}: neither {SINGLE} nor {INDEX} is there{hint}")


def _find_indexed(index: Path) -> dict[str, Stored]:
    weight_map = _weight_map(index)
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index}: names files that are not in the folder: {', '.join(missing)}")
    found: dict[str, Stored] = {}
    for name in files:
        found |= {
            tensor: stored
            for tensor, stored in read_header(index.parent / name).items()
            if weight_map.get(tensor, name) == name
        }
    absent = sorted(set(weight_map) - set(found))
    if absent:
        raise CheckpointError(
            f"{index}: says that {weight_map[absent[0]]} holds the tensor {absent[0]}, but that is not in it"
            + (f"; {len(absent) - 1} more are absent" if len(absent) > 1 else "")
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: is not an index of safetensors: {error!r}") from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: is not an index of safetensors: `weight_map` must map tensors to file names")
    return weight_map


def read_header(path: Path) -> dict[str, Stored]:
    """What the file says of its tensors. Raises CheckpointError when that does not make sense, or the file is not as
    long as its tensors need."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = file.read(LENGTH_BYTES)
            length = int.from_bytes(beginning, "little")
            text = file.read(min(length, MAX_HEADER_BYTES, size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not size:
        raise CheckpointError(f"{path}: is empty; fetch or save it again")
    if (beginning + text).startswith(LFS_POINTER):
        raise CheckpointError(f"{path}: is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    if length > min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{path}: is no safetensors file, or is cut off within its header: that would have {length} bytes, "
            f"the file has {size}"
        )
    first = LENGTH_BYTES + length
    try:
        header = json.loads(text)
        found = {name: _stored(path, entry, first) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no safetensors file: its header is broken ({error})") from error
    end = max((stored.stop for stored in found.values()), default=first)
    if size != end:
        what = "it is cut off" if size < end else "bytes follow the last tensor"
        raise CheckpointError(
            f"{path}: has {size} bytes, but its tensors need {end}: {what}; fetch or save the file again"
        )
    return found


def _stored(path: Path, entry: Mapping[str, Any], first: int) -> Stored:
    """One entry of a header. Raises ValueError, KeyError or TypeError when its figures contradict each other."""
    dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
    start, stop = (int(offset) for offset in entry["data_offsets"])
    item_bytes = ITEM_BYTES.get(dtype)
    if not 0 <= start <= stop or min(shape, default=0) < 0:
        raise ValueError(f"no place can be {start} to {stop}, no shape {list(shape)}")
    if item_bytes is not None and stop - start != math.prod(shape) * item_bytes:
        raise ValueError(f"a tensor of shape {list(shape)} and dtype {dtype} has {stop - start} bytes")
    return Stored(path, dtype, shape, first + start, first + stop)
