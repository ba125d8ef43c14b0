"""Encoder and decoder behind the rows: the client's prompt is what is encoded, its answer what the decoder writes.

Position p of a sequence with P tokens of prompt is, from P - 1 on, position p - P + 1 of the decoder: the prompt's last
position gives the first token of the answer, as in any model, but what the decoder reads there is its start token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.layers.norm import Norm
from millrace_worker.models.decoder import Ends
from millrace_worker.models.encoder_decoder.bias import DistanceBias, decoder_bias, encoder_bias
from millrace_worker.models.encoder_decoder.layers import DecoderLayer, EncoderLayer
from millrace_worker.models.encoder_decoder.spec import EncoderDecoder
from millrace_worker.models.encoder_decoder.state import RowStates, StateShape, Step, plan_step
from millrace_worker.step import Batch

MISSING = {
    "prompt_logprobs": "an encoder reads the prompt: nothing predicts its tokens",
    "prefix_caching": "an encoder reads the prompt as a whole: no part of it can be computed once for several",
    "chunked_prefill": "an encoder reads the prompt as a whole, in the step that brings its last token",
    "page_copies": "sequences of one prompt each encode it, since their state lies in rows",
}


@dataclass(frozen=True)
class Stacks:
    encoder: list[EncoderLayer]
    encoder_norm: Norm
    decoder: list[DecoderLayer]
    biases: tuple[Tensor, Tensor]  # [buckets, N] of the encoder, of the decoder


class EncoderDecoderModel:
    """A loaded model on this rank, as `model.RowModel` describes it."""

    implementation = "native"
    page_size = 0
    encodes_prompts = True

    def __init__(self, spec: EncoderDecoder, ends: Ends, stacks: Stacks, shape: StateShape) -> None:
        self.spec, self.missing = spec, MISSING
        self.vocab_size, self.max_positions = spec.ends.vocab, spec.ends.max_positions
        self._ends, self._stacks, self._shape = ends, stacks, shape
        self._states: RowStates | None = None
        self._biases: tuple[DistanceBias, DistanceBias] | None = None

    def allocate_rows(self, max_rows: int, max_sequence_tokens: int) -> None:
        self._states = None
        self._states = RowStates(self._shape, max_rows, max_sequence_tokens)
        # Kernels on CPUs take a float32 bias at any dtype.
        encoder, decoder = (bias.float() if bias.device.type == "cpu" else bias for bias in self._stacks.biases)
        spec = self.spec.bias
        self._biases = (
            encoder_bias(encoder, spec, max_sequence_tokens),
            decoder_bias(decoder, spec, max_sequence_tokens),
        )

    def forget_rows(self, rows: Iterable[int]) -> None:
        """Nothing grows: a row's slots stay where they are."""

    def row_bytes(self, max_sequence_tokens: int) -> int:
        return self._shape.row_bytes(max_sequence_tokens)

    def plan(self, batch: Batch) -> Step:
        return plan_step(batch, self._shape.device)

    @torch.inference_mode()
    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: Step) -> Tensor:  # noqa: ARG002
        """[T, D] float32: the decoder's last layer where it computed; zeros at tokens of a prompt that is only read."""
        states, biases = self._states, self._biases
        if states is None or biases is None:
            raise RuntimeError("allocate_rows must come before the first step")
        for reading in step.readings:
            stop = reading.start + reading.tokens.stop - reading.tokens.start
            states.prompts[reading.row, reading.start : stop] = token_ids_T[reading.tokens]
            if reading.ends:
                self._encode(reading.row, states.prompts[reading.row, :stop], states, biases[0])
        if not step.writings:
            return torch.zeros(len(token_ids_T), self.spec.ends.hidden, device=token_ids_T.device)
        ids = token_ids_T.index_select(0, step.places).masked_fill_(step.starts, self.spec.start_token)
        x, delta = self._ends.embed(ids).float(), None
        for layer in self._stacks.decoder:
            delta = layer(x, delta, step.writings, states, biases[1])
        x = x if delta is None else x.add_(delta)
        if len(x) == len(token_ids_T):
            return x
        return x.new_zeros(len(token_ids_T), x.shape[1]).index_copy_(0, step.places, x)

    def _encode(self, row: int, ids_P: Tensor, states: RowStates, bias: DistanceBias) -> None:
        """One prompt at a time: what it takes does not depend on how many end in a step."""
        x, delta = self._ends.embed(ids_P).float(), None
        for layer in self._stacks.encoder:
            delta = layer(x, delta, bias)
        encoded = self._stacks.encoder_norm.add(x, delta)
        for layer in self._stacks.decoder:
            layer.read(encoded, row, states)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        """float32 [R, V] on rank 0, None on the others: every rank has to call it."""
        return self._ends.last(hidden_RD)

    def implementations(self) -> dict[str, str]:
        layers = (*self._stacks.encoder, *self._stacks.decoder)
        return {
            "attention": "torch (rows)",
            "linear": ", ".join(sorted({linear.name for layer in layers for linear in layer.linears})),
            "norm": self._ends.final_norm.name,
            "embed": self._ends.embed.name,
            "logits": self._ends.head.name,
        }
