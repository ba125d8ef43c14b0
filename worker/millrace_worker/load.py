"""From a configuration to a loaded rank: device, dtype, group, weights. The slow imports happen here, not at start."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from millrace_worker import cpu_kernels, logs, shared_memory
from millrace_worker.config import DTYPES, STORED_QUANTIZATIONS, WorkerConfig
from millrace_worker.distributed import connect
from millrace_worker.engine import EngineParts
from millrace_worker.grammar import Vocabulary, VocabularyError, read_vocabulary
from millrace_worker.layers import products
from millrace_worker.memory import bytes_held
from millrace_worker.model import FEATURES, Model
from millrace_worker.models.changes import Changes
from millrace_worker.models.checkpoint import OnRead, unwatched
from millrace_worker.models.choice import Choice, ModelAsk, choose, load
from millrace_worker.models.scaling import Stretch
from millrace_worker.placement import Place, pin
from millrace_worker.rank import Identity, Rank
from millrace_worker.sampling import Watermark

# What /proc/cpuinfo calls arithmetic on bfloat16 in hardware: x86 (two kinds) and Arm.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def load_rank(config: WorkerConfig, on_read: OnRead = unwatched) -> Rank:
    """Takes the device, joins the other ranks and reads this rank's part of the weights; `on_read` is told of it."""
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    device = choose_device(config.rank)
    if device.type == "cpu":
        settle(config.place)
    model_config = json.loads((config.model_path / "config.json").read_text(encoding="utf-8"))
    dtype = choose_dtype(config.dtype, model_config, device)
    changes = asked_changes(config)
    if changes.quantize is not None and device.type != "cpu":
        raise ValueError(f"--quantize {config.quantize}: weights are quantized on CPUs only; leave the flag out")
    choice = choose(config.model_path, config.model_impl, changes, device)
    kernels = cpu_kernels.find(config.cpu_kernels, config.threads) if device.type == "cpu" else None
    if kernels is not None and not config.cpu_kernels and dtype is torch.bfloat16 and config.world_size == 1:
        kernels = products.settled(kernels, cpu_flags())
    group = connect(config.rank, config.world_size, device)
    if kernels is not None:
        group = shared_memory.join(group)
    joined = time.perf_counter()
    before = bytes_held(device)
    ask = ModelAsk(
        folder=config.model_path,
        dtype=dtype,
        device=device,
        group=group,
        kernels=kernels,
        trust_remote_code=config.trust_remote_code,
        changes=changes,
        on_read=on_read,
    )
    # Beside the weights, which take longer wherever reading the vocabulary takes long.
    reader = ThreadPoolExecutor(1, "vocabulary")
    reading = reader.submit(read_vocabulary, config.model_path) if group.rank == 0 else None
    reader.shutdown(wait=False)
    model = load(ask, choice)
    weight_bytes = max(0, bytes_held(device) - before)
    logs.info(
        "model loaded",
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        join_ms=round((joined - started) * 1000),
        load_ms=round((time.perf_counter() - joined) * 1000),
        **model.implementations(),
    )
    vocabulary, missing = await_vocabulary(reading)
    log_capabilities(model, choice, missing)
    watermark = Watermark(config.watermark_gamma, config.watermark_delta)
    parts = EngineParts(
        model=model, group=group, device=device, watermark=watermark, vocabulary=vocabulary, kernels=kernels
    )
    identity = Identity(
        architecture=(model_config.get("architectures") or ["unknown"])[0],
        dtype=dtype,
        device_name=device_name(device),
        weight_bytes=weight_bytes,
        quantization=choice.quantization,
        missing=missing,
    )
    return Rank(config, parts, identity)


def await_vocabulary(reading: Future[Vocabulary] | None) -> tuple[Vocabulary | None, dict[str, str]]:
    """The vocabulary, or what is missing without it and why. Ranks that do not sample read none and miss nothing."""
    try:
        return reading.result() if reading is not None else None, {}
    except VocabularyError as error:
        return None, {"grammar": str(error)}


def log_capabilities(model: Model, choice: Choice, further: Mapping[str, str]) -> None:
    """Who computes and why; what that costs, a line for each feature that is lost: by the model, or `further`."""
    missing = {**model.missing, **further}
    logs.info(
        "implementation chosen",
        implementation=model.implementation,
        reason=choice.reason,
        capabilities=", ".join(name for name in FEATURES if name not in missing),
        missing=", ".join(missing) or "none",
    )
    for feature, reason in missing.items():
        logs.warning("a feature is not available with this model", feature=feature, reason=reason)


def asked_changes(config: WorkerConfig) -> Changes:
    """What `--quantize` names is done at load, or has been done to the checkpoint."""
    stored = config.quantize if config.quantize in STORED_QUANTIZATIONS else None
    return Changes(asked_stretch(config), None if stored else config.quantize, stored)


def asked_stretch(config: WorkerConfig) -> Stretch | None:
    """A factor alone means linear, a kind alone the factor 1."""
    if config.rope_scaling is None and config.rope_factor is None:
        return None
    return Stretch(config.rope_scaling or "linear", config.rope_factor or 1.0)


def choose_device(rank: int) -> torch.device:
    """The rank's own GPU when there are any. Raises ValueError when there are GPUs, but fewer than ranks."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return torch.device("cpu")
    if rank >= count:
        raise ValueError(f"rank {rank} needs GPU number {rank}, but {count} are visible: lower --num-shard")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device


def settle(place: Place) -> None:
    """Takes the rank's place on CPUs and tells the log: before memory is taken, which is near whoever writes it first.

    A rank that the system does not let take its place computes where it is.
    """
    if place.cores:
        try:
            pin(place.cores)
        except OSError as error:
            logs.warning("this rank could not be kept to the cores of its NUMA nodes", error=str(error))
            place = replace(place, nodes=(), cores=frozenset())
    logs.info("computing on CPUs", **place.fields(os.sched_getaffinity(0)))


def choose_dtype(asked: str | None, model_config: dict[str, object], device: torch.device) -> torch.dtype:
    """What was asked for; else the checkpoint's own on a GPU; else bfloat16 where the CPU has instructions for it."""
    if asked is not None:
        return getattr(torch, asked)
    if device.type == "cpu":
        return torch.bfloat16 if computes_bfloat16() else torch.float32
    stored = str(model_config.get("dtype") or model_config.get("torch_dtype") or "float16").removeprefix("torch.")
    if stored not in DTYPES:
        raise ValueError(f"config.json says dtype {stored!r}: choose one of {', '.join(DTYPES)} with --dtype")
    return getattr(torch, stored)


def computes_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    return not BFLOAT16_FLAGS.isdisjoint(cpu_flags(cpuinfo))


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What the system says its CPUs have, in its words."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return [] if line is None else line[1].split()


def device_name(device: torch.device) -> str:
    """For example nvidia-h200, amd-epyc-9r14."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        found = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
