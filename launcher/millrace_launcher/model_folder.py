"""What a folder must hold to be served, and the folder that joins one model with other weights."""

from __future__ import annotations

import json
from pathlib import Path

from millrace_launcher.errors import LauncherError, Variant, argument_error

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth")


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
    check_weights(folder)
    _check_quantization(folder / "config.json")


def check_weights(folder: Path) -> None:
    """Raises `DownloadError` unless the folder has all its safetensors files."""
    if not any(folder.glob("*.safetensors")):
        pickled = any(path.suffix in _PICKLE_SUFFIXES for path in folder.iterdir())
        hint = ": its weights are pickled, convert them to safetensors first" if pickled else ""
        raise _unusable(f"there is no *.safetensors file in {folder}{hint}")
    for index in folder.glob("*.safetensors.index.json"):
        weight_map = _read_json(index).get("weight_map")
        shards: set[str] = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise _unusable(f"{index.name} names {len(missing)} file(s) that are missing, the first is {missing[0]}")


def folder_with_other_weights(model: Path, weights: Path, place: Path) -> Path:
    """A folder of links in `place`: configuration and tokenizer of `model`, safetensors of `weights`."""
    if not weights.is_dir():
        raise argument_error(f"`--weights-cache-override` {weights} is not a folder")
    check_weights(weights)
    place.mkdir()
    for path in model.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            (place / path.name).symlink_to(path.resolve())
    for path in weights.iterdir():
        if path.is_file() and ".safetensors" in path.name:
            (place / path.name).symlink_to(path.resolve())
    return place


def _check_quantization(config: Path) -> None:
    quantization = _read_json(config).get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", "an unnamed method")
        raise argument_error(
            f"{config} says that the weights are quantized ({method}): that is not served yet; "
            "serve the unquantized checkpoint"
        )


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
