"""gpt-oss: attention sinks, every second layer windowed, experts with biases and their own gate, often in mxfp4."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures.llama import DEFAULTS, NAMES
from millrace_worker.models.architectures.moe import mixture
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, layer_windows, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import MoeNames, Mxfp4Experts, Names, StackedExperts
from millrace_worker.models.spec import ClampedGlu, Decoder, Layer, Mlp, RmsNorm, TopK

MXFP4 = "mxfp4"
UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
PLAIN_EXPERTS = StackedExperts(
    up=UP, down=DOWN, up_bias=f"{UP}_bias", down_bias=f"{DOWN}_bias", transposed=True, interleaved=True
)


def gpt_oss(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, bias = RmsNorm(eps=c.rms_norm_eps), {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    glu = ClampedGlu(alpha=float(c.swiglu_alpha), limit=float(c.swiglu_limit))
    expert = Mlp(size=c.size("intermediate_size"), activation=glu, bias=True)
    moe = mixture(c, expert.size, expert=expert, routing=TopK(normalize=1.0), router_bias=True)
    implied = ["full_attention" if index % 2 else "sliding_attention" for index in range(c.size("num_hidden_layers"))]
    layers = [
        Layer(attention=attention(c, rotary(c), window=window, sinks=True, **bias), mlp=moe, norm=norm)
        for window in layer_windows(c, c.sliding_window, implied)
    ]
    experts = PLAIN_EXPERTS
    if (c.get("quantization_config") or {}).get("quant_method") == MXFP4:
        experts = Mxfp4Experts(up=UP, down=DOWN)
    names = replace(NAMES, sinks="self_attn.sinks", moe=MoeNames(router="mlp.router", experts=experts))
    return decoder(c, layers, norm), names


GPT_OSS = Architecture(
    gpt_oss,
    DEFAULTS
    | {
        "head_dim": 64,
        "attention_bias": True,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "sliding_window": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
    quantized=(MXFP4,),
)
