"""Arguments and environment: what is read, what is refused, what a log line looks like."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from millrace_worker import load, logs
from millrace_worker.config import WorkerConfig, read_config
from millrace_worker.placement import Cpus, Place


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_everything_is_read_once(model_path: Path) -> None:
    arguments = ["--model-path", str(model_path), "--uds-path", "/run/m", "--dtype", "bfloat16", "--json-output"]
    arguments += ["--cuda-memory-fraction", "0.8", "--kv-cache-memory", "4096"]
    arguments += ["--watermark-gamma", "0.25", "--watermark-delta", "1.5"]
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    environment |= {"LOG_LEVEL": "h2=warn,debug", "OMP_NUM_THREADS": "3", "MILLRACE_LIFELINE": "stdin"}
    config = read_config(arguments, environment, Cpus(frozenset(range(16))))
    assert config == WorkerConfig(
        model_path=model_path,
        uds_path="/run/m",
        dtype="bfloat16",
        cuda_memory_fraction=0.8,
        kv_cache_memory=4096,
        watermark_gamma=0.25,
        watermark_delta=1.5,
        json_output=True,
        rank=1,
        world_size=2,
        log_level="debug",
        lifeline=True,
        place=Place(3),
    )
    assert config.socket_path == Path("/run/m-1")


def test_threads_are_what_the_user_says_else_the_ranks_share(model_path: Path) -> None:
    """Of two nodes with four cores each, and of a quota of four cores."""
    nodes = {0: frozenset(range(4)), 1: frozenset(range(4, 8))}
    two = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}

    def place(environment: dict[str, str], quota: int | None = None) -> Place:
        argv = ["--model-path", str(model_path), "--uds-path", "/run/m"]
        config = read_config(argv, environment, Cpus(frozenset(range(8)), nodes, quota))
        assert config.threads == config.place.threads
        return config.place

    assert place({}) == Place(8)
    assert place({}, quota=4) == Place(4, quota=4)
    assert place({"OMP_NUM_THREADS": "6"}, quota=4) == Place(6, quota=4)
    assert place(two) == Place(4, (1,), nodes[1])
    assert place(two, quota=4) == Place(2, (1,), nodes[1], quota=4)
    assert place(two | {"OMP_NUM_THREADS": "3"}) == Place(3, (1,), nodes[1])
    # Of more threads than its node has cores, some would wait for others.
    assert place(two | {"OMP_NUM_THREADS": "5"}) == Place(5)


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--dtype", "int8"], {}, "--dtype"),
        (["--cuda-memory-fraction", "1.5"], {}, "--cuda-memory-fraction"),
        (["--kv-cache-memory", "0"], {}, "--kv-cache-memory"),
        (["--watermark-gamma", "1"], {}, "--watermark-gamma"),
        (["--uds-path", "/" + "x" * 106], {}, "--uds-path"),
        (["--model-path", "/nowhere"], {}, "config.json"),
        ([], {"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ([], {"RANK": "1"}, "RANK is 1"),
        ([], {"WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ([], {"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        ([], {"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS"),
        ([], {"MILLRACE_LIFELINE": "fd3"}, "MILLRACE_LIFELINE"),
    ],
)
def test_what_is_wrong_is_named(
    model_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    says: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_config(["--model-path", str(model_path), "--uds-path", "/run/m", *arguments], environment)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 sse", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx512f avx512bw", False),
        ("model name\t: bf16", False),
    ],
)
def test_bfloat16_is_chosen_where_the_cpu_has_it(tmp_path: Path, line: str, answer: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    assert load.computes_bfloat16(cpuinfo) is answer


def test_dtypes() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert load.choose_dtype("float16", {"dtype": "bfloat16"}, gpu) is torch.float16
    assert load.choose_dtype(None, {"torch_dtype": "bfloat16"}, gpu) is torch.bfloat16
    assert load.choose_dtype(None, {"dtype": "float32"}, gpu) is torch.float32
    assert load.choose_dtype(None, {}, gpu) is torch.float16
    assert load.choose_dtype(None, {"dtype": "float64"}, cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="--dtype"):
        load.choose_dtype(None, {"dtype": "float64"}, gpu)


def test_log_records_are_one_json_object_a_line() -> None:
    record = logging.LogRecord("millrace_worker", logging.WARNING, "f", 1, "two\nlines", (), None)
    record.fields = {"pages": 7, "level": "not this", "path": Path("/x")}
    text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    entry = json.loads(text)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"level": "WARN", "message": "two\nlines", "target": "millrace_worker", "pages": 7, "path": "/x"}
    assert (
        logs.TextFormatter().format(record).endswith(" WARN millrace_worker: two\nlines pages=7 level=not this path=/x")
    )
