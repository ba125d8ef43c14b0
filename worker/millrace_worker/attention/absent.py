"""The attention of a model that has none."""

# ruff: noqa: ARG002 - nothing is done with any argument

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from millrace_worker.attention.interface import Heads
from millrace_worker.attention.rotary import Rotation
from millrace_worker.step import Batch


class NoAttention:
    """Stands where a backend is chosen for all layers with attention, and there are none."""

    name, page_size = "none", 0

    def allocate(self, num_pages: int) -> None:
        _refuse()

    def page_bytes(self) -> int:
        return 0

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        _refuse()

    def plan(self, batch: Batch) -> Any:
        _refuse()

    def attend(self, heads: Heads, qkv_TC: Tensor, rotation: Rotation | None, step: Any) -> Tensor:
        _refuse()


def _refuse() -> NoReturn:
    raise RuntimeError("this model has no layer with attention")
