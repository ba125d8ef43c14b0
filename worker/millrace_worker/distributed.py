"""The tensor-parallel group: what ranks exchange within a forward pass, and nothing else.

Every rank calls the same collectives in the same order; that follows from every rank running the same plan. Nobody
who talks to a rank's sockets is asked who they are, so these are bound to the address where the ranks meet (this
machine's own, unless the operator says otherwise) and never to all addresses, as torch would.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from millrace_worker.abandoned import Watch
from millrace_worker.leaving import leave

# A rank that waits longer than this in one collective has lost its peers. A dead one is noticed at once, and the router
# notices one that stands still while it serves; this is for what neither sees, and longer than any load.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


class RankGoneError(RuntimeError):
    """Another rank has ended, or does not answer."""


class Outcome(IntEnum):
    """How a step went on a rank; the worst of all ranks' counts."""

    DONE = 0
    LEFT = 1  # it waited for one that had failed
    FAILED = 2
    SHORT = 3  # for want of memory


@dataclass(frozen=True)
class Group:
    """`size` ranks, of which this is `rank`. With one rank every operation returns its argument."""

    rank: int = 0
    size: int = 1

    @property
    def stays_in_step(self) -> bool:
        """Whether a step may fail on one rank without the others waiting for it for ever."""
        return self.size == 1

    def begin_stream(self) -> None:
        """Somebody waits for the steps that come, until `abandon`."""

    def begin_step(self) -> None:
        """What is exchanged from now on belongs to a step, which every rank ends."""

    def end_step(self, outcome: Outcome) -> tuple[Outcome, int]:
        """How the step went for all ranks, and on which rank it went so. Waits for them where they stay in step."""
        return outcome, self.rank

    def catch_up(self) -> None:
        """Ends as failed what other ranks have begun and this one has not been told of; it is between two streams."""

    def abandon(self) -> None:
        """Nobody waits for what is computed, or would be before the next `begin_stream`: other ranks may not take part
        in it any more. Any thread may say so."""

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


@dataclass(frozen=True, kw_only=True)
class SocketGroup(Group):
    """`Group` of several ranks over what torch offers: gloo's sockets, or NCCL."""

    watch: Watch = field(compare=False, repr=False)

    def begin_stream(self) -> None:
        self.watch.begin_stream()

    def begin_step(self) -> None:
        self.watch.begin_step()

    def end_step(self, outcome: Outcome) -> tuple[Outcome, int]:
        self.watch.end_step()
        return super().end_step(outcome)

    def abandon(self) -> None:
        self.watch.abandon()

    def all_reduce(self, x: Tensor) -> Tensor:
        with self.watch.collective():
            return super().all_reduce(x)

    def gather_columns(self, x_RV: Tensor) -> Tensor | None:
        with self.watch.collective():
            return super().gather_columns(x_RV)

    def broadcast(self, x: Tensor) -> Tensor:
        with self.watch.collective():
            return super().broadcast(x)


def connect(rank: int, size: int, device: torch.device) -> Group:
    """Joins the group that MASTER_ADDR and MASTER_PORT of the environment name: gloo on CPUs, NCCL on GPUs.

    Blocks until all ranks are there. With `size` 1 there is nothing to join.
    """
    if size == 1:
        return Group()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    stay_on_this_machine(host, os.environ)
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        store=meeting_place(host, port, rank, size),
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    watch = Watch(lambda why: leave(1, why), queues=device.type == "cuda")
    return SocketGroup(rank=rank, size=size, watch=watch)


def meeting_place(host: str, port: int, rank: int, size: int) -> dist.Store:  # pyright: ignore[reportPrivateImportUsage]
    """Where the ranks tell each other their addresses: rank 0 listens on `host` and on no other address. Left to
    itself torch's store listens on all, and takes keys from anyone. Raises OSError when rank 0 cannot listen there."""
    listening = _listen(host, port) if rank == 0 else None
    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage] - documented under this name
        host, port, size, is_master=rank == 0, timeout=COLLECTIVE_TIMEOUT, master_listen_fd=listening
    )


def _listen(host: str, port: int) -> int:
    """A descriptor that listens there; the store closes it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
        return bound.detach()


def stay_on_this_machine(host: str, environment: MutableMapping[str, str]) -> None:
    """Ranks that meet on the loopback interface also exchange there: gloo and NCCL would take whichever interface this
    machine's name or its routes point to. What the operator has set stays."""
    if not _is_loopback(host):
        return
    interface = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if interface is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
        environment.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
