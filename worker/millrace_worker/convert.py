"""`python -m millrace_worker.convert --target DIR FILE…`: pickled weights become safetensors in DIR, once.

A pickle is a program. Files are read by `torch.load(weights_only=True, mmap=True)` and by nothing else: it builds
tensors and refuses whatever would call something. Each file becomes one file, tensor by tensor, out of the mapped
source, so that memory holds one tensor at most. The folder appears under its name when it is whole: everything is
written into `DIR.part` under the lock of `DIR.lock`, which the system gives back with the process, and renamed. Who
comes second waits for the lock, and finds the folder.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace_worker import logs
from millrace_worker.models.weight_files import INDEX, LENGTH_BYTES, LFS_POINTER, SINGLE

if TYPE_CHECKING:
    from torch import Tensor

ZIP_BEGINNING = b"PK\x03\x04"
ALIGNMENT = 8
_REFUSED = re.compile(r"unsupported (?:global: )?GLOBAL (?P<name>\S+)", re.IGNORECASE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class ConversionError(ValueError):
    """The files cannot become safetensors; the message names the file and the reason."""


def convert(files: Sequence[Path], target: Path) -> None:
    """Writes the tensors of `files` into the folder `target`, unless that exists.

    Raises ConversionError, and OSError where nothing can be written; neither leaves a `target` behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{target.name}.lock")):
        if target.is_dir():
            return
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        _check_room(files, target.parent)
        part.mkdir()
        try:
            _convert_all(files, part)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logs.info("waiting for another process that converts the same weights")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_room(files: Sequence[Path], folder: Path) -> None:
    needed, free = sum(path.stat().st_size for path in files), shutil.disk_usage(folder).free
    if needed > free:
        raise ConversionError(
            f"{folder}: converting the weights needs {needed / 1e9:.2f} GB there, {free / 1e9:.2f} GB are free"
        )


def _convert_all(files: Sequence[Path], folder: Path) -> None:
    weight_map: dict[str, str] = {}
    for number, path in enumerate(files, start=1):
        name = SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        logs.info(f"converting {path.name} to safetensors", file=number, of=len(files), mib=path.stat().st_size >> 20)
        tensors = read_pickled(path)
        twice = sorted(weight_map.keys() & tensors.keys())
        if twice:
            raise ConversionError(f"{path}: has the tensor {twice[0]}, which another file has, too")
        write_safetensors(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, mapped. Raises ConversionError with the reason of a refusal."""
    import torch

    _check_kind(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConversionError(f"{path}: {_reason(str(error))}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise ConversionError(f"{path}: holds a {type(found).__name__}, not tensors by their names")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.dtype not in _codes():
            kind = f"tensor of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ConversionError(f"{path}: the entry {name!r} is a {kind}, which safetensors cannot hold")
    return {str(name): tensor.detach() for name, tensor in found.items()}


def _check_kind(path: Path) -> None:
    with path.open("rb") as file:
        beginning = file.read(len(LFS_POINTER))
    if not beginning:
        raise ConversionError(f"{path}: is empty; fetch or save it again")
    if beginning == LFS_POINTER:
        raise ConversionError(f"{path}: is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    if not beginning.startswith(ZIP_BEGINNING):
        raise ConversionError(
            f"{path}: is not in the form that torch.save writes since torch 1.6, the only one that can be mapped; if "
            "you trust the file, load and save it again with a newer torch, or as safetensors"
        )


def _reason(text: str) -> str:
    """What torch says, without its advice to load the file unsafely."""
    refused = _REFUSED.search(text)
    if refused:
        name = refused["name"].rstrip(".")
        return f"refused: it asks for `{name}`, and only tensors are loaded, because anything else can run code"
    return f"cannot be loaded: {' '.join(_COLOURS.sub('', text).split())}"


def _codes() -> dict[Any, str]:
    from millrace_worker.models.checkpoint import DTYPES

    return {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file, tensor by tensor, each at a place that its dtype divides. Tensors that share memory are written each
    for itself: any of them may be the one that is asked for."""
    import torch

    codes = _codes()
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, dict[str, object]] = {}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.nbytes
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for name in order:
            flat = tensors[name].contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def main(argv: Sequence[str]) -> int:
    """The exit status; a failure is one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m millrace_worker.convert", description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="the folder to make")
    parser.add_argument("files", type=Path, nargs="+", help="pickled weights")
    asked = parser.parse_args(argv)
    logs.set_up_logs("info", json_output=True)
    try:
        convert(asked.files, asked.target)
    except ConversionError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or asked.target}: {error.strerror or error}"
    else:
        return 0
    print(f"Error: {reason}", file=sys.stderr)  # noqa: T201 - as the worker says why it ends
    return 1


def _end_with_launcher() -> None:
    """Standard input is a pipe that the launcher holds open: its end means that the launcher is gone."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if os.environ.get("MILLRACE_LIFELINE") == "stdin":
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
