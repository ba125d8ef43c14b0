"""What a folder must hold to be served, and the folder that joins one model with other weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from millrace_launcher.errors import LauncherError, Variant, argument_error

PICKLED_INDEX = "pytorch_model.bin.index.json"
_LEFT_BY_TRAINING = ("training_", "optimizer", "scheduler", "rng_state", "scaler", "random_states")


def demo_folder() -> Path:
    """The model that ships with the package."""
    return Path(__file__).parent / "demo"


def check_model_folder(folder: Path) -> None:
    """Raises `DownloadError` naming the file that is missing, before any process is started for it."""
    if not (folder / "config.json").is_file():
        raise _unusable(f"there is no config.json in {folder}: give the folder that a model was saved in")
    if not (folder / "tokenizer.json").is_file():
        raise _unusable(
            f"there is no tokenizer.json in {folder}: save the fast tokenizer there with transformers, "
            f"`AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')`"
        )
    _read_json(folder / "config.json")
    check_weights(folder)


def check_weights(folder: Path) -> None:
    """Raises `DownloadError` unless the folder has all its safetensors files, or else all of its pickled ones."""
    if not any(folder.glob("*.safetensors")) and not pickled_files(folder):
        raise _unusable(f"there is no *.safetensors file in {folder}, and no pytorch_model.bin")
    for index in folder.glob("*.safetensors.index.json"):
        _indexed(index)


def has_only_pickled_weights(folder: Path) -> bool:
    return not any(folder.glob("*.safetensors")) and bool(pickled_files(folder))


def pickled_files(folder: Path) -> list[Path]:
    """The files that hold pickled weights, in the order of their names. Raises `DownloadError` when an index names
    one that is missing."""
    index = folder / PICKLED_INDEX
    names = _indexed(index) if index.is_file() else weights_among(path.name for path in folder.iterdir())
    return [folder / name for name in names]


def weights_among(names: Iterable[str]) -> list[str]:
    """Those of a folder's file names that are pickled weights: `pytorch_model*.bin` before other `.bin` before `.pt`.
    What training leaves beside a model is none."""
    kept = sorted(name for name in names if not name.startswith(_LEFT_BY_TRAINING))
    usual = [name for name in kept if name.startswith("pytorch_model") and name.endswith(".bin")]
    others = [name for name in kept if name.endswith(".bin")]
    return usual or others or [name for name in kept if name.endswith((".pt", ".pth"))]


def _indexed(index: Path) -> list[str]:
    """The files that an index names. Raises `DownloadError` when it is broken or one is missing."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise _unusable(f"{index} is broken: its `weight_map` must map tensors to names of files")
    shards: set[str] = set(weight_map.values())
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        raise _unusable(f"{index.name} names {len(missing)} file(s) that are missing, the first is {missing[0]}")
    return sorted(shards)


def check_override(weights: Path) -> None:
    """Raises `ArgumentValidation` or `DownloadError` when the folder's weights cannot take the place of a model's."""
    if not weights.is_dir():
        raise argument_error(f"`--weights-cache-override` {weights} is not a folder")
    check_weights(weights)


def folder_with_other_weights(model: Path, weights: Path, place: Path) -> Path:
    """A folder of links in `place`: configuration and tokenizer of `model`, safetensors of `weights`."""
    place.mkdir()
    for path in model.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            (place / path.name).symlink_to(path.resolve())
    for path in weights.iterdir():
        if path.is_file() and ".safetensors" in path.name:
            (place / path.name).symlink_to(path.resolve())
    return place


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise _unusable(f"{path} does not hold a JSON object")
    return content


def _unusable(message: str) -> LauncherError:
    return LauncherError(Variant.DOWNLOAD, message)
