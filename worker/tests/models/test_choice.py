"""Who computes a model: what the spec of a family does not compute goes to transformers' code, with the reason; what is
wrong, or what transformers would silently leave out, is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.models.choice import NATIVE, TRANSFORMERS, ModelAsk, choose, load
from millrace_worker.models.hf_config import ConfigError, UnsupportedError

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}


def folder(tmp_path: Path, architecture: str, values: dict[str, Any]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"architectures": [architecture]} | values))
    return tmp_path


@pytest.mark.parametrize(
    ("architecture", "values", "reason"),
    [
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope type 'spiral'"),
        ("LlamaForCausalLM", {"hidden_act": "quick_gelu"}, "the activation 'quick_gelu'"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "hqq"}}, r"quantized weights \(hqq\)"),
        ("Qwen3ForCausalLM", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention are not impl"),
        ("Gemma3ForCausalLM", {"layer_types": ["full_attention", "chunked_attention"]}, "for Gemma3ForCausalLM"),
        ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}, "post_layernorm"),
        ("GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention"),
        ("GPTBigCodeForCausalLM", {"add_cross_attention": True}, "add_cross_attention"),
        ("GPT2LMHeadCustomModel", {"attention_head_type": "multihead"}, "`attention_head_type` 'multihead'"),
        ("PhiForCausalLM", {"model_type": "phi-msft"}, "phi-msft"),
        ("MPTForCausalLM", {"no_bias": False}, "`no_bias`"),
        ("MPTForCausalLM", {"attn_config": {"qk_ln": True}}, "qk_ln"),
        ("MambaForCausalLM", {"hidden_act": "mish"}, "the activation 'mish'"),
    ],
)
def test_what_a_spec_does_not_compute_is_for_transformers(
    architecture: str, values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = folder(tmp_path, architecture, values)
    choice = choose(config, "auto")
    assert choice.implementation == TRANSFORMERS
    assert re.search(reason, choice.reason)
    with pytest.raises(UnsupportedError, match=f"{reason}.*; --model-impl transformers may run it"):
        choose(config, NATIVE)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("LlamaForCausalLM", {"hidden_size": 65}, "`hidden_size` 65"),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "`factor`"),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, "for each of 2 layers"),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        # What transformers' class ignores: the text would be another model's.
        ("MptForCausalLM", {"attn_config": {"prefix_lm": True}}, "prefix_lm"),
        ("MptForCausalLM", {"logit_scale": 0.5}, "logit_scale"),
        ("DeepseekV2ForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("DeepseekV3ForCausalLM", {"topk_method": "greedy"}, "topk_method"),
    ],
)
def test_what_is_wrong_is_refused_by_either(
    architecture: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = folder(tmp_path, architecture, values)
    for model_impl in ("auto", NATIVE):
        with pytest.raises(ConfigError, match=message) as refused:
            choose(config, model_impl)
        assert not isinstance(refused.value, UnsupportedError)


def test_an_encoder_and_a_decoder_have_nobody_else(tmp_path: Path) -> None:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 2, "decoder_start_token_id": 0}
    config = folder(tmp_path, "T5ForConditionalGeneration", sizes | {"feed_forward_proj": "gated-softplus"})
    with pytest.raises(UnsupportedError, match="the activation 'softplus'"):
        choose(config, "auto")


def test_a_refusal_by_transformers_says_why_it_was_asked(tmp_path: Path) -> None:
    config = folder(tmp_path, "MPTForCausalLM", {"model_type": "mpt", "attn_config": {"qk_ln": True}})
    ask = ModelAsk(folder=config, dtype=torch.float32, device=torch.device("cpu"), group=Group())
    with pytest.raises(
        ConfigError, match=r"`attn_config\.qk_ln` True is not implemented.*by transformers .*no code of"
    ):
        load(ask, choose(config, "auto"))
