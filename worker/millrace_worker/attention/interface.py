"""The interface between the decoder and whatever computes attention over pages.

`plan` runs once per step and holds all that depends on the step only; `attend` runs once per layer.
Letters: T tokens of the step, N query heads, K KV heads, H head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from millrace_worker.attention.rotary import Pairs, Rotation
from millrace_worker.step import Batch


@dataclass(frozen=True)
class ScoreRule:
    """What happens to raw scores: which keys count, and what is added. Layers with equal rules share a step's masks."""

    window: int | None = None  # a query sees this many positions, its own included
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    alibi: tuple[float, ...] | None = None  # per query head: minus this times the distance is added
    chunk: int | None = None  # a query sees only the chunk of this many positions that it is in


class HeadNorm(Protocol):
    """An RMSNorm over [T, N + K, H]: q heads, then k heads, each with a weight of its own."""

    weight: Tensor  # [N + K, H]
    eps: float

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The attention of one layer on this rank."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rule: ScoreRule
    qk_norm: HeadNorm | None = None
    pairs: Pairs = "halves"
    sinks: tuple[float, ...] | None = None  # per query head: a score that takes part in the softmax, and no value

    @property
    def width(self) -> int:
        """Values per token that the KV pool keeps for this layer."""
        return 2 * self.num_kv_heads * self.head_dim


class PagedLayer(Protocol):
    """What every kind of attention tells about a layer."""

    @property
    def layer(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def rule(self) -> ScoreRule: ...

    @property
    def width(self) -> int:
        """Values per token that the KV pool keeps for this layer."""
        ...


class AttentionBackend(Protocol):
    name: str
    page_size: int

    def allocate(self, num_pages: int) -> None:
        """Makes the KV pool anew, all zeros; the old one is dropped first."""
        ...

    def page_bytes(self) -> int:
        """KV bytes of one page over all layers of this rank."""
        ...

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        """Copies whole pages, K and V of all layers."""
        ...

    def plan(self, batch: Batch) -> Any:
        """What `attend` needs to know of the step. A page that a sequence begins in this step is cleared here."""
        ...

    def attend(self, heads: Heads, qkv_TC: Tensor, rotation: Rotation | None, step: Any) -> Tensor:
        """Norms and rotates q and k, writes k and v to their slots, attends.

        `qkv_TC` [T, (N + 2 K) * H] is q, k, v as the projection made them, and may be overwritten.
        Returns [T, N * H].
        """
        ...
