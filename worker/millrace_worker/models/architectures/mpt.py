"""MPT: ALiBi, no biases anywhere."""

from __future__ import annotations

from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp
from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Alibi, Decoder, Layer, LayerNorm

NAMES = Names(
    embed="transformer.wte",
    layer="transformer.blocks.{}",
    final_norm="transformer.norm_f",
    attn_norm="norm_1",
    mlp_norm="norm_2",
    qkv="attn.Wqkv",
    out="attn.out_proj",
    up="ffn.up_proj",
    down="ffn.down_proj",
    optional_prefix="transformer.",
)

DEFAULTS = {
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "expansion_ratio": 4,
    "no_bias": True,
    "logit_scale": None,
    "attn_config": {},
}

# What no published checkpoint has, and what the one value is that is implemented.
ATTENTION_ONLY = {"attn_type": "multihead_attention", "alibi": True, "prefix_lm": False, "qk_ln": False}


def _refusal(c: ModelConfig, what: str) -> ConfigError:
    """More is computed by the code that MPT's first checkpoints bring; transformers' own class silently does not."""
    kind = UnsupportedError if c.architecture == "MPTForCausalLM" else ConfigError
    return kind(f"config.json: {what}")


def mpt(c: ModelConfig) -> tuple[Decoder, Names]:
    heads, norm = c.attn_config or {}, LayerNorm(eps=c.layer_norm_epsilon, bias=False)
    for name, only in ATTENTION_ONLY.items():
        if heads.get(name, only) != only:
            raise _refusal(c, f"`attn_config.{name}` {heads[name]!r} is not implemented ({only!r} is)")
    if not c.no_bias or c.logit_scale is not None:
        raise _refusal(c, "MPT with `no_bias` false or a `logit_scale` is not implemented")
    position = Alibi(max_bias=float(heads.get("alibi_bias_max", 8)))
    clipped = attention(c, position, scale=heads.get("softmax_scale"), clip=heads.get("clip_qkv") or None)
    mlp = plain_mlp(c.expansion_ratio * c.size("hidden_size"), "gelu", bias=False)
    return decoder(c, Layer(attention=clipped, mlp=mlp, norm=norm), norm), NAMES


MPT = Architecture(mpt, DEFAULTS)
