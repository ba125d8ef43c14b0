"""Attention over pages against torch's scaled dot-product attention over whole, contiguous keys and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from millrace_worker.attention import torch_backend
from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.attention.torch_backend import TorchBackend
from millrace_worker.step import Batch
from torch.nn.attention.flex_attention import flex_attention

CPU = torch.device("cpu")
NAN = float("nan")
RULES = {
    "plain": ScoreRule(),
    "window": ScoreRule(window=37),
    "softcap": ScoreRule(softcap=2.0),
    "alibi": ScoreRule(alibi=(0.5, 0.25, 0.125, 0.0625)),
    "all": ScoreRule(window=21, softcap=3.0, alibi=(0.3, 0.2, 0.1, 0.05)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def heads(rule: ScoreRule, *, kv_heads: int = 2) -> Heads:
    return Heads(layer=0, num_heads=4, num_kv_heads=kv_heads, head_dim=16, scale=0.3, rule=rule)


def reference(q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, spec: Heads) -> torch.Tensor:
    """[T, N * H] of a whole sequence, by flex_attention: the rule as its author would write it."""
    rule = spec.rule

    def score(score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        if rule.softcap is not None:
            score = rule.softcap * torch.tanh(score / rule.softcap)
        if rule.alibi is not None:
            score = score - torch.tensor(rule.alibi)[h] * (q - k)
        seen = (k <= q) if rule.window is None else (k <= q) & (q - k < rule.window)
        return torch.where(seen, score, -torch.inf)

    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    out = flex_attention(q, k, v, score_mod=score, scale=spec.scale, enable_gqa=True)
    assert isinstance(out, torch.Tensor)
    return out[0].transpose(0, 1).flatten(1)


class Pages:
    """One layer's backend with as many rows as there are sequences, over shuffled pages that hold NaN."""

    def __init__(self, spec: Heads, lengths: list[int]) -> None:
        self.spec, self.backend = spec, TorchBackend([spec], torch.float32, CPU)
        width = -(-max(lengths) // 16)
        self.table = np.random.permutation(len(lengths) * width).reshape(len(lengths), width).astype(np.int32)
        self.backend.allocate(self.table.size)
        self.backend.pool.values.fill_(NAN)
        channels = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self.qkv = [torch.randn(length, channels) for length in lengths]

    def step(self, work: list[tuple[int, int, int]]) -> list[torch.Tensor]:
        rows, starts, counts = (np.array(column) for column in zip(*work, strict=True))
        batch = Batch(
            rows=rows, starts=starts, counts=counts, page_table=torch.from_numpy(self.table), page_table_host=self.table
        )
        qkv = torch.cat([self.qkv[row][start : start + count] for row, start, count in work])
        out = self.backend.attend(self.spec, qkv, None, self.backend.plan(batch))
        return list(out.split(counts.tolist()))

    def expected(self, row: int) -> torch.Tensor:
        n, k = self.spec.num_heads, self.spec.num_kv_heads
        q, k, v = self.qkv[row].unflatten(-1, (-1, self.spec.head_dim)).split([n, k, k], dim=1)
        return reference(q, k, v, self.spec)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rule", RULES)
def test_chunks_then_decodes_of_very_different_lengths(
    rule: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small limits, so that groups are split and chunks take several blocks of queries."""
    monkeypatch.setattr(torch_backend, "CHUNK_QUERIES", 24)
    monkeypatch.setattr(torch_backend, "MAX_WRITTEN_BIAS", 300 * 16)
    monkeypatch.setitem(torch_backend.MAX_WRITTEN_SCORES, "cpu", 4 * 300 * 16)
    monkeypatch.setitem(torch_backend.GATHER_BYTES, "cpu", 40_000)
    lengths = [17, 300, 16, 33, 49, 18, 240, 2]
    pages = Pages(heads(RULES[rule], kv_heads=kv_heads), lengths)
    expected = [pages.expected(row) for row in range(len(lengths))]
    first = [(row, 0, length // 2) for row, length in enumerate(lengths)]
    rest = [(row, length // 2, length - length // 2 - 1) for row, length in enumerate(lengths) if length > 2]
    last = [(row, length - 1, 1) for row, length in enumerate(lengths)]
    for work in (first, rest, last):
        for (row, start, count), out in zip(work, pages.step(work), strict=True):
            torch.testing.assert_close(out, expected[row][start : start + count], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_a_number_in_one_sequence_stays_there(rule: str) -> None:
    """Grouped with it, and taking over its page afterwards."""
    pages = Pages(heads(RULES[rule]), [40, 25, 33])
    pages.qkv[1].fill_(NAN)
    pages.step([(0, 0, 39), (1, 0, 24), (2, 0, 32)])
    healthy, sick, begins = pages.step([(0, 39, 1), (1, 24, 1), (2, 32, 1)])
    assert sick.isnan().all()
    torch.testing.assert_close(healthy[0], pages.expected(0)[-1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(begins[0], pages.expected(2)[-1], atol=2e-5, rtol=1e-4)
    pages.table[2], pages.table[1] = pages.table[1].copy(), pages.table[2].copy()
    (heir,) = pages.step([(2, 0, 20)])
    torch.testing.assert_close(heir, pages.expected(2)[:20], atol=2e-5, rtol=1e-4)


def test_a_rows_result_does_not_depend_on_its_neighbours() -> None:
    """The same bits alone as among rows of the same length: what seeds promise."""
    pages = Pages(heads(ScoreRule()), [50] * 6)
    pages.step([(row, 0, 49) for row in range(6)])
    together = pages.step([(row, 49, 1) for row in range(6)])
    for row in range(6):
        (alone,) = pages.step([(row, 49, 1)])
        torch.testing.assert_close(alone, together[row], atol=1e-6, rtol=1e-5)


def test_layers_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size for all"):
        TorchBackend([heads(ScoreRule()), heads(ScoreRule(), kv_heads=1)], torch.float32, CPU)


def test_a_step_before_the_pool_says_what_is_missing() -> None:
    backend = TorchBackend([heads(ScoreRule())], torch.float32, CPU)
    with pytest.raises(RuntimeError, match="allocate_kv"):
        _ = backend.pool


def test_sdpa_takes_a_float32_bias_at_half_precision() -> None:
    """What `_bias_dtype` relies on, on CPUs."""
    q, k, v = (torch.randn(1, 2, 4, 16).bfloat16() for _ in range(3))
    bias = torch.zeros(1, 1, 4, 4).masked_fill_(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
