"""Runs a recurrent model: one step over the ragged batch, the states of its rows, logits where they are wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.kv_pool import lazy_zeros
from millrace_worker.layers.norm import Norm
from millrace_worker.models.decoder import Ends
from millrace_worker.models.recurrent.mixers import Mixer
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.recurrent.step import RecurrentStep, RowStates
from millrace_worker.step import Batch

MISSING = {
    "prefix_caching": "a recurrent state is that of a whole prefix: no part of it can be shared",
    "page_copies": "without pages, the sequences of one request compute its prompt each for themselves",
    "tensor_parallelism": "recurrent layers are not split over ranks",
}


@dataclass(frozen=True)
class RecurrentLayer:
    norm: Norm
    mixer: Mixer


class RecurrentLM:
    """A loaded model, as `model.RowModel` describes it."""

    implementation = "native"
    page_size = 0
    encodes_prompts = False
    missing = MISSING

    def __init__(self, spec: Recurrent, ends: Ends, layers: list[RecurrentLayer], device: torch.device) -> None:
        self.spec = spec
        self.vocab_size, self.max_positions = spec.frame.vocab, spec.frame.max_positions
        self._ends, self._layers, self._device = ends, layers, device
        self._rows: list[RowStates] = []

    def plan(self, batch: Batch) -> RecurrentStep:
        return RecurrentStep.of(batch, self._device)

    @torch.inference_mode()
    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: RecurrentStep) -> Tensor:
        """The residual stream [T, D] after the last layer, for `logits`; the rows' states go on by their tokens."""
        x, delta = self._ends.first(token_ids_T, positions_T), None
        if self.spec.float32_stream:
            x = x.float()
        for layer, rows in zip(self._layers, self._rows, strict=True):
            if step.begun is not None:
                rows.begin(step.begun)
            delta = layer.mixer(layer.norm.add(x, delta).to(self._ends.dtype), rows, step)
        return x if delta is None else x.add_(delta)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        """float32 [R, V]."""
        return self._ends.head(self._ends.final_norm(hidden_RD).to(self._ends.dtype))

    def allocate_rows(self, max_rows: int, max_sequence_tokens: int) -> None:  # noqa: ARG002 - a state does not grow
        self._rows = []
        self._rows = [
            RowStates(
                tails=lazy_zeros((max_rows, *layer.mixer.tail_shape), torch.float32, self._device),
                states=lazy_zeros((max_rows, *layer.mixer.state_shape), torch.float32, self._device),
            )
            for layer in self._layers
        ]

    def forget_rows(self, rows: Iterable[int]) -> None:
        """Nothing grows: a row's state stays where it is until another sequence begins anew."""

    def row_bytes(self, max_sequence_tokens: int) -> int:  # noqa: ARG002
        shapes = [shape for each in self._layers for shape in (each.mixer.tail_shape, each.mixer.state_shape)]
        return sum(4 * torch.Size(shape).numel() for shape in shapes)

    def implementations(self) -> dict[str, str]:
        """Which implementation each operator got, for the log."""
        layer = self._layers[0]
        return {
            "recurrence": "torch",
            "linear": ", ".join(sorted({linear.name for linear in layer.mixer.linears})),
            "norm": layer.norm.name,
            "embed": self._ends.embed.name,
            "logits": self._ends.head.name,
        }
