"""The native kernels of this CPU: the module `millrace_kernels`, on threads of its own or of torch's OpenMP.

The module is a distribution of its own. Where it is not installed, everything runs on torch.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker import logs

if TYPE_CHECKING:
    from millrace_kernels import Machine

VARIABLE = "MILLRACE_CPU_KERNELS"
OFF = "off"
# What `millrace_kernels.INTERFACE` has to be: the two are installed together, but nothing forces anybody to.
INTERFACE = 7


class KernelsError(ValueError):
    """The kernels that were asked for cannot be had; the message names the variable and what there is."""


def find(choice: str, threads: int) -> Machine | None:
    """The kernels for `threads` threads; None where they are off or not installed.

    `choice` is the value of MILLRACE_CPU_KERNELS: "" for the best instruction-set level of this CPU, "off", or the name
    of a level. Raises KernelsError when a level is asked for that there is not.
    """
    if choice == OFF:
        return None
    try:
        import millrace_kernels
    except ImportError as error:
        if choice:
            raise KernelsError(f"{VARIABLE} is {choice!r}, but the kernels cannot be loaded: {error}") from error
        logs.warning("no native CPU kernels: torch computes everything, several times slower", reason=str(error))
        return None
    found = getattr(millrace_kernels, "INTERFACE", 0)
    if found != INTERFACE:
        raise KernelsError(
            f"the installed millrace-kernels have interface {found}, this worker needs {INTERFACE}: install both "
            f"of one version (make setup), or set {VARIABLE}={OFF}"
        )
    parallel, thread_num = torch_openmp() if threads > 1 else (0, 0)
    try:
        return millrace_kernels.Machine(choice or None, threads, parallel, thread_num)
    except ValueError as error:
        raise KernelsError(f"{VARIABLE} is {choice!r}: {error}; {OFF!r} turns kernels off") from error


def torch_openmp() -> tuple[int, int]:
    """Addresses of GOMP_parallel and omp_get_thread_num in the OpenMP library that torch itself computes with.

    A symbol is looked up in torch's library and in what that one was linked to, so that another OpenMP in the process
    is not found. (0, 0), with a warning, where torch has none of libgomp's interface: kernels then run on one thread.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        torch_cpu = ctypes.CDLL(str(library))
        parallel, thread_num = torch_cpu.GOMP_parallel, torch_cpu.omp_get_thread_num
    except (OSError, AttributeError) as error:
        logs.warning("torch's OpenMP is not libgomp: native CPU kernels run on one thread", reason=str(error))
        return 0, 0
    return _address(parallel), _address(thread_num)


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
