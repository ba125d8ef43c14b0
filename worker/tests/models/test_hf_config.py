"""Configurations of both styles, defaults, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from millrace_worker.models.architectures import ARCHITECTURES, describe, describe_encoder_decoder, family_of
from millrace_worker.models.architectures.vocabulary import Architecture
from millrace_worker.models.build.attention import alibi_slopes
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.scaling import LinearScaling
from millrace_worker.models.spec import Attention, Decoder, Rotary
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
    spec = describe(ModelConfig(SIZES | {"architectures": [architecture]} | values))[0]
    assert isinstance(spec, Decoder)
    return spec


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
# What else has to be small beside SIZES.
SMALL = {
    "GPTJForCausalLM": {"rotary_dim": 8},
    "DeepseekV2ForCausalLM": {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "DeepseekV3ForCausalLM": {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16},  # together what `expand` makes of the hidden size
}
# What a message calls a field that goes by another name in the family.
SIZE_OF = {"n_inner": "the width of the MLP", "intermediate_size": "the width of the MLP", "ffn_dim": "the width of"}


@pytest.mark.parametrize("architecture", FLAT)
def test_absent_fields_mean_what_transformers_takes_them_for(architecture: str) -> None:
    """A file that states sizes only gives the spec of the whole configuration that transformers makes of it."""
    sizes = sizes_of(MODEL_TYPES[architecture]) | SMALL.get(architecture, {})
    kind: Any = CONFIG_MAPPING[MODEL_TYPES[architecture]]
    whole = kind(**sizes).to_dict()
    named = {"architectures": [architecture]}
    assert describe(ModelConfig(sizes | named)) == describe(ModelConfig(whole | named))


@pytest.mark.parametrize("architecture", FLAT)
def test_a_value_of_another_kind_is_told_by_its_name(architecture: str) -> None:
    """Each size and each number or switch of the family, as a string: refused by name, or it plays no part."""
    named, family = {"architectures": [architecture]}, ARCHITECTURES[architecture]
    sizes = sizes_of(MODEL_TYPES[architecture]) | SMALL.get(architecture, {})
    expected = describe(ModelConfig(sizes | named))
    numbers = [name for name, value in family.defaults.items() if isinstance(value, int | float)]
    for name in {*sizes, *numbers}:
        try:
            found = describe(ModelConfig(sizes | named | {name: "7"}))
        except ConfigError as error:
            assert f"`{name}`" in str(error) or SIZE_OF.get(name, "?") in str(error), (name, str(error))  # noqa: PT017
        else:
            assert found == expected, name
        for value in (None, 0, -1, 2.5, [], {}):
            with suppress(ConfigError):
                describe(ModelConfig(sizes | named | {name: value}))


def test_values_of_another_kind_in_an_encoder_and_a_decoder() -> None:
    sizes = {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 2}
    whole = sizes | {"architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0}
    describe_encoder_decoder(ModelConfig(whole))
    for name in {*sizes, "layer_norm_epsilon", "n_positions", "num_decoder_layers"}:
        with pytest.raises(ConfigError):
            describe_encoder_decoder(ModelConfig(whole | {name: "7"}))
        for value in (None, 0, -1, 2.5, [], {}):
            with suppress(ConfigError):
                describe_encoder_decoder(ModelConfig(whole | {name: value}))


# As the files of published checkpoints say it, most of them from before transformers 5.
OLD = {
    "gemma": {"hidden_act": "gelu", "hidden_activation": None, "head_dim": 16},
    "gemma3_text": {
        "rope_theta": 1e6,
        "rope_local_base_freq": 5e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 9,
        "sliding_window_pattern": 2,
        "num_hidden_layers": 5,
    },
    "phi": {"partial_rotary_factor": 0.25, "rope_theta": 5e4},
    "cohere2": {"sliding_window_pattern": 2, "sliding_window": 9, "rope_theta": 5e4, "num_hidden_layers": 5},
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "rope_theta": 5e4},
    "olmo3": {
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        "num_hidden_layers": 5,
        "max_position_embeddings": 512,
    },
    "exaone4": {"sliding_window_pattern": 3, "sliding_window": 9, "rope_theta": 5e4, "num_hidden_layers": 5},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 9},
    "nemotron": {"partial_rotary_factor": 0.25, "rope_theta": 5e4},
    "glm4": {"partial_rotary_factor": 0.25, "head_dim": 32},
    "mpt": {"attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 6.0, "qk_ln": False}, "max_seq_len": 4096},
    "opt": {"do_layer_norm_before": False, "word_embed_proj_dim": 32, "ffn_dim": 80},
    "ministral3": {"rope_parameters": None, "head_dim": 16},
}


@pytest.mark.parametrize("model_type", OLD)
def test_older_files_mean_what_transformers_reads_in_them(model_type: str) -> None:
    values = sizes_of(model_type) | OLD[model_type]
    whole = CONFIG_MAPPING[model_type](**copy.deepcopy(values)).to_dict()
    named = {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]}
    found = describe(ModelConfig(values | named))
    assert found == describe(ModelConfig(whole | named))
    assert found != describe(ModelConfig(sizes_of(model_type) | named)) or model_type in ("gemma", "ministral3")


def test_falcon_of_before_is_read() -> None:
    """Its class was RW; a model type of its own said that KV heads are grouped."""
    sizes = {"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bias": False, "n_head_kv": 2}
    for old, new in (("RefinedWeb", True), ("RefinedWebModel", False)):
        same = sizes | {"new_decoder_architecture": new, "architectures": ["FalconForCausalLM"]}
        rw = sizes | {"model_type": old, "architectures": ["RWForCausalLM"]}
        assert describe(ModelConfig(rw)) == describe(ModelConfig(same))


def test_letters_say_which_layers_are_global() -> None:
    """EXAONE 4: the pattern repeats, and the last layer is global in any case."""
    values = {"sliding_window": 9, "sliding_window_pattern": "LLG", "num_hidden_layers": 5}
    heads = [layer.attention for layer in spec_of("Exaone4ForCausalLM", **values).layers]
    windows = [each.window for each in heads if isinstance(each, Attention)]
    assert windows == [9, 9, None, 9, None]


def test_a_model_type_names_the_architecture_where_the_class_is_not_said() -> None:
    """Every one that transformers knows finds the spec of its class, or none."""
    found = {kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if family_of(ModelConfig({"model_type": kind}))}
    wrong = {kind for kind in found if architecture_of(kind) is not family_of(ModelConfig({"model_type": kind}))}
    assert wrong <= {"gemma3", "llama4"}  # the class of text and images, whose text has the same spec
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
        ({"architectures": ["NobodysForCausalLM"]}, "NobodysForCausalLM is not supported; supported are .*Falc.*Qwen3"),
        ({"architectures": []}, "`architectures` must name one class"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, r"quantized weights \(gptq with `bits` 3"),
        ({"hidden_size": 65}, "`hidden_size` 65 does not divide by `num_attention_heads` 4"),
        ({"rms_norm_eps": "1e-6"}, "`rms_norm_eps` must be a number above 0, not '1e-6'"),
        ({"rms_norm_eps": None}, "`rms_norm_eps` must be a number above 0, not None"),
        ({"rms_norm_eps": -1e-6}, "`rms_norm_eps` must be a number above 0"),
        ({"tie_word_embeddings": "false"}, "`tie_word_embeddings` must be true or false, not 'false'"),
        ({"architectures": ["GraniteForCausalLM"], "logits_scaling": 0}, "`logits_scaling` must be a number above 0"),
        (
            {"architectures": ["GraniteForCausalLM"], "residual_multiplier": "2"},
            "`residual_multiplier` must be a number",
        ),
        ({"architectures": ["GPTJForCausalLM"], "rotary_dim": 15}, "`rotary_dim` 15 of 16 dimensions is no number of"),
        ({"architectures": ["GPTJForCausalLM"], "rotary_dim": 18}, "`rotary_dim` 18 of 16 dimensions is no number of"),
        (
            {"architectures": ["GPTJForCausalLM"], "rotary_dim": 8, "n_inner": "96"},
            "the width of the MLP. must be .* not '96'",
        ),
        ({"vocab_size": "99"}, "`vocab_size` must be a positive whole number, not '99'"),
        ({"num_key_value_heads": -2}, "`num_key_value_heads` must be a positive whole number, not -2"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 0},
            "`sliding_window` must be .* null for none, not 0",
        ),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 2.5}, "`sliding_window` must be .*, not 2.5"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 0}, "positive whole number, not 0"),
        ({"rope_scaling": "linear"}, "`rope_scaling` must be an object, not 'linear'"),
        ({"rope_parameters": [1]}, "`rope_parameters` must be an object"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}}, "`beta_fast` must be a positive number"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide by 3 KV heads"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}, "for each of 2 layers"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["chunked_attention"] * 2},
            "chunked_attention are not",
        ),
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not implemented"),
        ({"architectures": ["PhiForCausalLM"], "model_type": "phi-msft"}, "phi-msft .* newer revision"),
        ({"architectures": ["BloomForCausalLM"], "apply_residual_connection_post_layernorm": True}, "post_layernorm"),
        ({"architectures": ["MPTForCausalLM"], "attn_config": {"alibi": False}}, r"attn_config\.alibi` False"),
        ({"architectures": ["MPTForCausalLM"], "no_bias": False}, "`no_bias` false"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, "`no_rope_layers` has 1 of 2 layers"),
        ({"architectures": ["Exaone4ForCausalLM"], "sliding_window_pattern": "LX"}, "letters L and G, not 'LX'"),
        ({"architectures": ["GPT2LMHeadCustomModel"], "attention_head_type": "multihead"}, "head_type. 'multihead'"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "`text_config` is missing"),
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


def test_deepseeks_yarn_may_leave_its_factor_to_the_lengths() -> None:
    sizes = SIZES | {"first_k_dense_replace": 2, "num_experts_per_tok": 8, "max_position_embeddings": 160}
    yarn = {"type": "yarn", "original_max_position_embeddings": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
    stated, left = (
        describe(ModelConfig(sizes | {"architectures": ["DeepseekV3ForCausalLM"], "rope_scaling": yarn | factor}))
        for factor in ({"factor": 4.0}, {})
    )
    assert stated == left


@pytest.mark.parametrize(("model_type", "family"), [("gemma3_text", "Gemma3"), ("llama4_text", "Llama4")])
def test_a_file_that_names_no_class_goes_by_its_kind(model_type: str, family: str) -> None:
    """The kind of the language model alone, of a family whose models also see."""
    nameless = ModelConfig({"model_type": model_type})
    assert family_of(nameless) is ARCHITECTURES[f"{family}ForCausalLM"]
    seeing = ModelConfig({"model_type": model_type.removesuffix("_text")})
    assert family_of(seeing) is ARCHITECTURES[f"{family}ForConditionalGeneration"]
