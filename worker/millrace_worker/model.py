"""What the engine asks of a loaded model, whoever computes it: the decoder by spec, or a library's own code.

T tokens of a step, D hidden width, R positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from millrace_worker.step import Batch

# What a model may have or lack, beyond generating text; `Model.missing` says why where one lacks it.
FEATURES = {
    "batched_forward": "the sequences of a step are computed together",
    "chunked_prefill": "a prompt is computed in parts, beside sequences that generate",
    "prefix_caching": "a prompt that begins like an earlier one starts where the two part",
    "page_copies": "best_of and n compute their prompt once",
    "prompt_logprobs": "logprobs of the prompt (decoder_input_details, echo)",
    "top_tokens": "the likeliest tokens beside the chosen one",
    "watermark": "watermarking",
    "grammar": "text held to a grammar (JSON schema, regular expression, Lark)",
    "seeds": "the same seed gives the same text, whatever runs beside it and after restarts",
    "tensor_parallelism": "several shards",
}


class Model(Protocol):
    """Not thread-safe: one step at a time. Every rank calls the same methods in the same order.

    What later steps need of a sequence lies in pages (`PagedModel`) or in its row (`RowModel`): `page_size` says which.
    """

    @property
    def implementation(self) -> str:
        """Who computes: "native" is the decoder by spec."""
        ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Optional features that this model lacks, each with the reason; it has all others."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def page_size(self) -> int:
        """Tokens per KV page; 0: sequences hold no pages, their state lies in their row."""
        ...

    def plan(self, batch: Batch) -> Any:
        """What `hidden` needs to know of the step."""
        ...

    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: Any) -> Tensor:
        """[T, D], for `logits`; what later steps need of every token is stored. `step` is `plan` of the same tokens.

        `token_ids_T` and `positions_T` are int64 on the device.
        """
        ...

    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        """float32 [R, V] on rank 0, None on the others: every rank has to call it."""
        ...

    def implementations(self) -> dict[str, str]:
        """Which implementation each operator got, for the log."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What the length of a sequence changes, for whoever keeps its pages. Zero: nothing."""

    attention_window: int = 0  # no layer reads further back than so many positions, the query's own included
    position_switch: int = 0  # more known tokens than this: computed otherwise, at all positions


class PagedModel(Model, Protocol):
    """Keys and values lie in pages, which the batch's page table names."""

    @property
    def reach(self) -> Reach: ...

    def allocate_kv(self, num_pages: int) -> None:
        """Makes the KV pool; an earlier one is dropped first."""
        ...

    def page_bytes(self) -> int:
        """KV bytes of one page on this rank, all layers."""
        ...

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        """Copies whole pages (integer ids on the device), K and V of all layers."""
        ...


class RowModel(Model, Protocol):
    """A sequence's state lies in its row: no pages, nothing to share or to copy.

    `hidden` advances the state of each row of the batch by its tokens. An entry that starts at position 0 begins anew,
    whatever its row held; any other starts where the row's last one ended.
    """

    @property
    def encodes_prompts(self) -> bool:
        """Whether the step that brings the last token of a prompt computes all of it, however long."""
        ...

    def allocate_rows(self, max_rows: int, max_sequence_tokens: int) -> None:
        """Makes the state of all rows; an earlier one is dropped first."""
        ...

    def forget_rows(self, rows: Iterable[int]) -> None:
        """Their sequences have ended: what grew with them may go."""
        ...

    def row_bytes(self, max_sequence_tokens: int) -> int:
        """Bytes of one row's state on this rank, when its sequence may have so many tokens."""
        ...


def paged(model: Model) -> PagedModel:
    """`model` as one whose sequences hold pages, which it must be."""
    if not model.page_size:
        raise TypeError("the sequences of this model hold no pages")
    return cast(PagedModel, model)


def in_rows(model: Model) -> RowModel:
    """`model` as one whose sequences hold no pages, which it must be."""
    if model.page_size:
        raise TypeError("the sequences of this model hold pages")
    return cast(RowModel, model)
