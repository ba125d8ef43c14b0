"""What a deployment of the original may have set that means nothing here: said once in the log, never passed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from millrace_launcher.errors import argument_error


@dataclass(frozen=True)
class ForeignVariable:
    """`known`: the only values that are understood (empty: any); `silent`: values that need no word."""

    name: str
    reason: str
    known: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


_CHUNKS = "prompts are always computed in chunks"
_KERNELS = "kernels are chosen by device and model, and the choice is logged"

FOREIGN_ENVIRONMENT = (
    ForeignVariable("ATTENTION", _KERNELS, known=("flashinfer", "flashdecoding", "flashdecoding-ipex", "paged")),
    ForeignVariable("USE_FLASH_ATTENTION", _KERNELS, silent=("true", "True", "1")),
    ForeignVariable("PREFILL_CHUNKING", _CHUNKS, silent=("1", "true", "True")),
    ForeignVariable("TGI_WIGGLE_ROOM", "memory is measured at start; see `--cuda-memory-fraction`"),
    ForeignVariable("REQUEST_LOGPROBS", "log-probabilities of prompt tokens are always allowed"),
    ForeignVariable(
        "EXLLAMA_VERSION", "these choose among CUDA kernels for quantized weights, of which there are none"
    ),
    ForeignVariable(
        "DISABLE_EXLLAMA", "these choose among CUDA kernels for quantized weights, of which there are none"
    ),
    ForeignVariable(
        "USE_CUTLASS_W8A8", "these choose among CUDA kernels for quantized weights, of which there are none"
    ),
    ForeignVariable("XPU_MEMORY_FRACTION", "XPU devices are not served"),
    ForeignVariable("ZE_AFFINITY_MASK", "XPU devices are not served"),
)


def foreign_notices(environment: Mapping[str, str]) -> list[str]:
    """One sentence for each variable that is set and has no effect. Raises `LauncherError` for an unknown value."""
    notices: list[str] = []
    for variable in FOREIGN_ENVIRONMENT:
        value = environment.get(variable.name, "")
        if not value or value in variable.silent:
            continue
        if variable.known and value not in variable.known:
            raise argument_error(f"{variable.name} is '{value}': one of {', '.join(variable.known)} is expected")
        notices.append(f"The environment variable {variable.name} has no effect: {variable.reason}")
    return notices
