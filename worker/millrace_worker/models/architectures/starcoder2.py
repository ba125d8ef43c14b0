"""StarCoder 2: rotary embeddings, grouped K and V, layer norms and biases."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm

NAMES = replace(llama.NAMES, up="mlp.c_fc", down="mlp.c_proj")

DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "norm_epsilon": 1e-5,
    "max_position_embeddings": 4096,
    "num_key_value_heads": 2,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_bias": True,
}


def starcoder2(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = LayerNorm(eps=c.norm_epsilon)
    heads = attention(c, rotary(c), window=c.sliding_window, qkv_bias=c.use_bias, out_bias=c.use_bias)
    mlp = plain_mlp(c.size("intermediate_size"), c.hidden_act, bias=c.use_bias)
    return decoder(c, Layer(attention=heads, mlp=mlp, norm=norm), norm), NAMES


STARCODER2 = Architecture(starcoder2, DEFAULTS)
