"""What a checkpoint may look like on disk, and what is said when it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.models.checkpoint import Checkpoint, CheckpointError
from millrace_worker.models.decoder import CausalLM
from millrace_worker.models.load import load_model
from safetensors.torch import load_file, save_file

from .checkpoints import Saved
from .paged import PagedRun

Tensors = dict[str, torch.Tensor]


def load(folder: Path) -> CausalLM:
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"), group=Group())


@pytest.fixture
def altered(saved: Callable[[str], Saved], tmp_path: Path) -> Callable[[str, Callable[[Tensors], object]], Path]:
    """A copy of a case's checkpoint whose tensors have been changed."""

    def alter(case: str, change: Callable[[Tensors], object]) -> Path:
        source = saved(case).folder
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((source / "config.json").read_text())
        return tmp_path

    return alter


def same_logits(folder: Path, reference: Saved) -> None:
    tokens = torch.randint(99, (20,)).tolist()
    (found,) = PagedRun(load(folder), seed=1).logits([tokens])
    torch.testing.assert_close(found, reference.logits(tokens), atol=1e-4, rtol=1e-5)


def test_a_missing_tensor_is_named(altered: Callable[..., Path]) -> None:
    folder = altered("llama", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight of shape \[96, 64\] is missing"):
        load(folder)


def test_a_head_that_is_neither_stored_nor_tied_is_named(altered: Callable[..., Path]) -> None:
    folder = altered("llama", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"the tensor lm_head\.weight of shape \[99, 64\] is missing"):
        load(folder)


def test_a_vocabulary_of_another_size_than_stated_is_told_with_both(altered: Callable[..., Path]) -> None:
    """What counts is the configuration, not the tokenizer: tables are often longer than that."""
    folder = altered("llama", lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(128, 64)}))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape \[128, 64\], .* makes it \[99, 64\]"):
        load(folder)


def test_a_tensor_that_nobody_reads_is_named(altered: Callable[..., Path]) -> None:
    folder = altered("llama", lambda tensors: tensors.update({"model.layers.0.adapter.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"1 tensor belongs to no part .*model\.layers\.0\.adapter\.weight"):
        load(folder)


def test_a_layer_too_many_is_not_ignored(altered: Callable[..., Path]) -> None:
    folder = altered("gpt2", lambda t: t.update({"transformer.h.3.ln_1.bias": torch.zeros(64)}))
    with pytest.raises(CheckpointError, match=r"transformer\.h\.3\.ln_1\.bias"):
        load(folder)


@pytest.mark.parametrize(
    ("case", "name"),
    [("llama", "model.layers.0.self_attn.q_proj.weight"), ("gpt2", "transformer.h.0.mlp.c_fc.weight"),
     ("falcon, 40B style", "transformer.h.0.self_attention.query_key_value.weight"), ("llama", "model.norm.weight")],
)  # fmt: skip
def test_a_wrong_shape_is_told_with_both_shapes(altered: Callable[..., Path], case: str, name: str) -> None:
    folder = altered(case, lambda tensors: tensors.update({name: tensors[name][:-1]}))
    with pytest.raises(CheckpointError, match=rf"model.safetensors: the tensor {name} has shape .* makes it \["):
        load(folder)


def test_buffers_of_old_checkpoints_are_ignored(altered: Callable[..., Path], saved: Callable[[str], Saved]) -> None:
    folder = altered("llama", lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    same_logits(folder, saved("llama"))


def test_a_tied_head_that_is_stored_all_the_same_is_ignored(
    altered: Callable[..., Path], saved: Callable[[str], Saved]
) -> None:
    folder = altered("falcon, 7B style", lambda tensors: tensors.update({"lm_head.weight": torch.full((99, 64), 7.0)}))
    same_logits(folder, saved("falcon, 7B style"))


def test_gpt2_as_the_bare_model_saves_it(altered: Callable[..., Path], saved: Callable[[str], Saved]) -> None:
    """Without the prefix, and with the causal masks that old versions stored."""

    def bare(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}

    same_logits(altered("gpt2", bare), saved("gpt2"))


def test_shards_are_found_by_their_index(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    reference = saved("qwen2")
    reference.reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    same_logits(tmp_path, reference)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=f"not in the folder: {gone.name}"):
        load(tmp_path)


def test_weights_of_another_format_are_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: convert it to safetensors"):
        Checkpoint(tmp_path)
