"""How each peer is started: the same model, the same number formats, the same limits as ours.

What a peer needs of the model (an OpenVINO export, a GGUF file) is made once, under `target/benchmarks`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import fewer_bits, models, processes, serving
from benchmarks.contest import Point, Server, Side, Starter

ENVIRONMENTS = Path(__file__).resolve().parent.parent.parent / "target" / "peers"
# Every answer has all its tokens, and says how many.
WHOLE_ANSWERS = {"ignore_eos": True, "stream_options": {"include_usage": True}}
# What a peer's speed is held to: ours over theirs.
TARGETS = {"openvino": 1.0, "vllm": 1.5, "llama": 1.5}


@dataclass(frozen=True)
class Shared:
    """Limits that hold for every side: streams at once, tokens of a stream, tokens in the KV cache."""

    streams: int
    sequence_tokens: int
    cache_tokens: int

    @staticmethod
    def of(points: list[Point]) -> Shared:
        """What the points need, and an eighth more of the cache for pages that are not full."""
        longest = max(point.prompt_tokens + point.new_tokens for point in points)
        most = max(point.tokens for point in points)
        return Shared(max(point.streams for point in points), max(2048, longest), max(4096, most + most // 8))


def starters(names: list[str], points: list[Point]) -> dict[str, Starter]:
    """Ours and the named peers."""
    shared = Shared.of(points)
    longest = max(point.prompt_tokens + point.new_tokens for point in points)
    known: dict[str, Starter] = {
        "millrace": lambda folder, stack: start_millrace(folder, stack, shared),
        "openvino": lambda folder, stack: start_openvino(folder, stack, shared, its_defaults=False),
        "openvino-defaults": lambda folder, stack: start_openvino(folder, stack, shared, its_defaults=True),
        "vllm": lambda folder, stack: start_vllm(folder, stack, shared),
        "llama": lambda folder, stack: start_llama(folder, stack, shared.streams, longest),
    }
    return {name: known[name] for name in names}


def start_millrace(folder: Path, stack: ExitStack, shared: Shared) -> Side:
    port, dtype = processes.free_port(), models.dtype_of(folder)
    command = [str(serving.SCRIPTS / "millrace-launcher"), "--model-id", str(folder), "--port", str(port)]
    command += ["--hostname", "127.0.0.1", "--dtype", dtype, "--max-batch-size", str(shared.streams)]
    command += ["--kv-cache-memory", str(shared.cache_tokens * models.cache_bytes_per_token(folder))]
    command += ["--max-total-tokens", str(shared.sequence_tokens)]
    form = models.form_of(folder)
    if form == "int8":
        command += ["--quantize", "eetq"]
    side = serving.start_server(processes.Program("millrace", command, {}), Server(port, "tgi", WHOLE_ANSWERS), stack)
    rest = "; embedding and head bfloat16"
    weights = {
        "": dtype,
        "int8": f"int8, a scale for each output{rest}",
        "int4": f"int4 (GPTQ), groups of 128{rest}",
    }[form]
    return replace(side, about=f"through HTTP; weights {weights}; activations and KV {dtype}")


def start_openvino(folder: Path, stack: ExitStack, shared: Shared, its_defaults: bool) -> Side:
    name = "openvino-defaults" if its_defaults else "openvino"
    dtype = models.dtype_of(folder)
    short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    properties = [] if its_defaults else [f"INFERENCE_PRECISION_HINT={short}", f"KV_CACHE_PRECISION={short}"]
    form = models.form_of(folder)
    stored = form or ("fp32" if dtype == "float32" else "fp16")
    if form and not its_defaults:  # left alone it computes with activations of 8 bits
        properties.append("DYNAMIC_QUANTIZATION_GROUP_SIZE=0")
    limits = [str(shared.cache_tokens), str(shared.streams)]
    command = [python_of("openvino"), "-m", "benchmarks.peers.openvino_pipeline"]
    command += [str(exported_for_openvino(folder, stored)), *limits, *properties]
    program = processes.Program(name, command, offline("openvino"), asked_by_pipe=True)
    side = serving.start_in_process(program, folder, stack)
    precision = "its own choice of precision" if its_defaults else " and ".join(properties)
    rest = " (embedding and head int8)" if form == "int4" else ""
    return replace(side, about=f"in process, token ids in and out; weights stored as {stored}{rest}, {precision}")


def exported_for_openvino(folder: Path, stored: str) -> Path:
    plain = models.plain(folder)
    target = folder.parent / "openvino" / f"{plain.name}-{stored}"
    if not target.exists():
        unfinished = target.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        program = Path(python_of("openvino")).parent / "optimum-cli"
        command = [str(program), "export", "openvino", "--model", str(plain), "--task", "text-generation-with-past"]
        command += ["--weight-format", stored]
        if stored in ("int8", "int4"):
            command += ["--sym"]
        if stored == "int4":
            command += ["--group-size", str(fewer_bits.GROUP), "--ratio", "1.0"]
        prepare([*command, str(unfinished)], "openvino")
        unfinished.rename(target)
    return target


def start_vllm(folder: Path, stack: ExitStack, shared: Shared) -> Side:
    form = models.form_of(folder)
    if form == "int8":
        raise processes.DidNotStartError("on CPUs its weights of 8 bits go with activations of 8 bits only")
    port, cores, dtype = processes.free_port(), os.cpu_count() or 1, models.dtype_of(folder)
    cache_bytes = shared.cache_tokens * models.cache_bytes_per_token(folder)
    command = [python_of("vllm"), "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--served-model-name", "m"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    command += ["--max-model-len", str(shared.sequence_tokens), "--max-num-seqs", str(shared.streams)]
    environment = offline("vllm") | {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}",
        "OMP_NUM_THREADS": str(cores),
        "VLLM_CPU_KVCACHE_SPACE": str(-(-cache_bytes // 2**30)),  # whole GiB
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    program = processes.Program("vllm", command, environment)
    side = serving.start_server(program, Server(port, "m", WHOLE_ANSWERS), stack, seconds=600)
    weights = "int4 (the same checkpoint)" if form else dtype
    return replace(side, about=f"through HTTP; weights {weights}; activations and KV {dtype}")


def start_llama(folder: Path, stack: ExitStack, streams: int, longest: int) -> Side:
    """Its cache is divided evenly among the streams, so it holds `streams` times the longest sequence."""
    port, cores, dtype = processes.free_port(), str(os.cpu_count() or 1), models.dtype_of(folder)
    cache = "f32" if dtype == "float32" else "f16"
    slot = -(-longest // 256) * 256
    command = [str(ENVIRONMENTS / "llama" / "bin" / "llama-server"), "--model", str(as_gguf(folder))]
    command += ["--host", "127.0.0.1", "--port", str(port), "--threads", cores, "--threads-batch", cores]
    command += ["--parallel", str(streams), "--ctx-size", str(streams * slot), "--cache-ram", "0"]
    command += ["--cache-type-k", cache, "--cache-type-v", cache]
    side = serving.start_server(processes.Program("llama", command, {}), Server(port, "m", WHOLE_ANSWERS), stack)
    quantized = "and activations rounded to 8 bits for each product: less precision than ours"
    weights = {
        "": f"weights and activations {dtype}",
        "int8": f"weights Q8_0 {quantized}",
        "int4": f"weights Q4_0 {quantized}",
    }[models.form_of(folder)]
    return replace(side, about=f"through HTTP; {weights}; KV {cache}, {streams} x {slot} tokens")


def as_gguf(folder: Path) -> Path:
    file = folder.parent / "gguf" / f"{folder.name}.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = {"": [], "int8": ["Q8_0"], "int4": ["Q4_0"]}[models.form_of(folder)]
        command = [python_of("llama"), "-m", "benchmarks.peers.gguf_export", str(models.plain(folder)), str(file)]
        prepare([*command, *kind], "llama")
    return file


def python_of(peer: str) -> str:
    python = ENVIRONMENTS / peer / "bin" / "python"
    if not python.exists():
        raise processes.DidNotStartError(f"{peer} is not installed: `make bench-peers PEERS={peer}` does it")
    return str(python)


def offline(peer: str) -> dict[str, str]:
    """No peer looks for anything outside, nor finds programs of another environment."""
    path = f"{ENVIRONMENTS / peer / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"HF_HUB_OFFLINE": "1", "PATH": path, "VIRTUAL_ENV": str(ENVIRONMENTS / peer)}


def prepare(command: list[str], peer: str) -> None:
    """Runs a conversion to its end. Raises with the end of its output when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | offline(peer), check=False, timeout=1800
    )
    if done.returncode:
        raise processes.DidNotStartError(f"{Path(command[0]).name}: {done.stderr.strip()[-400:]}")
