"""The registry of architectures: a class name of transformers, and what turns its configuration into data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from millrace_worker.models.architectures import (
    baichuan,
    bloom,
    cohere,
    dbrx,
    deepseek,
    exaone,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_bigcode,
    gpt_j,
    gpt_neox,
    gpt_oss,
    granite,
    granite_moe,
    llama,
    llama4,
    mamba,
    moe,
    mpt,
    nemotron,
    olmo,
    opt,
    phi,
    relatives,
    shared_moe,
    stablelm,
    starcoder2,
    t5,
)
from millrace_worker.models.architectures.positions import stretched
from millrace_worker.models.architectures.vocabulary import Architecture
from millrace_worker.models.encoder_decoder.spec import EncoderDecoder, EncoderDecoderNames
from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.names import Names, SplitExperts
from millrace_worker.models.quantization import Fp8Blocks, PackedCodes
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.scaling import Stretch
from millrace_worker.models.spec import Decoder

ARCHITECTURES: dict[str, Architecture] = {
    "ArceeForCausalLM": nemotron.ARCEE,
    "BaichuanForCausalLM": baichuan.BAICHUAN,
    "BaiChuanForCausalLM": baichuan.BAICHUAN,
    "BloomForCausalLM": bloom.BLOOM,
    "Cohere2ForCausalLM": cohere.COHERE2,
    "CohereForCausalLM": cohere.COHERE,
    "DbrxForCausalLM": dbrx.DBRX,
    "DeepseekV2ForCausalLM": deepseek.DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": deepseek.DEEPSEEK_V3,
    "Ernie4_5_MoeForCausalLM": shared_moe.ERNIE_MOE,
    "Ernie4_5ForCausalLM": relatives.ERNIE,
    "Exaone4ForCausalLM": exaone.EXAONE4,
    "ExaoneForCausalLM": exaone.EXAONE,
    "FalconForCausalLM": falcon.FALCON,
    "FalconMambaForCausalLM": mamba.FALCON_MAMBA,
    "MambaForCausalLM": mamba.MAMBA,
    "Mamba2ForCausalLM": mamba.MAMBA2,
    "Gemma2ForCausalLM": gemma.GEMMA2,
    "Gemma3ForCausalLM": gemma.GEMMA3,
    "Gemma3ForConditionalGeneration": gemma.GEMMA3_VISION,
    "GemmaForCausalLM": gemma.GEMMA,
    "Glm4ForCausalLM": glm.GLM4,
    "Glm4MoeForCausalLM": shared_moe.GLM4_MOE,
    "GlmForCausalLM": glm.GLM,
    "GPT2LMHeadCustomModel": gpt_bigcode.SANTACODER,
    "GPT2LMHeadModel": gpt2.GPT2,
    "GPTBigCodeForCausalLM": gpt_bigcode.GPT_BIGCODE,
    "GPTJForCausalLM": gpt_j.GPT_J,
    "GPTNeoXForCausalLM": gpt_neox.GPT_NEOX,
    "GptOssForCausalLM": gpt_oss.GPT_OSS,
    "GraniteForCausalLM": granite.GRANITE,
    "GraniteMoeForCausalLM": granite_moe.GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": granite_moe.GRANITE_MOE,
    "HeliumForCausalLM": relatives.HELIUM,
    "HunYuanDenseV1ForCausalLM": relatives.HUNYUAN,
    "Llama4ForCausalLM": llama4.LLAMA4,
    "Llama4ForConditionalGeneration": llama4.LLAMA4_VISION,
    "LlamaForCausalLM": llama.LLAMA,
    "MiniCPMForCausalLM": granite.MINICPM,
    "Ministral3ForCausalLM": relatives.MINISTRAL3,
    "MinistralForCausalLM": relatives.MINISTRAL,
    "Mistral3ForConditionalGeneration": relatives.MISTRAL3_VISION,
    "MistralForCausalLM": llama.MISTRAL,
    "MixtralForCausalLM": moe.MIXTRAL,
    "MptForCausalLM": mpt.MPT,
    "MPTForCausalLM": mpt.MPT,
    "NemotronForCausalLM": nemotron.NEMOTRON,
    "Olmo2ForCausalLM": olmo.OLMO2,
    "Olmo3ForCausalLM": olmo.OLMO3,
    "OlmoeForCausalLM": moe.OLMOE,
    "OlmoForCausalLM": olmo.OLMO,
    "OPTForCausalLM": opt.OPT,
    "PersimmonForCausalLM": phi.PERSIMMON,
    "Phi3ForCausalLM": phi.PHI3,
    "PhiForCausalLM": phi.PHI,
    "PhimoeForCausalLM": moe.PHIMOE,
    "Qwen2ForCausalLM": llama.QWEN2,
    "Qwen2MoeForCausalLM": moe.QWEN2_MOE,
    "Qwen3ForCausalLM": llama.QWEN3,
    "Qwen3MoeForCausalLM": moe.QWEN3_MOE,
    "RWForCausalLM": falcon.REFINED_WEB,
    "SeedOssForCausalLM": relatives.SEED_OSS,
    "SmolLM3ForCausalLM": relatives.SMOLLM3,
    "StableLmForCausalLM": stablelm.STABLELM,
    "Starcoder2ForCausalLM": starcoder2.STARCODER2,
    "VaultGemmaForCausalLM": gemma.VAULT_GEMMA,
}
# Models of an encoder and a decoder.
ENCODER_DECODERS: dict[str, Callable[[ModelConfig], tuple[EncoderDecoder, EncoderDecoderNames]]] = {
    "T5ForConditionalGeneration": t5.t5,
    "MT5ForConditionalGeneration": t5.mt5,
}


def describe(config: ModelConfig, stretch: Stretch | None = None) -> tuple[Decoder | Recurrent, Names]:
    """The spec and the tensor names of a checkpoint; `stretch` takes the place of its own scaling of positions.

    Raises UnsupportedError for what is not implemented, naming it.
    """
    architecture = family_of(config)
    if architecture is None:
        supported = ", ".join(sorted((*ARCHITECTURES, *ENCODER_DECODERS)))
        raise UnsupportedError(f"the architecture {config.architecture} is not supported; supported are {supported}")
    _check_quantization(config, architecture.quantized)
    whole = config.with_defaults(architecture.defaults)
    with _blaming_the_file(config):
        spec, names = architecture.describe(whole)
    if codes := PackedCodes.stated(config):
        _check_packed(codes, spec, names)
    return (spec if stretch is None else stretched(whole, spec, stretch)), names


def describe_encoder_decoder(config: ModelConfig) -> tuple[EncoderDecoder, EncoderDecoderNames]:
    """As `describe`, for an architecture of `ENCODER_DECODERS`."""
    if config.get("quantization_config"):
        raise UnsupportedError("config.json: an encoder and a decoder with quantized weights are not implemented")
    with _blaming_the_file(config):
        return ENCODER_DECODERS[config.architecture](config)


@contextmanager
def _blaming_the_file(config: ModelConfig) -> Iterator[None]:
    """A value that arithmetic stumbles over is the file's fault too."""
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"config.json: a field that {config.architecture} reads has a value of another kind than it needs: {error}"
        ) from error


