"""Both forms of latent attention equal what the paper writes out, the cheaper one runs, pages hold latents only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from millrace_worker.attention import latent_backend
from millrace_worker.attention.latent_backend import LatentBackend, LatentHeads, expanding_pays
from millrace_worker.attention.torch_backend import TorchStep
from millrace_worker.step import Batch

CPU = torch.device("cpu")
SIZES = {  # latent, shared key, plain part, value
    "values narrow": (24, 6, 10, 7),
    "values wide": (16, 8, 8, 28),
}


def make_heads(sizes: tuple[int, int, int, int], layer: int = 0) -> LatentHeads:
    latent, shared, plain, value = sizes
    return LatentHeads(
        layer=layer,
        num_heads=3,
        latent_dim=latent,
        shared_dim=shared,
        plain_dim=plain,
        value_dim=value,
        scale=0.3,
        pairs="halves",
        up=torch.randn(3, plain + value, latent),
    )


def written_out(heads: LatentHeads, q_TNH: torch.Tensor, kept_SW: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last T of S positions, with the keys and values of every head made first."""
    latents, shared = kept_SW.split((heads.latent_dim, heads.shared_dim), dim=1)
    k = torch.cat((torch.einsum("sl,npl->snp", latents, heads.up_k), shared[:, None].expand(-1, 3, -1)), dim=-1)
    v = torch.einsum("sl,nvl->snv", latents, heads.up_v)
    scores = torch.einsum("tnh,snh->nts", q_TNH, k) * heads.scale
    unseen = torch.ones(len(q_TNH), len(kept_SW), dtype=torch.bool).triu(len(kept_SW) - len(q_TNH) + 1)
    return torch.einsum("nts,snv->tnv", scores.masked_fill(unseen, -torch.inf).softmax(-1), v).flatten(1)


def step_of(backend: LatentBackend, work: list[tuple[int, int]], tables: list[list[int]]) -> TorchStep:
    """Row r computes `work[r]` = (start, count) over the pages `tables[r]`."""
    table = np.zeros((len(work), max(map(len, tables))), dtype=np.int32)
    for row, pages in enumerate(tables):
        table[row, : len(pages)] = pages
    starts, counts = (np.array(each) for each in zip(*work, strict=True))
    rows = np.arange(len(work))
    return backend.plan(
        Batch(rows=rows, starts=starts, counts=counts, page_table=torch.from_numpy(table), page_table_host=table)
    )


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_rows_and_chunks_equal_what_is_written_out(sizes: str, expanded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk with a context before it, one without, and a row of one token; a few heads at a time too."""
    monkeypatch.setattr(latent_backend, "expanding_pays", lambda *_: expanded)
    monkeypatch.setattr(latent_backend, "MAX_EXPANDED", 2 * 30 * 40)
    heads = make_heads(SIZES[sizes])
    backend = LatentBackend([heads], torch.float32, CPU)
    backend.allocate(8)
    backend.pool.values.fill_(float("nan"))
    kept = [torch.randn(length, heads.width) for length in (40, 21, 18)]
    queries = [torch.randn(length, 3, heads.query_dim) for length in (40, 21, 18)]
    tables, done = [[5, 0, 2], [1, 7], [6, 3]], [0, 0, 0]
    for until in ((17, 20, 16), (40, 21, 18)):
        work = [(start, stop - start) for start, stop in zip(done, until, strict=True)]
        parts = [slice(start, start + count) for start, count in work]
        step = step_of(backend, work, tables)
        q = torch.cat([each[part] for each, part in zip(queries, parts, strict=True)])
        found = backend.attend_latent(heads, q, torch.cat([k[p] for k, p in zip(kept, parts, strict=True)]), step)
        expected = [
            written_out(heads, each[part], k[: part.stop]) for each, k, part in zip(queries, kept, parts, strict=True)
        ]
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)
        done = list(until)


def test_chunks_take_the_form_that_multiplies_less() -> None:
    """DeepSeek's sizes: a few queries absorb, many expand; where the latent is no wider than a head, none expands."""
    large = make_heads((512, 64, 128, 128))
    assert not expanding_pays(large, 16, 4096)
    assert expanding_pays(large, 1024, 4096)
    assert not expanding_pays(make_heads(SIZES["values wide"]), 10000, 10000)


def test_a_page_holds_one_latent_and_one_key_for_all_heads() -> None:
    backend = LatentBackend([make_heads(SIZES["values narrow"], layer) for layer in range(2)], torch.bfloat16, CPU)
    backend.allocate(3)
    assert backend.page_bytes() == 2 * 16 * (24 + 6) * 2
    assert backend.pool.values.nbytes == 3 * backend.page_bytes()
