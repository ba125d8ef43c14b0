"""Phi 1 and 2: one norm for both blocks, a part of each head rotates, biases everywhere; Phi 3 and 3.5: Llama with
fused projections. Persimmon: normed heads, blocks in sequence, the projections of GPT-NeoX."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    attention,
    decoder,
    gated_mlp,
    plain_mlp,
    rotary,
)
from millrace_worker.models.hf_config import ModelConfig, UnsupportedError
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, HeadNorm, Layer, LayerNorm, Residual, RmsNorm

NAMES = replace(
    llama.NAMES,
    final_norm="model.final_layernorm",
    mlp_norm="",
    q_norm="self_attn.q_layernorm",
    k_norm="self_attn.k_layernorm",
    out="self_attn.dense",
    up="mlp.fc1",
    down="mlp.fc2",
)
PERSIMMON_NAMES = replace(
    NAMES,
    mlp_norm="post_attention_layernorm",
    qkv="self_attn.query_key_value",
    qkv_grouped=True,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
)
PHI3_NAMES = replace(llama.NAMES, qkv="self_attn.qkv_proj", up="mlp.gate_up_proj")

DEFAULTS = {
    "hidden_act": "gelu_new",
    "intermediate_size": 8192,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}
PERSIMMON_DEFAULTS = DEFAULTS | {"hidden_act": "relu2", "intermediate_size": 16384, "qk_layernorm": True}
PHI3_DEFAULTS = llama.DEFAULTS | {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "sliding_window": None,
}


def phi(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.get("model_type") == "phi-msft":
        raise UnsupportedError(
            "config.json: the model type phi-msft keeps its weights in a form from before transformers had Phi; "
            "use a newer revision of the model, whose model type is phi"
        )
    norm = LayerNorm(eps=c.layer_norm_eps)
    qk_norm = HeadNorm(norm=norm) if c.qk_layernorm else None
    layer = Layer(
        attention=attention(c, rotary(c), qk_norm=qk_norm, qkv_bias=True, out_bias=True),
        mlp=plain_mlp(c.size("intermediate_size"), c.hidden_act),
        norm=norm,
        residual=Residual.PARALLEL_SHARED_NORM,
    )
    return decoder(c, layer, norm, head_bias=True), NAMES


def persimmon(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, mlp = LayerNorm(eps=c.layer_norm_eps), plain_mlp(c.size("intermediate_size"), c.hidden_act)
    qk_norm = HeadNorm(norm=norm) if c.qk_layernorm else None
    heads = attention(c, rotary(c), qk_norm=qk_norm, qkv_bias=True, out_bias=True)
    return decoder(c, Layer(attention=heads, mlp=mlp, norm=norm), norm), PERSIMMON_NAMES


def phi3(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, heads = RmsNorm(eps=c.rms_norm_eps), attention(c, rotary(c), window=c.sliding_window)
    return decoder(c, Layer(attention=heads, mlp=gated_mlp(c, c.hidden_act), norm=norm), norm), PHI3_NAMES


PHI = Architecture(phi, DEFAULTS)
PERSIMMON = Architecture(persimmon, PERSIMMON_DEFAULTS | {"max_position_embeddings": 16384})
PHI3 = Architecture(phi3, PHI3_DEFAULTS)
