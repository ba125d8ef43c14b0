"""Nemotron and Arcee: a plain MLP of squared rectifiers; Nemotron's norms store `weight - 1`."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm, RmsNorm

NAMES = replace(llama.NAMES, up="mlp.up_proj")

ARCEE_DEFAULTS = llama.DEFAULTS | {"hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
NEMOTRON_DEFAULTS = ARCEE_DEFAULTS | {"norm_eps": 1e-5, "partial_rotary_factor": 0.5}


def nemotron(c: ModelConfig) -> tuple[Decoder, Names]:
    return _decoder(c, LayerNorm(eps=c.norm_eps, unit_offset=True)), NAMES


def arcee(c: ModelConfig) -> tuple[Decoder, Names]:
    return _decoder(c, RmsNorm(eps=c.rms_norm_eps)), NAMES


def _decoder(c: ModelConfig, norm: LayerNorm | RmsNorm) -> Decoder:
    heads = attention(c, rotary(c), qkv_bias=c.attention_bias, out_bias=c.attention_bias)
    mlp = plain_mlp(c.size("intermediate_size"), c.hidden_act, bias=c.mlp_bias)
    return decoder(c, Layer(attention=heads, mlp=mlp, norm=norm), norm)


NEMOTRON = Architecture(nemotron, NEMOTRON_DEFAULTS)
ARCEE = Architecture(arcee, ARCEE_DEFAULTS)
