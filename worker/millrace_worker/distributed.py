"""The tensor-parallel group: what ranks exchange within a forward pass, and nothing else.

Every rank calls the same collectives in the same order; that follows from every rank running the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that waits longer than this in one collective has lost its peers.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Group:
    """`size` ranks, of which this is `rank`. With one rank every operation returns its argument."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def gather_columns(self, x_RV: Tensor) -> Tensor | None:
        """The ranks' columns side by side, on rank 0; None on the others. Every rank has the same number of columns."""
        if self.size == 1:
            return x_RV
        x_RV = x_RV.contiguous()
        parts = [torch.empty_like(x_RV) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x_RV, parts, dst=0)
        return torch.cat(parts, dim=-1) if parts is not None else None

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, in place, on every rank."""
        if self.size > 1:
            dist.broadcast(x, src=0)
        return x

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def connect(rank: int, size: int, device: torch.device) -> Group:
    """Joins the group that MASTER_ADDR and MASTER_PORT of the environment name: gloo on CPUs, NCCL on GPUs.

    Blocks until all ranks are there. With `size` 1 there is nothing to join.
    """
    if size == 1:
        return Group()
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        init_method="env://",
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    return Group(rank, size)
