"""Every kernel is tested at every instruction-set level of this CPU, by one thread and by two."""

from __future__ import annotations

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker import cpu_kernels

from worker.tests import ports


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=[f"{level}, {threads}" for level in Machine.levels() for threads in (1, 2)])
def machine(request: pytest.FixtureRequest) -> Machine:
    level, threads = request.param.split(", ")
    found = cpu_kernels.find(level, int(threads))
    assert found is not None
    assert (found.level, found.threads) == (level, int(threads))
    return found


@pytest.fixture
def free_port() -> int:
    return ports.free_port()
