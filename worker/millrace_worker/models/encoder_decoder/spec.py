"""What a model of an encoder and a decoder is, and where its checkpoint keeps the tensors. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from millrace_worker.models.names import Names
from millrace_worker.models.spec import Attention, Decoder, Mlp, RmsNorm


@dataclass(frozen=True, kw_only=True)
class RelativeBias:
    """A learned bias on the scores for each head and class of distances: short distances have a class each, longer ones
    share them, all from `max_distance` on the last (Raffel et al. 2020, section 2.1)."""

    buckets: int
    max_distance: int


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """Both stacks are of the same layers: self-attention, in the decoder attention to what was encoded, an MLP."""

    ends: Decoder  # without layers: the vocabulary on both sides
    attention: Attention  # of all three kinds
    bias: RelativeBias
    mlp: Mlp
    norm: RmsNorm
    num_encoder_layers: int
    num_decoder_layers: int
    start_token: int  # what the decoder reads first


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderNames:
    """`encoder` and `decoder` name the layers of their stacks, `decoder` the ends too."""

    encoder: Names
    decoder: Names
    encoder_norm: str
    encoder_bias: str
    decoder_bias: str
    cross_norm: str  # relative to a layer of the decoder
    cross_q: str
    cross_kv: tuple[str, str]
    cross_out: str
