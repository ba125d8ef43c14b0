"""Pickled weights become safetensors: what is kept, what is refused, and what interruptions leave."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from millrace_worker import convert as program
from millrace_worker.convert import ConversionError, convert
from safetensors.torch import load_file


class Evil:
    """What a pickle can do when it is loaded as any pickle is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


class Asked(NamedTuple):
    source: Path
    target: Path


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "pytorch_model.bin", tmp_path / "cache" / "converted")


def all_dtypes() -> dict[str, torch.Tensor]:
    floats = {str(dtype): torch.randn(3, 5).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    return floats | {
        "int": torch.arange(7),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }


def refusal(asked: Asked) -> str:
    with pytest.raises(ConversionError) as caught:
        convert([asked.source], asked.target)
    assert not asked.target.exists()
    assert str(asked.source) in str(caught.value)
    return str(caught.value)


def command(asked: Asked) -> list[str]:
    return [sys.executable, "-m", "millrace_worker.convert", "--target", str(asked.target), str(asked.source)]


def test_every_tensor_arrives_as_it_was(asked: Asked) -> None:
    tensors = all_dtypes()
    torch.save(tensors, asked.source)
    convert([asked.source], asked.target)
    found = load_file(asked.target / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype is tensor.dtype
        assert found[name].equal(tensor)


def test_shared_and_sliced_tensors_are_written_each_for_itself(asked: Asked) -> None:
    table = torch.randn(6, 4)
    torch.save(
        {"embed": table, "head": torch.nn.Parameter(table), "turned": table.t(), "part": table[1:3]}, asked.source
    )
    convert([asked.source], asked.target)
    found = load_file(asked.target / "model.safetensors")
    assert found["embed"].equal(table)
    assert found["head"].equal(table)
    assert found["turned"].equal(table.t())
    assert found["part"].equal(table[1:3])


def test_several_files_get_an_index(asked: Asked, tmp_path: Path) -> None:
    files = [tmp_path / f"pytorch_model-{number}.bin" for number in (1, 2)]
    for path, name in zip(files, "ab", strict=True):
        torch.save({"state_dict": {name: torch.ones(2)}}, path)
    convert(files, asked.target)
    assert {path.name for path in asked.target.iterdir()} == {
        "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    }  # fmt: skip
    torch.save({"a": torch.ones(2)}, files[1])
    with pytest.raises(ConversionError, match="has the tensor a, which another file has"):
        convert(files, asked.target.with_name("other"))


def test_a_malicious_pickle_is_refused_and_does_nothing(asked: Asked, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"weight": torch.zeros(2), "evil": Evil(touched)}, asked.source)
    message = refusal(asked)
    assert "refused: it asks for `posix.system`" in message
    assert "weights_only" not in message
    assert not touched.exists()
    torch.load(asked.source, weights_only=False)  # the file does bite
    assert touched.exists()


def test_a_pickled_module_is_refused_by_its_class(asked: Asked) -> None:
    torch.save(torch.nn.Linear(2, 2), asked.source)
    assert "`torch.nn.modules.linear.Linear`" in refusal(asked)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False), "since torch 1.6"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "since torch 1.6"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (lambda path: torch.save({"a": torch.ones(2), "step": 7}, path), "the entry 'step' is a int"),
        (lambda path: torch.save({"a": torch.ones(2).to_sparse()}, path), "the entry 'a' is a tensor of torch.float32"),
        (lambda path: torch.save([torch.ones(2)], path), "holds a list"),
    ],
)
def test_what_cannot_be_converted_is_told(asked: Asked, write: Callable[[Path], object], message: str) -> None:
    write(asked.source)
    assert message in refusal(asked)


def test_a_file_that_is_cut_off_is_told(asked: Asked) -> None:
    torch.save({"a": torch.zeros(20_000)}, asked.source)
    asked.source.write_bytes(asked.source.read_bytes()[:-3000])
    assert "cannot be loaded" in refusal(asked)


def test_a_whole_conversion_is_not_repeated_and_a_broken_one_is(asked: Asked) -> None:
    part = asked.target.with_name("converted.part")
    part.mkdir(parents=True)
    (part / "model.safetensors").write_text("left by a process that was killed")
    torch.save({"a": torch.ones(2)}, asked.source)
    convert([asked.source], asked.target)
    assert not part.exists()
    inode = (asked.target / "model.safetensors").stat().st_ino
    convert([asked.source], asked.target)
    assert (asked.target / "model.safetensors").stat().st_ino == inode


def test_who_comes_second_waits_and_finds_it(asked: Asked) -> None:
    torch.save({"a": torch.ones(2)}, asked.source)
    asked.target.parent.mkdir()
    with asked.target.with_name("converted.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(command(asked), stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert "waiting for another process" in second.stdout.readline()
        asked.target.mkdir()
    rest, _ = second.communicate(timeout=300)
    assert second.returncode == 0
    assert "converting" not in rest
    assert not list(asked.target.iterdir())


def test_a_full_disk_is_told_before_anything_is_written(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(20_000)}, asked.source)
    monkeypatch.setattr(program.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ConversionError, match=r"needs 0\.00 GB there, 0\.00 GB are free"):
        convert([asked.source], asked.target)


def test_a_disk_that_fills_up_leaves_nothing_behind(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit of a file's size stands for it: writing fails in the middle."""
    torch.save({"a": torch.zeros(300_000)}, asked.source)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        status = program.main(["--target", str(asked.target), str(asked.source)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert [path.name for path in asked.target.parent.iterdir()] == ["converted.lock"]


def test_the_end_of_the_launcher_ends_it(asked: Asked) -> None:
    torch.save({"a": torch.ones(2)}, asked.source)
    environment = os.environ | {"MILLRACE_LIFELINE": "stdin"}
    ended = subprocess.run(command(asked), stdin=subprocess.DEVNULL, env=environment, timeout=300, check=False)
    assert ended.returncode == -9
    assert not asked.target.exists()
