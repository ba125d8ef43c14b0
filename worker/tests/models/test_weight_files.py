"""Files that are missing, cut off or contradict themselves, found by their headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import millrace_worker.models.checkpoint as checkpoint_module
import pytest
import torch
from millrace_worker.models.checkpoint import Checkpoint
from millrace_worker.models.weight_files import ITEM_BYTES, CheckpointError, find_tensors, read_header
from safetensors.torch import save_file

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two files with two tensors each, and their index."""
    weight_map: dict[str, str] = {}
    for name, tensors in ((FIRST, ("a", "b")), (SECOND, ("c", "d"))):
        save_file({tensor: torch.randn(3, 5) for tensor in tensors}, tmp_path / name)
        weight_map |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_tensors(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def test_whole_files_are_found(sharded: Path) -> None:
    found = find_tensors(sharded)
    assert {name: stored.path.name for name, stored in found.items()} == dict(
        zip("abcd", (FIRST, FIRST, SECOND, SECOND), strict=True)
    )
    assert {stored.shape for stored in found.values()} == {(3, 5)}


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda folder: (folder / SECOND).unlink(), f"names files that are not in the folder: {SECOND}"),
        (lambda folder: cut(folder / SECOND, 0), f"{SECOND}: is empty"),
        (lambda folder: cut(folder / SECOND, 5), f"{SECOND}: is no safetensors file, or is cut off within its header"),
        (lambda folder: cut(folder / SECOND, 40), f"{SECOND}: is no safetensors file, or is cut off within its head"),
        (lambda folder: cut(folder / SECOND, -1), f"{SECOND}: has .* its tensors need .*: it is cut off; fetch"),
        (lambda folder: (folder / SECOND).open("ab").write(b"x"), "bytes follow the last tensor"),
        (
            lambda folder: (folder / SECOND).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            f"{SECOND}: is a pointer of Git LFS",
        ),
        (lambda folder: (folder / SECOND).write_text("<html>" * 9), f"{SECOND}: is no safetensors file, or is cut"),
        (
            lambda folder: save_file({"c": torch.zeros(3)}, folder / SECOND),
            rf"index\.json: says that {SECOND} holds the tensor d, but that is not in it",
        ),
    ],
)
def test_what_is_broken_is_told_with_the_file(sharded: Path, breaks: Callable[[Path], object], message: str) -> None:
    breaks(sharded)
    with pytest.raises(CheckpointError, match=message):
        find_tensors(sharded)


@pytest.mark.parametrize(
    "header",
    [
        ["not an object"],
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": entry("F32", [3], 0, 8)},
        {"a": entry("F32", [-2], 0, 8)},
        {"a": entry("F32", [2], 8, 0)},
        {"a": entry("F32", [0], -8, -8)},
    ],
)
def test_figures_that_contradict_each_other_are_told(tmp_path: Path, header: object) -> None:
    path = write(tmp_path / "model.safetensors", header, bytes(8))
    assert refusal(tmp_path).startswith(f"{path}: is no safetensors file: its header is broken (")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_told(tmp_path: Path, content: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    assert f"{index}: is not an index of safetensors" in refusal(tmp_path)


def test_a_tensor_in_two_files_is_read_where_the_index_says(sharded: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "c": torch.ones(3, 5), "d": torch.ones(3, 5)}, sharded / SECOND)
    assert find_tensors(sharded)["a"].path.name == FIRST


def test_every_dtype_of_the_format_is_measured(tmp_path: Path) -> None:
    """Against the reference implementation's own writer."""
    floats = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    whole = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8]
    dtypes = [*floats, *whole, torch.bool]
    save_file({str(dtype): torch.zeros(3, dtype=dtype) for dtype in dtypes}, tmp_path / "model.safetensors")
    found = read_header(tmp_path / "model.safetensors")
    assert {found[str(dtype)].stop - found[str(dtype)].start for dtype in dtypes} <= {3, 6, 12, 24}
    assert {stored.dtype for stored in found.values()} | {"F8_E8M0"} == set(ITEM_BYTES)


def test_tensors_at_odd_places_and_without_elements_are_read(tmp_path: Path) -> None:
    header = {"odd": entry("F32", [2], 1, 9), "none": entry("F32", [0, 4], 1, 1), "byte": entry("U8", [1], 0, 1)}
    values = torch.tensor([1.5, -2.0])
    write(tmp_path / "model.safetensors", header, b"\x07" + values.numpy().tobytes())
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("odd", (2,)).equal(values)
    assert checkpoint.read("none", (0, 4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_a_wrong_dtype_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"weight": torch.zeros(4, dtype=dtype)}, tmp_path / "model.safetensors")
    found = read_header(tmp_path / "model.safetensors")["weight"].dtype
    expected = rf"safetensors: the tensor weight has the dtype {found}; what can be read here is float32, float16, bf"
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint(tmp_path).read("weight", (4,))
    assert Checkpoint(tmp_path).read("weight", (4,), dtypes=(dtype,)).dtype is dtype


def test_pages_that_were_read_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped pages are memory of the process as long as it holds them: a second copy of the weights."""
    path, size = tmp_path / "model.safetensors", 1 << 20
    save_file({str(number): torch.randint(99, (size // 4,)).float() for number in range(12)}, path)
    monkeypatch.setattr(checkpoint_module, "MAX_HELD_BYTES", 2 * size)
    checkpoint, copies = Checkpoint(path.parent), []
    for number in range(12):
        view = checkpoint.read(str(number), (size // 4,))
        copies.append((view, view.clone()))
        # Up to the limit, what is read now, and what the system maps around it.
        assert resident_bytes(path) < 4 * size
    assert all(view.equal(copy) for view, copy in copies)
    assert resident_bytes(path) > 8 * size  # the figure means what it should; the system may take some away


def resident_bytes(path: Path) -> int:
    """Bytes of this process's memory that are pages of the mapped file."""
    parts = Path("/proc/self/smaps").read_text().split(f" {path}\n")[1:]
    return sum(int(part.partition("\nRss:")[2].split()[0]) << 10 for part in parts)


def test_what_can_be_told_early_needs_no_torch() -> None:
    code = "import sys, millrace_worker.models.preflight; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0
