"""One checkpoint of the parity harness, as a line of a table says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

VOCAB = 99  # odd: the last rank's part of the vocabulary is padded
POSITIONS = 160
# Under the names that most configurations have or alias; a case's own values win.
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GATED: dict[str, Any] = {"intermediate_size": 96, "num_key_value_heads": 2}
# Wide enough that linears are packed and not left plain.
WIDE: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Case:
    """`over` is laid over COMMON and makes the configuration of transformers' `model_type`."""

    model_type: str
    over: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    # Which attention of transformers is right for it: soft caps exist only in the eager one, ALiBi of some only in the
    # other (the eager one adds it twice).
    reference: Literal["sdpa", "eager"] = "sdpa"
    # How the family stores a tensor that transformers 5 saves under another name: (pattern, replacement) of `re.sub`.
    stored: tuple[tuple[str, str], ...] = ()
    native: bool = True  # there is a spec
    backend: bool = True  # the Transformers backend runs it
    ranks: tuple[int, ...] = (1, 2)  # how many ranks it has to run on
    thorough: bool = False  # on every instruction set, in every dtype and company
    inert: tuple[str, ...] = ()  # patterns of stored tensors that can change no logit
    unmissed: tuple[str, ...] = ()  # parts of the spec whose absence can change no logit
    note: str = ""  # for the table of docs/models.md
