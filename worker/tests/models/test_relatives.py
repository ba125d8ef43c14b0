"""Families that transformers does not know, or only within a model that sees: a model of transformers that computes the
same is saved as the family stores it, and has to give the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.models.architectures import baichuan
from millrace_worker.models.build.attention import alibi_slopes
from millrace_worker.models.load import load_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
)

from .cases.case import COMMON, GATED, Case
from .checkpoints import Saved, save
from .paged import PagedRun
from .parity import TOLERANCE
from .rank_group import Job, RankGroup

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Relative:
    """`config` is laid over the configuration of `case`, less what is None; `store` makes the family's tensors."""

    case: Case
    config: Mapping[str, Any]
    store: Callable[[Tensors], Tensors]
    reference: Callable[[PreTrainedModel], nn.Module] = field(default=lambda model: model)


def renamed(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def store(tensors: Tensors) -> Tensors:
        found = {}
        for name, tensor in tensors.items():
            for old, new in pairs:
                name = name.replace(old, new)  # noqa: PLW2901
            found[name] = tensor
        return found

    return store


def packed(tensors: Tensors) -> Tensors:
    """Baichuan: the rows of q, k and v in one tensor."""
    kept = {name: tensor for name, tensor in tensors.items() if not any(f".{x}_proj" in name for x in "qkv")}
    for name in tensors:
        if ".q_proj." in name:
            parts = [tensors[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            kept[name.replace("q_proj", "W_pack")] = torch.cat(parts)
    return kept


def split_in_out(tensors: Tensors) -> Tensors:
    """SantaCoder: q apart from k and v, linears stored as (in, out)."""
    found = {}
    for name, tensor in tensors.items():
        linear = tensor.t() if ".h." in name and tensor.ndim == 2 else tensor
        if ".c_attn." in name:
            found[name.replace("c_attn", "q_attn")] = linear[..., :64]
            found[name.replace("c_attn", "kv_attn")] = linear[..., 64:]
        else:
            found[name] = linear
    return found


class WithAlibi(nn.Module):
    """A rotary model that stands still (every position is 0), with ALiBi in its mask: Baichuan 13B."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, ids: Tensor, **over: Any) -> Any:
        count = ids.shape[1]
        distance = torch.arange(count)[:, None] - torch.arange(count)
        slopes = torch.tensor(alibi_slopes(self.model.config.num_attention_heads, 8.0))
        mask = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)
        return self.model(ids, attention_mask=mask[None], position_ids=torch.zeros_like(ids), **over)


class WithNormedHead(nn.Module):
    """Rows of the head's weight have length 1: Baichuan 2."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, ids: Tensor, **over: Any) -> Any:
        stored = self.model.lm_head.weight.data
        self.model.lm_head.weight.data = nn.functional.normalize(stored)
        found = self.model(ids, **over)
        self.model.lm_head.weight.data = stored
        return found


HEADS = {"intermediate_size": 96}
BAICHUAN = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "num_key_value_heads": None}
FACTORS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 1.4 / 3**0.5,
    "logits_scaling": 2.0,
    "attention_multiplier": 0.25,
}
MINICPM = {
    "architectures": ["MiniCPMForCausalLM"],
    "scale_emb": 3.0,
    "scale_depth": 1.4,
    "dim_model_base": 32,
} | dict.fromkeys(FACTORS)
EXAONE = {"architectures": ["ExaoneForCausalLM"], "layer_norm_epsilon": 1e-6, "activation_function": "silu"}
EXAONE_NAMES = renamed(
    ("model.embed_tokens", "transformer.wte"),
    ("model.layers", "transformer.h"),
    ("model.norm", "transformer.ln_f"),
    ("input_layernorm", "ln_1"),
    ("post_attention_layernorm", "ln_2"),
    ("self_attn.o_proj", "attn.attention.out_proj"),
    ("self_attn", "attn.attention"),
    ("gate_proj", "c_fc_0"),
    ("up_proj", "c_fc_1"),
    ("down_proj", "c_proj"),
)
SANTACODER = {"architectures": ["GPT2LMHeadCustomModel"], "model_type": "gpt2", "attention_head_type": "multiquery"}
RELATIVES = {
    "baichuan, 7B": Relative(Case("llama", HEADS), BAICHUAN, packed),
    "baichuan, 13B": Relative(
        Case("llama", HEADS), BAICHUAN | {"max_position_embeddings": None, "model_max_length": 160}, packed, WithAlibi
    ),
    "baichuan 2, 7B": Relative(Case("llama", HEADS), BAICHUAN, packed, WithNormedHead),
    "exaone": Relative(Case("llama", GATED), EXAONE | {"rms_norm_eps": None, "hidden_act": None}, EXAONE_NAMES),
    "minicpm": Relative(Case("granite", GATED | FACTORS), MINICPM, renamed()),
    "santacoder": Relative(
        Case("gpt_bigcode", {"activation_function": "gelu_new"}), SANTACODER | {"multi_query": None}, split_in_out
    ),
}


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    made: dict[str, Saved] = {}

    def get(name: str) -> Saved:
        if name not in made:
            made[name] = _save(tmp_path_factory.mktemp("relative"), RELATIVES[name])
        return made[name]

    return get


def _save(folder: Path, relative: Relative) -> Saved:
    saved = save(folder, relative.case)
    stored = relative.store(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | dict(relative.config)
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return Saved(folder, relative.reference(saved.reference))  # type: ignore[arg-type]


def check(reference: Saved, sequences: list[list[int]], found: list[Tensor]) -> None:
    for tokens, logits in zip(sequences, found, strict=True):
        torch.testing.assert_close(logits, reference.logits(tokens), atol=TOLERANCE, rtol=0)


def run(reference: Saved, sequences: list[list[int]], kernels: str) -> list[Tensor]:
    machine = cpu_kernels.find(kernels, 1)
    cpu = torch.device("cpu")
    model = load_model(reference.folder, dtype=torch.float32, device=cpu, group=Group(), kernels=machine)
    return PagedRun(model, seed=4).logits(sequences)


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_computes_what_it_is_said_to(
    name: str,
    kernels: str,
    relative: Callable[[str], Saved],
    sequences: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name.startswith("baichuan 2"):
        monkeypatch.setattr(baichuan, "BAICHUAN2_VOCABULARY", COMMON["vocab_size"])
    check(relative(name), sequences, run(relative(name), sequences, kernels))


@pytest.mark.parametrize("name", [name for name in RELATIVES if not name.startswith("baichuan 2")])
def test_a_relative_computes_the_same_on_two_ranks(
    name: str, relative: Callable[[str], Saved], sequences: list[list[int]], ranks: Callable[[int], RankGroup]
) -> None:
    check(relative(name), sequences, ranks(2).logits(Job(relative(name).folder, sequences)))


TEXT = {key: value for key, value in (COMMON | GATED).items() if not key.endswith("token_id")} | {"head_dim": 32}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3_vision() -> PreTrainedModel:
    text = TEXT | {"sliding_window": 18, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4))


def mistral3_vision() -> PreTrainedModel:
    vision = VISION | {"model_type": "pixtral", "head_dim": 16}
    text = TEXT | {"model_type": "mistral", "sliding_window": None}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    )


def ministral3_vision() -> PreTrainedModel:
    vision = VISION | {"model_type": "pixtral", "head_dim": 16}
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.3,
    }
    text = TEXT | {"model_type": "ministral3", "rope_parameters": rope}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    )


def llama4_vision() -> PreTrainedModel:
    vision = VISION | {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    text = TEXT | {"num_local_experts": 3, "intermediate_size_mlp": 80, "attention_chunk_size": 16}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("make", [gemma3_vision, mistral3_vision, ministral3_vision, llama4_vision])
def test_the_language_model_of_one_that_sees_is_served(
    make: Callable[[], PreTrainedModel], kernels: str, sequences: list[list[int]], tmp_path: Path
) -> None:
    model = make().eval()
    model.save_pretrained(tmp_path)
    saved = Saved(tmp_path, model)
    check(saved, sequences, run(saved, sequences, kernels))
