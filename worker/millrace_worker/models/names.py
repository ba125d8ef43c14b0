"""Where the checkpoints of one family keep each tensor. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SplitExperts:
    """Tensors of each expert's own; {} stands for its number."""

    up: tuple[str, str]  # (gate, up)
    down: str


@dataclass(frozen=True, kw_only=True)
class StackedExperts:
    """One tensor for all experts: [experts, out, in]. The names are complete."""

    up: str  # 2 * size rows: the gate's first
    down: str
    up_bias: str = ""
    down_bias: str = ""
    transposed: bool = False  # [experts, in, out]
    interleaved: bool = False  # rows of gate and up alternate


@dataclass(frozen=True, kw_only=True)
class FlatExperts:
    """One matrix [experts * size, hidden] for all experts; that of the way down is transposed. Complete names."""

    gate: str
    up: str
    down: str


@dataclass(frozen=True, kw_only=True)
class Mxfp4Experts:
    """As `StackedExperts`, interleaved, with biases; the matrices in 32-value blocks of 4-bit floats, each with a scale
    (OCP Microscaling Formats 1.0). `up` and `down` are completed by `_blocks`, `_scales` and `_bias`."""

    up: str
    down: str


@dataclass(frozen=True, kw_only=True)
class MoeNames:
    """The tensors of a mixture of experts, relative to the layer."""

    router: str
    experts: SplitExperts | StackedExperts | FlatExperts | Mxfp4Experts
    correction: str = ""  # complete; of [experts], or [1, experts] where it is a row
    correction_is_row: bool = False
    shared_up: str | tuple[str, str] = ""
    shared_down: str = ""
    shared_gate: str = ""


@dataclass(frozen=True, kw_only=True)
class LatentNames:
    """Tensors of latent attention, relative to `Names.layer`."""

    query: str
    down: str  # rows of the latent, then of the shared key
    norm: str
    up: str  # per head: rows of its key, then of its value
    query_down: str = ""
    query_norm: str = ""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Tensor names without their last part (`.weight`, `.bias`). Those inside a layer are relative to `layer`.

    An empty name means that the family has no such tensor.
    """

    embed: str
    layer: str  # with {} for the layer's number
    final_norm: str
    attn_norm: str
    qkv: str | tuple[str, ...]  # one tensor; (q, kv); or (q, k, v)
    out: str
    up: str | tuple[str, str]  # when gated: (gate, up), or one tensor with the gate's rows first
    down: str
    moe: MoeNames | None = None
    mlp_norm: str = ""
    attn_post_norm: str = ""
    mlp_post_norm: str = ""
    q_norm: str = ""  # with {} for the head's number, where heads have weights of their own in tensors of their own
    k_norm: str = ""
    sinks: str = ""  # complete
    embed_norm: str = ""
    embed_in: str = ""  # the projections of `Decoder.embed_width`
    embed_out: str = ""
    latent: LatentNames | None = None
    head: str = "lm_head"
    positions: str = ""
    qkv_grouped: bool = False  # the rows of one `qkv` tensor are [q … q k v] per KV head, not [all q, all k, all v]
    transposed: bool = False  # linears are stored as (in, out)
    optional_prefix: str = ""  # checkpoints of the bare model leave it out
    ignored: tuple[str, ...] = ()  # patterns (fnmatch) of tensors that hold no weights
