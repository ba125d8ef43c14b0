"""GPT-J: neighbouring dimensions rotate together, one norm for both blocks of a layer."""

from __future__ import annotations

from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, head_dim, plain_mlp
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm, Residual, Rotary

NAMES = Names(
    embed="transformer.wte",
    layer="transformer.h.{}",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    out="attn.out_proj",
    up="mlp.fc_in",
    down="mlp.fc_out",
    ignored=("*.attn.bias", "*.attn.masked_bias", "*.attn.embed_positions"),
)

DEFAULTS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "n_inner": None,
    "rotary_dim": 64,
    "tie_word_embeddings": False,
}


def gpt_j(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = LayerNorm(eps=c.layer_norm_epsilon)
    rotated = head_dim(c) if c.rotary_dim is None else c.size("rotary_dim")
    if rotated % 2 or rotated > head_dim(c):
        raise ConfigError(f"config.json: `rotary_dim` {rotated} of {head_dim(c)} dimensions is no number of pairs")
    position = Rotary(theta=10000.0, dim=rotated, interleaved=True)
    layer = Layer(
        attention=attention(c, position),
        mlp=plain_mlp(c.n_inner or 4 * c.size("hidden_size"), c.activation_function),
        norm=norm,
        residual=Residual.PARALLEL_SHARED_NORM,
    )
    return decoder(c, layer, norm, head_bias=True), NAMES


GPT_J = Architecture(gpt_j, DEFAULTS)
