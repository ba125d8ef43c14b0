"""Fresh random inputs for every run; the seed is printed when a test fails."""

import random

import pytest
import torch
from millrace_worker import cpu_kernels


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def seed():
    value = random.SystemRandom().getrandbits(32)
    print(f"seed {value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(params=["", cpu_kernels.OFF], ids=["native", "torch"])
def kernels(request):
    return cpu_kernels.find(request.param, 1)
