"""Where the checkpoints of one family keep each tensor. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


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
    mlp_norm: str = ""
    attn_post_norm: str = ""
    mlp_post_norm: str = ""
    q_norm: str = ""  # with {} for the head's number, where heads have weights of their own in tensors of their own
    k_norm: str = ""
    embed_norm: str = ""
    embed_in: str = ""  # the projections of `Decoder.embed_width`
    embed_out: str = ""
    head: str = "lm_head"
    positions: str = ""
    qkv_grouped: bool = False  # the rows of one `qkv` tensor are [q … q k v] per KV head, not [all q, all k, all v]
    transposed: bool = False  # linears are stored as (in, out)
    optional_prefix: str = ""  # checkpoints of the bare model leave it out
    ignored: tuple[str, ...] = ()  # patterns (fnmatch) of tensors that hold no weights
