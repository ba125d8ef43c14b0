"""When the program that converts pickled weights is started, and what becomes of its failures."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from millrace_launcher.conversion import Converter
from millrace_launcher.errors import LauncherError, Variant
from millrace_launcher.hub import hub_cache
from millrace_launcher.logs import Log
from millrace_launcher.model_folder import pickled_files

# Stands in for the program: makes the folder, or fails with what the first file says.
PROGRAM = """
import json, pathlib, sys
target, first = pathlib.Path(sys.argv[1].partition("=")[2]), pathlib.Path(sys.argv[2])
print(json.dumps({"level": "INFO", "message": "converting " + first.name}), flush=True)
if first.read_text().startswith("bad"):
    sys.exit("Error: " + first.read_text())
target.mkdir(parents=True)
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_text("weights")
    return folder


def converter(tmp_path: Path) -> Converter:
    return Converter((sys.executable, "-c", PROGRAM), dict(os.environ), tmp_path / "cache")


def test_files_are_converted_once_until_they_change(weights: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    made = converter(tmp_path).safetensors_of(weights, Log(output))
    assert made.is_dir()
    assert made.parent == tmp_path / "cache" / "millrace"
    assert made.name.startswith("some-model-")
    assert output.getvalue().count("converting pytorch_model.bin") == 1
    assert converter(tmp_path).safetensors_of(weights, Log(output)) == made
    assert output.getvalue().count("converting pytorch_model.bin") == 1
    os.utime(weights / "pytorch_model.bin", (1, 1))
    assert converter(tmp_path).safetensors_of(weights, Log(output)) != made


def test_a_failure_ends_the_start_with_the_reason(weights: Path, tmp_path: Path) -> None:
    (weights / "pytorch_model.bin").write_text("bad weights")
    with pytest.raises(
        LauncherError, match=r"cannot be converted to safetensors: exit status 1: bad weights"
    ) as caught:
        converter(tmp_path).safetensors_of(weights, Log(io.StringIO()))
    assert caught.value.variant is Variant.DOWNLOAD


def test_a_program_that_cannot_be_started_ends_the_start_with_the_reason(weights: Path, tmp_path: Path) -> None:
    missing = Converter((str(tmp_path / "nowhere"),), dict(os.environ), tmp_path / "cache")
    with pytest.raises(LauncherError, match=r"nowhere cannot be started: No such file") as caught:
        missing.safetensors_of(weights, Log(io.StringIO()))
    assert caught.value.variant is Variant.DOWNLOAD


def test_an_index_says_which_files_there_are(weights: Path) -> None:
    (weights / "other.bin").write_text("other")
    assert pickled_files(weights) == [weights / "pytorch_model.bin"]
    index = weights / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"a": "other.bin"}}')
    assert pickled_files(weights) == [weights / "other.bin"]
    index.write_text('{"weight_map": {"a": "absent.bin"}}')
    with pytest.raises(LauncherError, match=r"absent\.bin"):
        pickled_files(weights)


def test_the_cache_is_the_hubs(tmp_path: Path) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    assert hub_cache(tmp_path) == tmp_path
    assert hub_cache(None) == Path(HF_HUB_CACHE)
