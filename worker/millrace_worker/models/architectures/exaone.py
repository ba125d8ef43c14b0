"""EXAONE: 3 and 3.5 are Llama under other names; 4 has norms behind the blocks, and layers without positions."""

from __future__ import annotations

from millrace_worker.models.architectures import llama, olmo
from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    attention,
    decoder,
    every_nth,
    gated_mlp,
    layer_windows,
    rotary,
)
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, HeadNorm, Layer, RmsNorm

NAMES = Names(
    embed="transformer.wte",
    layer="transformer.h.{}",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    out="attn.attention.out_proj",
    up=("mlp.c_fc_0", "mlp.c_fc_1"),
    down="mlp.c_proj",
    ignored=("*.rotary.inv_freq",),
)

DEFAULTS = {
    "activation_function": "silu",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}

EXAONE4_DEFAULTS = llama.DEFAULTS | {"rms_norm_eps": 1e-5, "sliding_window": 4096}


def exaone(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = RmsNorm(eps=c.layer_norm_epsilon)
    layer = Layer(attention=attention(c, rotary(c)), mlp=gated_mlp(c, c.activation_function), norm=norm)
    return decoder(c, layer, norm), NAMES


def exaone4(c: ModelConfig) -> tuple[Decoder, Names]:
    """Where some layers have windows, the others know no positions."""
    norm, mlp = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act)
    layers = []
    for window in layer_windows(c, c.sliding_window, _implied_types(c)):
        position = rotary(c) if window or c.sliding_window is None else None
        heads = attention(c, position, window=window, qk_norm=HeadNorm(norm=norm))
        layers.append(Layer(attention=heads, mlp=mlp, norm=norm, pre_norm=False, post_norm=True))
    return decoder(c, layers, norm), olmo.NAMES


def _implied_types(c: ModelConfig) -> list[str]:
    """Of the pattern: a number n (every n-th layer is global), or letters that repeat up to the last, global layer."""
    pattern, count = c.get("sliding_window_pattern", 4), c.size("num_hidden_layers")
    if c.sliding_window is None or not pattern:
        return ["full_attention"] * count
    if isinstance(pattern, int):
        return every_nth(pattern, c, "full_attention", "sliding_attention")
    if not isinstance(pattern, str) or set(pattern) - {"L", "G"}:
        raise ConfigError(f"config.json: `sliding_window_pattern` is a number, or letters L and G, not {pattern!r}")
    local = [pattern[index % len(pattern)] == "L" and index < count - 1 for index in range(count)]
    return ["sliding_attention" if each else "full_attention" for each in local]


EXAONE = Architecture(exaone, DEFAULTS)
EXAONE4 = Architecture(exaone4, EXAONE4_DEFAULTS)
