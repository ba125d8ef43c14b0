"""Configurations of both styles, defaults, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from millrace_worker.models.architectures import ARCHITECTURES, describe, family_of
from millrace_worker.models.architectures.vocabulary import Architecture
from millrace_worker.models.build.attention import alibi_slopes
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.scaling import LinearScaling
from millrace_worker.models.spec import Decoder, Rotary
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
# What transformers makes of a configuration, by the class that it was saved from.
MODEL_TYPES = {name: kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if isinstance(name, str)}


def spec_of(architecture: str, **values: Any) -> Decoder:
    return describe(ModelConfig(SIZES | {"architectures": [architecture]} | values))[0]


def rotary_of(architecture: str, **values: Any) -> Rotary:
    position = spec_of(architecture, **values).layers[0].attention.position
    assert isinstance(position, Rotary)
    return position


def sizes_of(model_type: str) -> dict[str, Any]:
    """SIZES under the names of the family, as far as it has them."""
    family = CONFIG_MAPPING[model_type]
    named = {family.attribute_map.get(key, key): value for key, value in SIZES.items()}
    known = family().to_dict()
    return {key: value for key, value in named.items() if key in known}


# Those whose configuration is flat, and known to transformers.
FLAT = [name for name in ARCHITECTURES if name in MODEL_TYPES and name.endswith(("ForCausalLM", "LMHeadModel"))]


@pytest.mark.parametrize("architecture", FLAT)
def test_absent_fields_mean_what_transformers_takes_them_for(architecture: str) -> None:
    """A file that states sizes only gives the spec of the whole configuration that transformers makes of it."""
    sizes = sizes_of(MODEL_TYPES[architecture])
    if architecture.startswith("Deepseek"):
        sizes |= {"first_k_dense_replace": 1, "num_experts_per_tok": 2}
    whole = CONFIG_MAPPING[MODEL_TYPES[architecture]](**sizes).to_dict()
    named = {"architectures": [architecture]}
    assert describe(ModelConfig(sizes | named)) == describe(ModelConfig(whole | named))


def test_a_model_type_names_the_architecture_where_the_class_is_not_said() -> None:
    """Every one that transformers knows finds the spec of its class, or none."""
    found = {kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if family_of(ModelConfig({"model_type": kind}))}
    wrong = {kind for kind in found if architecture_of(kind) is not family_of(ModelConfig({"model_type": kind}))}
    assert wrong <= {"gemma3"}  # the class of text and images, which has the same spec
    assert found >= {"llama", "gpt2", "gpt_neox", "gpt_bigcode", "gptj", "qwen2_moe", "deepseek_v3", "stablelm", "phi3"}
    assert family_of(ModelConfig({"architectures": ["BloomModel"]})) is ARCHITECTURES["BloomForCausalLM"]
    assert family_of(ModelConfig({"architectures": ["LlamaForSequenceClassification"]})) is None
    assert describe(ModelConfig(SIZES | {"model_type": "llama"})) == describe(
        ModelConfig(SIZES | {"architectures": ["LlamaForCausalLM"]})
    )


def architecture_of(kind: str) -> Architecture | None:
    return ARCHITECTURES.get(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def test_both_styles_of_rope_are_read() -> None:
    new = rotary_of("LlamaForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    old = rotary_of("LlamaForCausalLM", rope_theta=5e5, rope_scaling=None)
    assert new == old == Rotary(theta=5e5, dim=16)
    scaled = {"type": "linear", "factor": 2.0}
    assert rotary_of("LlamaForCausalLM", rope_scaling=scaled).scaling == LinearScaling(factor=2.0)
    assert rotary_of("GPTNeoXForCausalLM", rotary_pct=0.5, rotary_emb_base=77.0) == Rotary(theta=77.0, dim=8)


def test_both_names_of_the_dtype_are_read() -> None:
    assert ModelConfig({"torch_dtype": "bfloat16"}).dtype == ModelConfig({"dtype": "bfloat16"}).dtype == "bfloat16"
    assert ModelConfig({}).dtype is None


@pytest.mark.parametrize("num_heads", [4, 6, 12, 71])
def test_alibi_slopes_are_those_of_the_paper(num_heads: int) -> None:
    """Written down from its appendix: for n heads, a series with the ratio 2 ** (-8 / n); others interleave two."""
    slopes = alibi_slopes(num_heads, 8.0)
    below = 2 ** math.floor(math.log2(num_heads))
    ratio = 2.0 ** (-8.0 / below)
    assert slopes[0] == pytest.approx(ratio if below == num_heads else slopes[0])
    expected = {ratio**index for index in range(1, below + 1)}
    expected |= {2.0 ** (-8.0 / (2 * below) * (2 * index + 1)) for index in range(num_heads - below)}
    assert sorted(slopes) == pytest.approx(sorted(expected))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported are .*Falcon.*Qwen3"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported are Arcee.*Qwen3"),
        ({"architectures": []}, "`architectures` must name one class"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized weights \(gptq\)"),
        ({"hidden_size": 65}, "`hidden_size` 65 does not divide by `num_attention_heads` 4"),
        ({"vocab_size": "99"}, "`vocab_size` must be a positive whole number, not '99'"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide by 3 KV heads"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}, "for each of 2 layers"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["chunked_attention"] * 2}, "not .'chunked_attention'"),
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not implemented"),
        ({"architectures": ["GPT2LMHeadModel"], "add_cross_attention": True}, "add_cross_attention"),
        ({"architectures": ["Gemma2ForCausalLM"], "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(ModelConfig(SIZES | {"architectures": ["LlamaForCausalLM"]} | values))


def test_a_missing_size_is_named() -> None:
    values = {key: value for key, value in SIZES.items() if key != "hidden_size"}
    with pytest.raises(ConfigError, match="`hidden_size` is missing"):
        describe(ModelConfig(values | {"architectures": ["LlamaForCausalLM"]}))


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), ("{", "JSON"), ("[1]", "holds list")])
def test_a_broken_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{message}"):
        ModelConfig.read(tmp_path)


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    assert ModelConfig.read(tmp_path).hidden_size == 64
