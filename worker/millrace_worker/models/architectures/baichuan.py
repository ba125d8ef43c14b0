"""Baichuan: Llama with one tensor for q, k and v. The 7B rotate; the 13B have ALiBi, and no maximum of positions in
their configuration. Baichuan 2 brings each row of its output head to length 1, and is known by its vocabulary."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Alibi, Decoder, Layer, RmsNorm

NAMES = replace(llama.NAMES, qkv="self_attn.W_pack")
BAICHUAN2_VOCABULARY = 125696

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "model_max_length": 4096,
}


def baichuan(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, rotates = RmsNorm(eps=c.rms_norm_eps), "max_position_embeddings" in c
    layer = Layer(
        attention=attention(c, rotary(c) if rotates else Alibi()),
        mlp=gated_mlp(c, c.hidden_act),
        norm=norm,
    )
    normed = c.size("vocab_size") == BAICHUAN2_VOCABULARY
    return decoder(c, layer, norm, head_normed=normed), NAMES


BAICHUAN = Architecture(baichuan, DEFAULTS)
