"""DBRX, whose configuration keeps the attention's and the experts' fields in tables of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from millrace_worker.models.architectures.vocabulary import Architecture, activation, attention, decoder, rotary
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import FlatExperts, MoeNames, Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm, Mlp, Moe, TopK

NAMES = Names(
    embed="transformer.wte",
    layer="transformer.blocks.{}",
    final_norm="transformer.norm_f",
    attn_norm="norm_attn_norm.norm_1",
    mlp_norm="norm_attn_norm.norm_2",
    qkv="norm_attn_norm.attn.Wqkv",
    out="norm_attn_norm.attn.out_proj",
    up="",
    down="",
    moe=MoeNames(
        router="ffn.router.layer",
        experts=FlatExperts(gate="ffn.experts.mlp.w1", up="ffn.experts.mlp.v1", down="ffn.experts.mlp.w2"),
    ),
)
ATTENTION: Mapping[str, Any] = {"clip_qkv": None, "kv_n_heads": 1, "rope_theta": None}
EXPERTS: Mapping[str, Any] = {
    "ffn_act_fn": None,
    "ffn_hidden_size": 3584,
    "moe_num_experts": 4,
    "moe_top_k": 1,
    "moe_normalize_expert_weights": 1.0,
}


def dbrx(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, own, position = LayerNorm(eps=1e-5, bias=False), _table(c, "attn_config", ATTENTION), rotary(c)
    if own.rope_theta is not None:
        position = replace(position, theta=float(own.rope_theta))
    heads = attention(c, position, num_kv_heads=own.size("kv_n_heads"), clip=own.clip_qkv)
    return decoder(c, Layer(attention=heads, mlp=_mixture(c), norm=norm), norm), NAMES


def _mixture(c: ModelConfig) -> Moe:
    own = _table(c, "ffn_config", EXPERTS)
    count, chosen, order = own.size("moe_num_experts"), own.size("moe_top_k"), own.moe_normalize_expert_weights
    if chosen > count:
        raise ConfigError(f"config.json: `moe_top_k` {chosen} is more than `moe_num_experts` {count}")
    name = (own.ffn_act_fn or {}).get("name", "silu")
    return Moe(
        num_experts=count,
        top_k=chosen,
        expert=Mlp(size=own.size("ffn_hidden_size"), activation=activation(name)),
        routing=TopK(normalize=None if order is None else float(order)),
    )


def _table(c: ModelConfig, name: str, defaults: Mapping[str, Any]) -> ModelConfig:
    values = c.get(name) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"config.json: `{name}` must be an object, not {values!r}")
    return ModelConfig(values, defaults)


DBRX = Architecture(dbrx, {"max_position_embeddings": 2048, "tie_word_embeddings": False, "rope_theta": 10000.0})
