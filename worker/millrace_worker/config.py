"""What the launcher told this rank: arguments and environment, read once into one frozen value. Imports no torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from millrace_worker import placement
from millrace_worker.placement import ONE_THREAD, Cpus, Place

DTYPES = ("float32", "bfloat16", "float16")
# Who computes the model: see `models.choice`.
MODEL_IMPLS = ("auto", "native", "transformers")
# Names of what weights can be brought into at load: 8 bits with a scale for each output.
QUANTIZATIONS = ("eetq", "bitsandbytes")
# Names of what they are in already, in checkpoints that are read so.
STORED_QUANTIZATIONS = ("gptq", "awq")
LOG_LEVELS = ("trace", "debug", "info", "warn", "warning", "error")

# Linux keeps a unix socket's path in 108 bytes, the last of them zero.
MAX_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """One rank's configuration.

    `dtype` None means "as the device computes best" (`load.choose_dtype`); `kv_cache_memory` is in bytes and None means
    "from the memory that is left"; `cuda_memory_fraction` is of the device's whole memory, as in TGI.
    """

    model_path: Path
    uds_path: str
    dtype: str | None = None
    model_impl: str = "auto"
    quantize: str | None = None
    trust_remote_code: bool = False
    rope_scaling: str | None = None
    rope_factor: float | None = None
    cuda_memory_fraction: float = 1.0
    kv_cache_memory: int | None = None
    watermark_gamma: float = 0.5
    watermark_delta: float = 2.0
    json_output: bool = False
    rank: int = 0
    world_size: int = 1
    log_level: str = "info"
    lifeline: bool = False
    generation: int = 0  # of the group, as its launcher counts
    place: Place = ONE_THREAD
    cpu_kernels: str = ""  # see `cpu_kernels.find`

    @property
    def socket_path(self) -> Path:
        """Where this rank listens."""
        return Path(f"{self.uds_path}-{self.rank}")

    @property
    def threads(self) -> int:
        """Of one operator."""
        return self.place.threads


def read_config(argv: Sequence[str], environment: Mapping[str, str], cpus: Cpus | None = None) -> WorkerConfig:
    """Exits with status 2 and a message that names the argument when something is missing or wrong.

    `cpus` None means those that this process may use.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    world_size = _integer(parser, environment, "WORLD_SIZE", default=1, minimum=1)
    rank = _integer(parser, environment, "RANK", default=0, minimum=0)
    if rank >= world_size:
        parser.error(f"RANK is {rank} but WORLD_SIZE is {world_size}: ranks count from 0")
    if world_size > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                parser.error(f"{name} must be set when WORLD_SIZE is {world_size}")
    config = WorkerConfig(
        **vars(arguments),
        rank=rank,
        world_size=world_size,
        log_level=_log_level(parser, environment),
        lifeline=_lifeline(parser, environment),
        generation=_integer(parser, environment, "MILLRACE_GENERATION", default=0, minimum=0),
        place=placement.choose(cpus or placement.look(environment), rank, world_size, _threads(parser, environment)),
        cpu_kernels=environment.get("MILLRACE_CPU_KERNELS", ""),
    )
    _check_paths(parser, config)
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m millrace_worker",
        description="One rank of the model. The launcher starts it; RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, "
        "LOG_LEVEL, OMP_NUM_THREADS, MILLRACE_CPU_KERNELS, MILLRACE_GENERATION and MILLRACE_LIFELINE come from the "
        "environment. Without OMP_NUM_THREADS, ranks on CPUs share the cores that affinity and the container's limit "
        "allow, each near memory of its own.",
        allow_abbrev=False,
    )
    parser.add_argument("--model-path", type=Path, required=True, help="folder with config.json and safetensors")
    parser.add_argument("--uds-path", required=True, help="listens on the unix socket PREFIX-RANK", metavar="PREFIX")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the model's on a GPU; on a CPU what it computes best")
    parser.add_argument("--model-impl", choices=MODEL_IMPLS, default="auto", help="who computes the model")
    parser.add_argument(
        "--quantize",
        choices=(*QUANTIZATIONS, *STORED_QUANTIZATIONS),
        help="weights in 8 bits, on a CPU; gptq and awq say what the checkpoint holds",
    )
    parser.add_argument("--rope-scaling", choices=("linear", "dynamic"), help="stretches rotary positions")
    parser.add_argument("--rope-factor", type=_stretch, help="by how much; alone it means linear")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--cuda-memory-fraction", type=_fraction, default=1.0, help="of the device's memory (0, 1]")
    parser.add_argument("--kv-cache-memory", type=_positive_bytes, help="size of the KV pool in bytes")
    parser.add_argument("--watermark-gamma", type=_share, default=0.5, help="share of green tokens, between 0 and 1")
    parser.add_argument("--watermark-delta", type=float, default=2.0, help="what a green token's logit gains")
    parser.add_argument("--json-output", action="store_true", help="logs are JSON lines on a terminal too")
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _stretch(text: str) -> float:
    value = float(text)
    if not 1.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return value


def _positive_bytes(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of bytes")
    return value


def _integer(
    parser: argparse.ArgumentParser, environment: Mapping[str, str], name: str, *, default: int, minimum: int
) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdigit() or int(text) < minimum:
        parser.error(f"{name} must be a whole number of at least {minimum}, not {text!r}")
    return int(text)


def _log_level(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> str:
    """LOG_LEVEL is the router's too, where it may carry per-target parts: the first plain level counts here."""
    parts = environment.get("LOG_LEVEL", "").lower().split(",")
    plain = next((part.strip() for part in parts if part.strip() and "=" not in part), "info")
    if plain not in LOG_LEVELS:
        parser.error(f"LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}, not {plain!r}")
    return plain


def _lifeline(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> bool:
    value = environment.get("MILLRACE_LIFELINE", "")
    if value not in ("", "stdin"):
        parser.error(f"MILLRACE_LIFELINE must be 'stdin' or unset, not {value!r}")
    return value == "stdin"


def _threads(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> int | None:
    return _integer(parser, environment, "OMP_NUM_THREADS", default=0, minimum=1) or None


def _check_paths(parser: argparse.ArgumentParser, config: WorkerConfig) -> None:
    if not (config.model_path / "config.json").is_file():
        parser.error(f"--model-path {config.model_path}: there is no config.json in this folder")
    size = len(os.fsencode(config.socket_path))
    if size > MAX_SOCKET_PATH_BYTES:
        parser.error(
            f"--uds-path: the socket path {config.socket_path} has {size} bytes, "
            f"Linux allows {MAX_SOCKET_PATH_BYTES}; choose a shorter prefix"
        )
