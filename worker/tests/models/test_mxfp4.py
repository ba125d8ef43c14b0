"""gpt-oss checkpoints whose experts are 4-bit floats in blocks give what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.models.build.experts import from_mxfp4
from millrace_worker.models.checkpoint import CheckpointError
from millrace_worker.models.load import load_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from .checkpoints import CASES, Saved, save
from .paged import PagedRun

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Random blocks in place of the experts' matrices; transformers' model gets what it unpacks of them."""
    saved = save(tmp_path_factory.mktemp("mxfp4"), CASES["gpt-oss"])
    path, stored = saved.folder / "model.safetensors", dict[str, Tensor]()
    parameters = dict(saved.reference.named_parameters())
    for name, tensor in load_file(path).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(123, 126, blocks.shape[:3], dtype=torch.uint8)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        parameters[name].data = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((saved.folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (saved.folder / "config.json").write_text(json.dumps(config))
    return saved


def test_blocks_are_unpacked_as_transformers_does() -> None:
    blocks = torch.randint(256, (3, 5, 2, 16), dtype=torch.uint8)
    scales = torch.randint(256, (3, 5, 2), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
    for expert in range(3):
        assert torch.equal(from_mxfp4(blocks[expert], scales[expert]), expected[expert].t())


def test_logits_are_those_of_the_unpacked_experts(packed: Saved, sequences: list[list[int]]) -> None:
    model = load_model(packed.folder, dtype=torch.float32, device=CPU, group=Group())
    for tokens, logits in zip(sequences, PagedRun(model, seed=1).logits(sequences), strict=True):
        clear = packed.num_clear(tokens)
        torch.testing.assert_close(logits[:clear], packed.logits(tokens)[:clear], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_columns_of_blocks_that_it_cuts(rank: int, packed: Saved) -> None:
    """Blocks are 32 columns, a rank's share of 96 is 48."""
    load_model(packed.folder, dtype=torch.float32, device=CPU, group=Group(rank=rank, size=2))


def test_a_missing_scale_is_named(packed: Saved, tmp_path: Path) -> None:
    stored = load_file(packed.folder / "model.safetensors")
    del stored["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((packed.folder / "config.json").read_text())
    with pytest.raises(
        CheckpointError, match=r"layers.1.mlp.experts.down_proj_scales of shape \[5, 64, 3\] is missing"
    ):
        load_model(tmp_path, dtype=torch.float32, device=CPU, group=Group())
