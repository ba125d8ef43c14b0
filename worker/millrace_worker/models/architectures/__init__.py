"""The registry of architectures: a class name of transformers, and what turns its configuration into data."""

from __future__ import annotations

from millrace_worker.models.architectures import (
    dbrx,
    deepseek,
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    granite_moe,
    llama,
    moe,
    shared_moe,
)
from millrace_worker.models.architectures.vocabulary import Architecture
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder

ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": deepseek.DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": deepseek.DEEPSEEK_V3,
    "LlamaForCausalLM": llama.LLAMA,
    "MistralForCausalLM": llama.MISTRAL,
    "Qwen2ForCausalLM": llama.QWEN2,
    "Qwen3ForCausalLM": llama.QWEN3,
    "DbrxForCausalLM": dbrx.DBRX,
    "Ernie4_5_MoeForCausalLM": shared_moe.ERNIE_MOE,
    "Glm4MoeForCausalLM": shared_moe.GLM4_MOE,
    "GraniteMoeForCausalLM": granite_moe.GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": granite_moe.GRANITE_MOE,
    "MixtralForCausalLM": moe.MIXTRAL,
    "OlmoeForCausalLM": moe.OLMOE,
    "PhimoeForCausalLM": moe.PHIMOE,
    "Qwen2MoeForCausalLM": moe.QWEN2_MOE,
    "Qwen3MoeForCausalLM": moe.QWEN3_MOE,
    "Gemma2ForCausalLM": gemma.GEMMA2,
    "GPT2LMHeadModel": gpt2.GPT2,
    "GPTNeoXForCausalLM": gpt_neox.GPT_NEOX,
    "FalconForCausalLM": falcon.FALCON,
}


def describe(config: ModelConfig) -> tuple[Decoder, Names]:
    """The spec and the tensor names of a checkpoint. Raises ConfigError for what is not implemented, naming it."""
    architecture = ARCHITECTURES.get(config.architecture)
    if architecture is None:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise ConfigError(f"the architecture {config.architecture} is not supported; supported are {supported}")
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "of some kind") if isinstance(quantization, dict) else quantization
        raise ConfigError(f"config.json: quantized weights ({method}) are not implemented; use the unquantized model")
    return architecture.describe(config.with_defaults(architecture.defaults))
