"""Every kind of rotary scaling equals transformers far beyond the original context, and matters there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.attention.rotary import split
from millrace_worker.distributed import Group
from millrace_worker.models.architectures import describe
from millrace_worker.models.decoder import DecoderStep
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.load import load_model
from millrace_worker.models.rope import rotary_table
from millrace_worker.models.scaling import DynamicScaling, LinearScaling, LongScaling, Stretch, YarnScaling
from millrace_worker.models.spec import Decoder, Rotary
from millrace_worker.step import Batch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

CPU = torch.device("cpu")
FAR, LONGEST, DIM = 32_768, 65_536, 32
ORIGINAL = 4096
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": DIM,
    "initializer_range": 0.2,
}
SHORT, LONG = [1.0 + index / 10 for index in range(DIM // 2)], [1.0 + index for index in range(DIM // 2)]
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 16.0},
    "dynamic": {"factor": 16.0},
    "llama3": {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "llama3, nothing between": {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    "yarn": {"factor": 16.0},
    "yarn, all parameters": {
        "factor": 16.0,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "yarn, attention factor": {"factor": 16.0, "attention_factor": 1.21},
    "longrope": {"short_factor": SHORT, "long_factor": LONG},
    "longrope, attention factor": {"short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.3},
}
SCALED = [name for name in KINDS if name != "default"]


def values(name: str) -> dict[str, Any]:
    """A configuration of transformers 5. What linear and dynamic scaling stretch is the stated length itself."""
    kind = name.split(",", maxsplit=1)[0]
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0} | KINDS[name]
    if kind in ("llama3", "yarn", "longrope"):
        rope["original_max_position_embeddings"] = ORIGINAL
    stated = ORIGINAL if kind in ("linear", "dynamic") else LONGEST
    return SIZES | {"max_position_embeddings": stated, "rope_parameters": rope}


def decoder_of(config: dict[str, Any], stretch: Stretch | None = None) -> Decoder:
    spec, _ = describe(ModelConfig(config), stretch)
    assert isinstance(spec, Decoder)
    return spec


def rotary_of(values: dict[str, Any], architecture: str = "LlamaForCausalLM") -> Rotary:
    position = decoder_of(SIZES | values | {"architectures": [architecture]}).layers[0].attention.position
    assert isinstance(position, Rotary)
    return position


def one_row(start: int, count: int) -> Batch:
    """Pages are all the same one: what they hold does not matter."""
    table = np.zeros((1, LONGEST // 16), dtype=np.int32)
    starts, counts = np.array([start]), np.array([count])
    return Batch(
        rows=np.array([0]), starts=starts, counts=counts, page_table=torch.from_numpy(table), page_table_host=table
    )


def ours(name: str, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, DIM] cosines and sines of a sequence that ends with the last position."""
    table = rotary_table(rotary_of(values(name)), LONGEST, torch.float32, CPU)
    first, last = int(positions[0]), int(positions[-1])
    cos, sin = split(table.plan(one_row(first, last + 1 - first)).rows(positions))
    half = DIM // 2
    assert torch.equal(sin[:, 0, :half], -sin[:, 0, half:])
    return cos[:, 0], sin[:, 0, half:].repeat(1, 2)


