"""A tiny random Llama, once as transformers' model and once behind an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.kv_pool import KvPool
from millrace_worker.model import paged
from millrace_worker.models.load import load_model
from millrace_worker.rows import RowsShape
from millrace_worker.sampling import Watermark
from transformers import LlamaConfig, LlamaForCausalLM

from .plans import PlanBook

VOCAB = 97
POSITIONS = 160
NEAR_TIE = 1e-4


@dataclass(frozen=True)
class Reference:
    """transformers' own model and where it was saved."""

    path: Path
    model: LlamaForCausalLM

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Always `num_tokens` new ids: nothing ends a sequence here."""
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue] - its stub wants what it does not use
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens, eos_token_id=None
            )
        return out[0, len(prompt) :].tolist()

    def follows(self, prompt: list[int], ids: list[int]) -> bool:
        """Whether greedy search says `ids` after `prompt`; of logits that differ by no more than rounding, any may be
        the best."""
        with torch.inference_mode():
            scores = self.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        chosen = scores.gather(1, torch.tensor(ids)[:, None])[:, 0]
        return bool((chosen >= scores.amax(1) - NEAR_TIE).all())

    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """[len - 1]: log-softmax at each token but the first."""
        with torch.inference_mode():
            scores = self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        return scores[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]

    def top_logprobs(self, tokens: list[int], number: int) -> torch.Tensor:
        """[len - 1, number]: of the likeliest tokens at each place but the first."""
        with torch.inference_mode():
            scores = self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        return scores[:-1].topk(number, dim=1).values


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("tiny-llama")
    model.save_pretrained(path)
    return Reference(path, model)


@pytest.fixture(scope="session", params=["", cpu_kernels.OFF], ids=["native", "torch"])
def parts(reference: Reference, request: pytest.FixtureRequest) -> EngineParts:
    device, group = torch.device("cpu"), Group()
    kernels = cpu_kernels.find(request.param, 1)
    model = load_model(reference.path, dtype=torch.float32, device=device, group=group, kernels=kernels)
    return EngineParts(model=model, group=group, device=device, watermark=Watermark(), kernels=kernels)


@dataclass(frozen=True)
class Bench:
    """One engine with a fresh pool, and the book that writes its plans."""

    engine: Engine
    book: PlanBook
    parts: EngineParts

    @property
    def pool(self) -> torch.Tensor:
        """All that the KV pool holds."""
        pool = getattr(getattr(self.parts.model, "backend", None), "pool", None)
        assert isinstance(pool, KvPool)
        return pool.values


@pytest.fixture
def bench(parts: EngineParts) -> Bench:
    """8 rows, steps of 64 tokens, a pool of 40 pages."""
    paged(parts.model).allocate_kv(40)
    page_size = parts.model.page_size
    shape = RowsShape(
        max_rows=8,
        max_sequence_tokens=POSITIONS,
        page_size=page_size,
        num_pages=40,
        vocab_size=VOCAB,
        max_step_tokens=64,
        max_top_n_tokens=5,
        prompt_logprobs=True,
    )
    return Bench(Engine(parts, shape), PlanBook(page_size, 40), parts)
