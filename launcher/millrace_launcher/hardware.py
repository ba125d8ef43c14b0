"""What this machine has, found without torch: environment, /proc and nvidia-smi."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_GPUS_IN_PROC = Path("/proc/driver/nvidia/gpus")
_NVIDIA_SMI_SECONDS = 20


@dataclass(frozen=True)
class Machine:
    """`visible`: how many GPUs the environment names, None when it does not say; `present`: how many there are.

    `card`: the name of the first GPU as its driver says it, for example "NVIDIA H200".
    """

    visible: int | None = None
    present: int = 0
    card: str | None = None

    @property
    def usable(self) -> int:
        """How many GPUs workers can have: those present that the environment does not hide."""
        return self.present if self.visible is None else min(self.visible, self.present)


def look_at_machine(
    environment: Mapping[str, str], card_names: Callable[[], list[str]] | None = None, gpus: Path = _GPUS_IN_PROC
) -> Machine:
    """The facts that `resolve` decides by. `card_names` lists the GPUs; it is asked only when a driver is loaded."""
    in_proc = len(list(gpus.iterdir())) if gpus.is_dir() else 0
    names = (card_names or nvidia_smi_names)() if in_proc else []
    present = len(names) or in_proc
    return Machine(visible_devices(environment, present), present, names[0] if names else None)


def visible_devices(environment: Mapping[str, str], present: int) -> int | None:
    """How many devices the environment names: CUDA_VISIBLE_DEVICES wins over NVIDIA_VISIBLE_DEVICES.

    CUDA counts the entries up to the first that is empty or negative. `all` asks the driver (`void` too, as the
    original does); without a driver the number stays unknown. `none` hides every device.
    """
    cuda = environment.get("CUDA_VISIBLE_DEVICES")
    if cuda is not None:
        return _entries(cuda)
    nvidia = environment.get("NVIDIA_VISIBLE_DEVICES")
    if not nvidia:
        return None
    if nvidia in ("all", "void"):
        return present or None
    return 0 if nvidia == "none" else _entries(nvidia)


def _entries(text: str) -> int:
    count = 0
    for entry in text.split(","):
        name = entry.strip()
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        count += 1
    return count


def nvidia_smi_names() -> list[str]:
    """Names of all GPUs, in the driver's order; empty when nvidia-smi is not there or does not answer."""
    return [line.strip() for line in _nvidia_smi("--query-gpu=name", "--format=csv,noheader").splitlines() if line]


def runtime_report(machine: Machine) -> str:
    """What `--env` logs: versions and hardware, nothing of the environment's values."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def package(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} is not installed"

    packages = ", ".join(package(name) for name in ("millrace", "millrace-router", "torch", "huggingface_hub"))
    lines = [
        "Runtime environment:",
        f"Packages: {packages}",
        f"Python: {platform.python_version()} on {platform.platform()}",
        f"CPU: {_cpu_name()}, {_cores()} cores usable, {_memory()}",
        f"GPUs: {machine.present} present, {machine.usable} usable",
    ]
    if machine.present:
        lines.append(_nvidia_smi())
    return "\n".join(lines)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _nvidia_smi(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout


def _cpu_name() -> str:
    return _field_of(Path("/proc/cpuinfo"), "model name") or "unknown"


def _memory() -> str:
    available = _field_of(Path("/proc/meminfo"), "MemAvailable")
    return f"{available} of memory available" if available else "memory unknown"


def _field_of(path: Path, name: str) -> str | None:
    """The first `name : value` line of a file in /proc."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    pairs = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)