def theirs(name: str, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic scaling is asked token by token, as when text is generated."""
    embedding = LlamaRotaryEmbedding(LlamaConfig(**values(name)))
    parts = positions.split(1) if name == "dynamic" else [positions]
    found = [embedding(torch.zeros(1), part[None]) for part in parts]
    return torch.cat([cos[0] for cos, _ in found]), torch.cat([sin[0] for _, sin in found])


@pytest.mark.parametrize("start", [0, ORIGINAL - 20, FAR])
@pytest.mark.parametrize("name", KINDS)
def test_rotations_are_those_of_transformers(name: str, start: int) -> None:
    positions = torch.arange(start, start + 40)
    for found, expected in zip(ours(name, positions), theirs(name, positions), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", SCALED)
def test_without_its_scaling_a_rotation_is_another(name: str) -> None:
    positions = torch.arange(FAR, FAR + 40)
    plain, scaled = ours("default", positions), ours(name, positions)
    assert (plain[0] - scaled[0]).abs().max() > 0.5
    assert (plain[1] - scaled[1]).abs().max() > 0.5


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF], ids=["native", "torch"])
@pytest.mark.parametrize("name", KINDS)
def test_logits_far_beyond_the_original_context_are_those_of_transformers(
    name: str, kernels: str, tmp_path: Path
) -> None:
    """A sequence whose first token stands at position 32,768: the keys before it are nobody's."""
    torch.manual_seed(len(name))
    reference = LlamaForCausalLM(LlamaConfig(**values(name))).eval()
    reference.save_pretrained(tmp_path)
    tokens, positions = torch.randint(99, (24,)), torch.arange(FAR, FAR + 24)
    expected = transformers_logits(reference, tokens, positions, one_by_one=name == "dynamic")
    model = load_model(tmp_path, dtype=torch.float32, device=CPU, group=Group(), kernels=cpu_kernels.find(kernels, 1))
    model.allocate_kv(LONGEST // 16)
    batch = one_row(0, 24)
    batch.page_table_host[:] = np.arange(LONGEST // 16)
    step = DecoderStep(model.plan(batch).attention, model.plan(one_row(FAR, 24)).rotaries)
    found = model.forward(tokens, positions, step, None)
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def transformers_logits(
    reference: LlamaForCausalLM, tokens: torch.Tensor, positions: torch.Tensor, *, one_by_one: bool
) -> torch.Tensor:
    if not one_by_one:
        return reference(tokens[None], position_ids=positions[None]).logits[0]
    cache, found = None, []
    for token, position in zip(tokens.split(1), positions.split(1), strict=True):
        out = reference(token[None], position_ids=position[None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits[0])
    return torch.cat(found)


@pytest.mark.parametrize(("kind", "scaling"), [("linear", LinearScaling), ("dynamic", DynamicScaling)])
def test_the_operator_may_stretch_positions(kind: str, scaling: type) -> None:
    """In place of what the configuration says."""
    for rope in ({}, {"rope_scaling": {"type": "yarn", "factor": 2.0}}):
        config = SIZES | rope | {"max_position_embeddings": 4096, "architectures": ["LlamaForCausalLM"]}
        spec = decoder_of(config, Stretch(kind, 4.0))
        assert spec.max_positions == 16384
        for layer in spec.layers:
            assert isinstance(layer.attention.position, Rotary)
            assert isinstance(layer.attention.position.scaling, scaling)
            assert layer.attention.position.scaling == scaling(
                **vars(layer.attention.position.scaling) | {"factor": 4.0}
            )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "stretches rotary positions that are the same in all layers"),
        (values("longrope") | {"architectures": ["LlamaForCausalLM"]}, "cannot replace the rope type longrope"),
    ],
)
def test_what_cannot_be_stretched_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(ModelConfig(SIZES | config), Stretch("linear", 2.0))


def test_configurations_of_both_styles_are_read() -> None:
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, "max_position_embeddings": 99}
    for name in ("type", "rope_type"):
        old = {"rope_scaling": {name: "linear", "factor": 2.0}, "rope_theta": 5e5, "max_position_embeddings": 99}
        assert rotary_of(old) == rotary_of(new) == Rotary(theta=5e5, dim=DIM, scaling=LinearScaling(factor=2.0))
    mrope = {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    assert rotary_of(mrope) == rotary_of({}), "with text alone all axes of mrope are one"


def test_phi3_states_its_original_context_beside_its_factors() -> None:
    for kind in ("su", "yarn", "longrope"):
        scaling = {"type": kind, "short_factor": SHORT, "long_factor": LONG}
        found = rotary_of(
            {"rope_scaling": scaling, "max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
        ).scaling
        assert isinstance(found, LongScaling)
        assert found.original_max_positions == 1024
        assert found.short.amplitude == found.long.amplitude == pytest.approx((1 + 2 / 10) ** 0.5)


def test_a_stated_amplitude_may_differ_between_short_and_long() -> None:
    scaling = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG, "short_mscale": 1.2, "long_mscale": 1.5}
    found = rotary_of({"rope_scaling": scaling, "max_position_embeddings": 4096}).scaling
    assert isinstance(found, LongScaling)
    assert (found.short.amplitude, found.long.amplitude) == (1.2, 1.5)


def test_deepseeks_factor_may_be_left_to_the_lengths() -> None:
    rope = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}
    found = rotary_of({"rope_parameters": rope, "max_position_embeddings": 4096}).scaling
    assert isinstance(found, YarnScaling)
    assert found.factor == 4.0


def test_parameters_may_differ_between_layer_types() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new = ModelConfig({"rope_parameters": nested})
    old = ModelConfig(
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    )
    for layer_type, expected in nested.items():
        for config in (new, old):
            found = config.rope_parameters(layer_type)
            assert {name: found[name] for name in expected} == expected
    same = ModelConfig(
        {"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 7.0}}}
    )
    assert same.rope_parameters()["rope_theta"] == 7.0
    with pytest.raises(ConfigError, match="same in all layers"):
        new.rope_parameters()
    with pytest.raises(ConfigError, match="of chunked_attention layers are needed"):
        new.rope_parameters("chunked_attention")


@pytest.mark.parametrize(
    ("rope", "stated", "longest"),
    [
        ({}, 4096, 4096),
        ({"type": "linear", "factor": 4.0}, 4096, 16384),
        ({"type": "dynamic", "factor": 2.0}, 4096, 8192),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 4096, 16384),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384, 16384),
        ({"type": "longrope", "short_factor": SHORT, "long_factor": LONG}, 16384, 16384),
    ],
)
def test_a_stretched_model_takes_longer_sequences(rope: dict[str, Any], stated: int, longest: int) -> None:
    config = {"rope_scaling": rope or None, "max_position_embeddings": stated, "architectures": ["LlamaForCausalLM"]}
    assert decoder_of(SIZES | config).max_positions == longest


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "spiral"}, "rope type 'spiral' is not implemented .default, mrope, linear, .*su are"),
        ({"rope_type": "linear"}, "'linear' needs the parameter `factor`"),
        ({"rope_type": "linear", "factor": 0}, "`factor` must be a positive number, not 0"),
        ({"rope_type": "dynamic", "factor": "2"}, "`factor` must be a positive number, not '2'"),
        ({"rope_type": "llama3", "factor": 4.0}, "'llama3' needs the parameter `low_freq_factor`"),
        (
            {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 4.0, "high_freq_factor": 2.0},
            "`high_freq_factor` 2.0 must not be below",
        ),
        (
            {"rope_type": "longrope", "long_factor": LONG},
            "`short_factor`, a list of 16 positive numbers, not None",
        ),
        ({"rope_type": "longrope", "short_factor": SHORT, "long_factor": [1.0]}, "`long_factor`.*not 1 values"),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": "4k"},
            "`original_max_position_embeddings` must be a whole number above 1, not '4k'",
        ),
        ({"rope_type": "default", "partial_rotary_factor": 0.1}, "`partial_rotary_factor` 0.1 of 32 dimensions"),
        ({"rope_type": "default", "rope_theta": None}, "needs the parameter `rope_theta`"),
    ],
)
def test_wrong_parameters_are_refused_by_name(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rotary_of({"rope_parameters": rope})
