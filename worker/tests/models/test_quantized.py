"""Quantized checkpoints: served as transformers computes them, or refused with what is missing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.model import Model
from millrace_worker.models.choice import TRANSFORMERS, ModelAsk, choose, load
from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.hosted.quantized import check_quantization
from millrace_worker.models.sharding import ShardingError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from .checkpoints import Saved
from .fp8_files import rewritten
from .paged import PagedRun

CPU = torch.device("cpu")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP4_TWICE = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}
EIGHT = {"load_in_8bit": True}
NEAR = 1e-3
FP8_BLOCK = (8, 8)


def served(folder: Path, dtype: torch.dtype = torch.float32, model_impl: str = "auto") -> Model:
    choice = choose(folder, model_impl)
    assert choice.implementation == TRANSFORMERS
    assert model_impl != "auto" or "quantized weights" in choice.reason
    return load(ModelAsk(folder=folder, dtype=dtype, device=CPU, group=Group()), choice)


def quantize(plain: Saved, folder: Path, options: Mapping[str, Any]) -> Any:
    """By transformers; what it saved, loaded again."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**options)
    model: Any = AutoModelForCausalLM.from_pretrained(
        plain.folder, quantization_config=config, dtype=torch.float32, device_map=CPU
    )
    model.save_pretrained(folder)
    stored = torch.int8 if options.get("load_in_8bit") else torch.uint8
    assert stored in {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map=CPU)


def num_leading_near(found: Tensor, expected: Tensor) -> int:
    """How many tokens come before the first whose activations, rounded to 8 bits, hang by less than the order of a sum
    moves them: it gets a whole step more, and what follows attends to it."""
    near = torch.isclose(found, expected, atol=NEAR, rtol=NEAR).all(-1)
    return len(near) if near.all() else int(near.int().argmin())


@torch.inference_mode()
def token_by_token(model: Any, tokens: list[int]) -> Tensor:
    """[T, V]: no token has company."""
    cache, logits = None, []
    for token in tokens:
        output = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[0])
    return torch.cat(logits)


@pytest.mark.parametrize("options", [EIGHT, NF4, FP4_TWICE], ids=["8 bits", "nf4", "fp4 twice"])
def test_bitsandbytes_gives_what_transformers_gives_a_token_alone(
    options: Mapping[str, Any],
    saved: Callable[[str], Saved],
    sequences: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("bitsandbytes")
    # Some CPUs round what goes into 4-bit layers to bfloat16: nothing to compare closely.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    plain, seed = saved("llama"), random.randrange(2**32)
    own = quantize(plain, tmp_path, options)
    model = served(tmp_path)
    assert model.implementation == "transformers"
    assert "bitsandbytes" in model.implementations()["quantized linear"]
    found, clear = PagedRun(model, seed=seed).logits(sequences), 0
    for tokens, logits in zip(sequences, found, strict=True):
        expected = token_by_token(own, tokens)
        same = num_leading_near(logits, expected) if options is EIGHT else len(tokens)
        torch.testing.assert_close(logits[:same], expected[:same], atol=NEAR, rtol=NEAR, msg=lambda m: f"{seed=} {m}")
        assert (logits - expected).square().mean() < (0.03 * expected).square().mean(), f"{seed=}"
        assert (expected - plain.logits(tokens)).abs().max() > 1e-2, "the weights are not quantized"
        clear += same
    assert 2 * clear > sum(map(len, sequences)), f"{seed=}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits_as_this_cpu_computes_them_best(
    dtype: torch.dtype, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    """Rows of 96 values, too: not a whole number of blocks."""
    pytest.importorskip("bitsandbytes")
    quantize(saved("llama"), tmp_path, NF4)
    assert served(tmp_path, dtype).implementation == "transformers"


def test_fp8_in_blocks_becomes_plain_weights(
    saved: Callable[[str], Saved], sequences: list[list[int]], tmp_path: Path
) -> None:
    """What the native decoder reads by itself (`test_fp8.py`)."""
    plain = rewritten(saved("llama"), tmp_path / "plain", tmp_path / "fp8", FP8_BLOCK)
    own = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    model = served(tmp_path / "fp8", model_impl=TRANSFORMERS)
    assert model.implementations()["quantized linear"] == "transformers (fp8, dequantized at load)"
    with torch.inference_mode():
        for tokens, logits in zip(sequences, PagedRun(model, seed=0).logits(sequences), strict=True):
            torch.testing.assert_close(logits, own(torch.tensor([tokens])).logits[0], atol=1e-3, rtol=1e-3)
    assert served(tmp_path / "fp8", torch.bfloat16, TRANSFORMERS).implementation == "transformers"


REFUSED = {
    "gptq": ({"quant_method": "gptq", "bits": 3}, r"quantized \(gptq\), and .*`pip install .* serve the unquantized"),
    "unknown": ({"quant_method": "q7"}, r"method \(q7\) that is known neither to Millrace nor to transformers"),
    "unnamed": ({"bits": 4}, "quant_method does not name"),
    "no object": ("gptq", "quantization_config must be an object, not 'gptq'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_refused_with_what_is_missing(
    case: str, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    quantization, message = REFUSED[case]
    config = json.loads((saved("llama").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(ConfigError, match=message):
        served(tmp_path)
    with pytest.raises(UnsupportedError, match=r"no spec for quantized weights .*--model-impl transformers may run it"):
        choose(tmp_path, "native")


def test_quantized_weights_are_not_divided(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", **NF4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShardingError, match=r"bitsandbytes_4bit.*--num-shard 2 is not possible, use --num-shard 1"):
        check_quantization(ModelConfig.read(tmp_path), CPU, 2)