def _check_quantization(config: ModelConfig, readable: Collection[str]) -> None:
    quantization = config.get("quantization_config")
    if quantization and Fp8Blocks.stated(config) is None and PackedCodes.stated(config) is None:
        method = quantization.get("quant_method", "of some kind") if isinstance(quantization, dict) else quantization
        if method not in readable:
            raise UnsupportedError(f"config.json: there is no spec for quantized weights ({method})")


def _check_packed(codes: PackedCodes, spec: Decoder | Recurrent, names: Names) -> None:
    """Raises UnsupportedError for models whose linear layers are not read in this form."""
    if isinstance(spec, Recurrent):
        raise UnsupportedError(f"config.json: there is no spec for quantized weights ({codes.method}) of such layers")
    if names.moe is not None and not isinstance(names.moe.experts, SplitExperts):
        raise UnsupportedError(
            f"config.json: there is no spec for quantized weights ({codes.method}) of experts that are one tensor"
        )


def family_of(config: ModelConfig) -> Architecture | None:
    """By the name of its class, or by another name of the same family: a `model_type` (gpt_neox; gemma3_text where
    gemma3 sees, too), a model without its head (GPTNeoXModel). None when there is no spec."""
    known = {_family(name) + "text": each for name, each in ARCHITECTURES.items() if name.endswith("ForCausalLM")}
    known |= {_family(name): each for name, each in ARCHITECTURES.items()}
    return ARCHITECTURES.get(config.architecture) or known.get(_family(config.architecture))


def _family(name: str) -> str:
    for ending in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model"):
        name = name.removesuffix(ending)
    return name.replace("_", "").lower()
