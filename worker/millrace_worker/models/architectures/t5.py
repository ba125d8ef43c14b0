"""T5 in its forms: the first (ReLU, one table for both ends), 1.1 and FLAN (a gate, a head of its own), mT5."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures.vocabulary import activation
from millrace_worker.models.encoder_decoder.spec import EncoderDecoder, EncoderDecoderNames, RelativeBias
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Attention, Decoder, Mlp, RmsNorm

ENCODER = Names(
    embed="shared",
    layer="encoder.block.{}",
    final_norm="encoder.final_layer_norm",
    attn_norm="layer.0.layer_norm",
    qkv=("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    out="layer.0.SelfAttention.o",
    mlp_norm="layer.1.layer_norm",
    up="layer.1.DenseReluDense.wi",
    down="layer.1.DenseReluDense.wo",
)
# Both stacks name the one table for themselves; early checkpoints have a bias in the decoder that nothing reads.
IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
DECODER = replace(
    ENCODER,
    layer="decoder.block.{}",
    final_norm="decoder.final_layer_norm",
    mlp_norm="layer.2.layer_norm",
    up="layer.2.DenseReluDense.wi",
    down="layer.2.DenseReluDense.wo",
    ignored=IGNORED,
)

DEFAULTS = {
    "feed_forward_proj": "relu",
    "num_decoder_layers": None,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": True,
    "decoder_start_token_id": None,
    "pad_token_id": 0,
}
MT5_DEFAULTS = DEFAULTS | {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}

# Relative positions have no end; what a sequence may cost has one.
MAX_POSITIONS = 4096


def t5(config: ModelConfig) -> tuple[EncoderDecoder, EncoderDecoderNames]:
    """Raises ConfigError."""
    return _describe(config.with_defaults(DEFAULTS))


def mt5(config: ModelConfig) -> tuple[EncoderDecoder, EncoderDecoderNames]:
    """Raises ConfigError."""
    return _describe(config.with_defaults(MT5_DEFAULTS))


def _describe(c: ModelConfig) -> tuple[EncoderDecoder, EncoderDecoderNames]:
    """`tied` is for the checkpoint to say: configurations do not, or are wrong."""
    hidden, norm = c.size("d_model"), RmsNorm(eps=c.layer_norm_epsilon)
    start = c.pad_token_id if c.decoder_start_token_id is None else c.decoder_start_token_id
    vocab = c.size("vocab_size")
    if not isinstance(start, int) or not 0 <= start < vocab:
        raise ConfigError(f"config.json: `decoder_start_token_id` must be an id below {vocab}, not {start!r}")
    scaled = c.get("scale_decoder_outputs", c.tie_word_embeddings is not False)
    ends = Decoder(
        hidden=hidden,
        vocab=vocab,
        max_positions=max(MAX_POSITIONS, c.get("n_positions") or 0),
        layers=(),
        final_norm=norm,
        tied=True,
        logit_scale=hidden**-0.5 if scaled else 1.0,
    )
    heads = c.size("num_heads")
    spec = EncoderDecoder(
        ends=ends,
        attention=Attention(num_heads=heads, num_kv_heads=heads, head_dim=c.size("d_kv"), position=None, scale=1.0),
        bias=_relative_bias(c),
        mlp=_mlp(c),
        norm=norm,
        num_encoder_layers=c.size("num_layers"),
        num_decoder_layers=c.size("num_decoder_layers" if c.num_decoder_layers else "num_layers"),
        start_token=start,
    )
    return spec, _names(gated=spec.mlp.gated)


def _relative_bias(c: ModelConfig) -> RelativeBias:
    buckets, max_distance = c.size("relative_attention_num_buckets"), c.size("relative_attention_max_distance")
    if buckets % 4 or max_distance <= buckets // 2:
        raise ConfigError(
            f"config.json: `relative_attention_num_buckets` {buckets} must be a multiple of 4, and "
            f"`relative_attention_max_distance` {max_distance} more than half of it"
        )
    return RelativeBias(buckets=buckets, max_distance=max_distance)


def _mlp(c: ModelConfig) -> Mlp:
    """`relu`, `gated-gelu` (which means the approximation by tanh), `gated-silu`, …"""
    *gated, name = str(c.feed_forward_proj).split("-")
    if gated not in ([], ["gated"]):
        raise ConfigError(
            f"config.json: `feed_forward_proj` {c.feed_forward_proj!r} is not an activation, gated or not"
        )
    name = "gelu_new" if gated and name == "gelu" else name
    return Mlp(size=c.size("d_ff"), activation=activation(name), gated=bool(gated))


def _names(*, gated: bool) -> EncoderDecoderNames:
    stacks = [ENCODER, DECODER]
    if gated:
        stacks = [replace(names, up=(f"{names.up}_0", f"{names.up}_1")) for names in stacks]
    return EncoderDecoderNames(
        encoder=stacks[0],
        decoder=stacks[1],
        encoder_norm=ENCODER.final_norm,
        encoder_bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        decoder_bias="decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        cross_norm="layer.1.layer_norm",
        cross_q="layer.1.EncDecAttention.q",
        cross_kv=("layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
        cross_out="layer.1.EncDecAttention.o",
    )
