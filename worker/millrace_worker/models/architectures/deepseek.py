"""DeepSeek V2 and V3: latent attention; the first layers dense, the others mixtures of experts."""

from __future__ import annotations

import math
from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import LatentNames, Names
from millrace_worker.models.spec import Decoder, LatentAttention, Layer, RmsNorm

LATENT = LatentNames(
    query_down="self_attn.q_a_proj",
    query_norm="self_attn.q_a_layernorm",
    query="self_attn.q_b_proj",
    down="self_attn.kv_a_proj_with_mqa",
    norm="self_attn.kv_a_layernorm",
    up="self_attn.kv_b_proj",
)

COMMON = llama.DEFAULTS | {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_interleave": True,
}
V2_DEFAULTS = COMMON | {"first_k_dense_replace": 0}
V3_DEFAULTS = COMMON | {"max_position_embeddings": 4096, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1}

# Of the norms of both latents, whatever `rms_norm_eps` is.
LATENT_EPS = 1e-6


def latent_attention(c: ModelConfig) -> LatentAttention:
    plain, rotated = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim")
    return LatentAttention(
        num_heads=c.size("num_attention_heads"),
        query_latent_dim=None if c.q_lora_rank is None else c.size("q_lora_rank"),
        latent_dim=c.size("kv_lora_rank"),
        plain_dim=plain,
        rotated_dim=rotated,
        value_dim=c.size("v_head_dim"),
        position=replace(rotary(c), dim=rotated, interleaved=c.rope_interleave),
        scale=(plain + rotated) ** -0.5 * stretch(c) ** 2,
        norm=RmsNorm(eps=LATENT_EPS),
        bias=c.attention_bias,
    )


def stretch(c: ModelConfig) -> float:
    """What queries and keys are each multiplied with beside yarn's own factor (Peng et al. 2023, section 3.4)."""
    rope = c.rope_parameters()
    if rope["rope_type"] == "default" or not rope.get("mscale_all_dim"):
        return 1.0
    return 1.0 + 0.1 * rope["mscale_all_dim"] * math.log(max(1.0, rope["factor"]))


def names(c: ModelConfig) -> Names:
    """Layers beyond the last one predict further tokens: they are not served."""
    latent = LATENT if c.q_lora_rank is not None else replace(LATENT, query="self_attn.q_proj")
    first, more = c.size("num_hidden_layers"), c.get("num_nextn_predict_layers", 0)
    ignored = tuple(f"model.layers.{layer}.*" for layer in range(first, first + more))
    return replace(llama.NAMES, qkv="", latent=latent, ignored=llama.NAMES.ignored + ignored)


def deepseek(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.first_k_dense_replace < c.size("num_hidden_layers"):
        raise ConfigError("config.json: `first_k_dense_replace`: layers that mix experts are not implemented")
    norm = RmsNorm(eps=c.rms_norm_eps)
    layer = Layer(attention=latent_attention(c), mlp=gated_mlp(c, c.hidden_act, bias=c.mlp_bias), norm=norm)
    return decoder(c, layer, norm), names(c)


DEEPSEEK_V2 = Architecture(deepseek, V2_DEFAULTS)
DEEPSEEK_V3 = Architecture(deepseek, V3_DEFAULTS)
