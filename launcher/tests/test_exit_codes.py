"""Command lines and environments against the exit status and the error variant that scripts rely on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from millrace_launcher import main
from millrace_launcher.hardware import Machine
from millrace_launcher.resolve import Programs

MODEL = "MODEL_ID"

# What follows the program's name ("M" stands for `--model-id MODEL_ID`), the environment, the status and the variant.
# Where the original differs the line says so.
TABLE: list[tuple[str, dict[str, str], int, str | None]] = [
    ("--version", {}, 0, None),
    ("-V", {}, 0, None),
    ("-h", {}, 0, None),
    ("--help", {}, 0, None),
    ("M --nope", {}, 2, None),
    ("M --model", {}, 2, None),
    ("gpt2", {}, 2, None),
    ("M --port abc", {}, 2, None),
    ("M --port 70000", {}, 2, None),
    ("M --port -1", {}, 2, None),
    ("M --port", {}, 2, None),
    ("M --quantize foo", {}, 2, None),
    ("M --dtype float64", {}, 2, None),  # float32 is refused by the original and served here
    ("M --sharded maybe", {}, 2, None),
    ("M --port 3000 --port 3001", {}, 2, None),
    ("M --trust-remote-code true", {}, 2, None),
    ("M --usage-stats maybe", {}, 2, None),
    ("M --kv-cache-dtype x", {}, 2, None),
    ("M --rope-scaling x", {}, 2, None),
    ("M --max_total_tokens 5", {}, 2, None),
    ("M --max-concurrent-requests=-1", {}, 2, None),
    ("M --cuda-graphs x", {}, 2, None),
    ("M", {"PORT": "abc"}, 2, None),
    ("M", {"TRUST_REMOTE_CODE": "maybe"}, 2, None),
    ("M", {"QUANTIZE": "foo"}, 2, None),
    ("M --max-input-tokens 100 --max-total-tokens 100", {}, 1, "ArgumentValidation"),
    ("M --max-input-tokens 100 --max-input-length 90", {}, 1, "ArgumentValidation"),
    (
        "M --max-input-tokens 100 --max-total-tokens 2000 --max-batch-total-tokens 500",
        {},
        1,
        "ArgumentValidation",
    ),
    ("M --validation-workers 0", {}, 1, "ArgumentValidation"),
    ("M --env --validation-workers 0", {}, 1, "ArgumentValidation"),
    ("M --sharded true --num-shard 1", {}, 1, "ArgumentValidation"),
    ("M --num-shard 0", {}, 1, "ArgumentValidation"),
    ("M --sharded true", {}, 101, "NotEnoughCUDADevices"),
    ("M --sharded true", {"CUDA_VISIBLE_DEVICES": "0"}, 1, "NotEnoughCUDADevices"),
    ("M --ngrok", {}, 1, "ArgumentValidation"),
    ("M --ngrok --ngrok-authtoken x", {}, 1, "ArgumentValidation"),
    ("M --lora-adapters a@b@c", {}, 1, "ArgumentValidation"),  # the original: DownloadError
    ("M", {"ATTENTION": "foo"}, 1, "ArgumentValidation"),  # the original: DownloadError
    ("M --port 0 --shard-uds-path nowhere/at/all/prefix", {}, 1, "ArgumentValidation"),  # likewise
    ("--model-id some/name --port 0", {}, 1, "DownloadError"),
    ("--model-id ./nowhere --port 0", {}, 1, "DownloadError"),
    ("--model-id a/b/c --port 0", {}, 1, "DownloadError"),
    ("M --port 0", {}, 1, "DownloadError"),
    ("M --port 0 --json-output", {}, 1, "DownloadError"),
]


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_exit_status(
    row: tuple[str, dict[str, str], int, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line, environment, status, variant = row

    def machine_without_gpus(environment: dict[str, str]) -> Machine:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        return Machine(visible=None if visible is None else len(visible.split(",")))

    monkeypatch.setattr(main, "look_at_machine", machine_without_gpus)
    empty_model = tmp_path / MODEL
    empty_model.mkdir()
    words = [word for part in line.split() for word in (["--model-id", str(empty_model)] if part == "M" else [part])]
    offline = {"HF_HUB_OFFLINE": "1", "HUGGINGFACE_HUB_CACHE": str(tmp_path / "cache")}
    never_started = Programs(worker=("/nonexistent/worker",), router=("/nonexistent/router",))
    assert main.run("text-generation-launcher", words, offline | environment, never_started) == status
    errors = capsys.readouterr().err
    if variant is not None:
        assert errors.startswith(f"Error: {variant}(")
    else:
        assert errors.startswith("error: ") == (status == 2)


def test_a_router_that_is_not_installed_is_said_with_where_it_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"MILLRACE_ROUTER": str(tmp_path / "router")}
    assert main.run("millrace-launcher", ["--model-id", str(tmp_path), "--port", "0"], missing) == 1
    assert str(tmp_path / "router") in capsys.readouterr().err


def test_secrets_are_not_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--model-id", str(tmp_path / "absent"), "--api-key", "s3cret", "--ngrok-authtoken", "t0ken", "--port", "0"]
    programs = Programs(worker=("w",), router=("r",))
    assert main.run("millrace-launcher", words, {"LOG_LEVEL": "debug", "HF_TOKEN": "hf_x"}, programs) == 1
    shown = "".join(capsys.readouterr())
    assert "api_key=***" in shown
    assert not any(secret in shown for secret in ("s3cret", "t0ken", "hf_x"))
