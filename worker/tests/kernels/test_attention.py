"""Native attention over pages against references of other people, in double precision: torch's attention and norm,
transformers' rotations, softcap and sinks. Pools, results and what lies around them are poisoned."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from millrace_kernels import Attention, Machine, Step
from millrace_worker import cpu_kernels
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as rotate_neighbours
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as attention_with_softcap
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as attention_with_sinks
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

PAGE = 16
NAN = float("nan")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Work = tuple[int, int, int]  # sequence, start, count


@dataclass(frozen=True, kw_only=True)
class Spec:
    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False
    sinks: bool = False
    rotated: int = 0
    pairs: str = "halves"
    norm: bool = False
    qkv_dtype: str = "float32"
    kv_dtype: str = "float32"

    @property
    def columns(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.size


@dataclass
class Layer:
    """One layer with random parameters, its pages, and some sequences."""

    spec: Spec
    lengths: list[int]
    scale: float = field(default_factory=lambda: random.uniform(0.05, 0.3))

    def __post_init__(self) -> None:
        spec, pages = self.spec, [-(-length // PAGE) for length in self.lengths]
        self.slopes = torch.rand(spec.heads) * 0.3
        self.sinks = torch.randn(spec.heads)
        self.norm = torch.randn(spec.heads + spec.kv_heads, spec.size)
        self.angles = torch.rand(max(self.lengths), spec.rotated // 2) * 6.3
        self.num_pages = sum(pages) + 5
        self.table = np.full((len(pages), max(pages) + 1), 2**31 - 1, dtype=np.int32)
        free = np.random.permutation(self.num_pages).astype(np.int32)
        for row, count in enumerate(pages):
            self.table[row, :count], free = free[:count], free[count:]
        self.unused = torch.from_numpy(free.astype(np.int64))
        page_values = 2 * spec.kv_heads * spec.size * PAGE
        self.pool = torch.full((self.num_pages, page_values), NAN, dtype=DTYPES[spec.kv_dtype])
        qkv = [torch.randn(length, spec.columns) * 1.5 for length in self.lengths]
        self.qkv = [each.to(DTYPES[spec.qkv_dtype]) for each in qkv]

    def kernel(self, machine: Machine) -> Attention:
        spec = self.spec
        slopes, sinks = self.slopes.tolist() if spec.alibi else None, self.sinks.tolist() if spec.sinks else None
        return Attention(
            machine,
            (spec.heads, spec.kv_heads, spec.size),
            (self.scale, spec.window, spec.softcap, slopes, sinks),
            spec.pairs,
            (1e-5, self.norm.flatten().tolist()) if spec.norm else None,
            (spec.qkv_dtype, spec.kv_dtype),
        )

    def run(self, machine: Machine, work: list[Work]) -> list[torch.Tensor]:
        """[count, heads, size] of each entry. The result lies between poisoned rows, which stay as they are."""
        spec, kernel = self.spec, self.kernel(machine)
        rows, starts, counts = (np.array(column) for column in zip(*work, strict=True))
        plan = kernel.plan(Step(rows, starts, counts, self.table, self.num_pages))
        qkv = torch.cat([self.qkv[row][start : start + count] for row, start, count in work])
        angles = torch.cat([self.angles[start : start + count] for _, start, count in work])
        cos, sin = angles.cos(), angles.sin()
        turns = torch.cat((cos, cos, -sin, sin), dim=1).contiguous()
        num_tokens = int(counts.sum())
        assert plan.num_tokens == num_tokens
        out = torch.full((num_tokens + 2, spec.heads, spec.size), NAN, dtype=DTYPES[spec.kv_dtype])
        kept = qkv.clone()
        kernel.attend(plan, self.pool.data_ptr(), qkv.data_ptr(), (turns.data_ptr(), spec.rotated), out[1:].data_ptr())
        torch.testing.assert_close(qkv, kept, atol=0.0, rtol=0.0, equal_nan=True)
        assert out[0].isnan().all()
        assert out[-1].isnan().all()
        assert self.pool[self.unused].isnan().all()
        return list(out[1:-1].split(counts.tolist()))

    def prepared(self, sequence: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v [length, heads, size] in double precision as they are multiplied: rounded to the pages' dtype."""
        spec, length = self.spec, self.lengths[sequence]
        qkv = self.qkv[sequence].double().view(length, -1, spec.size)
        qk, v = qkv.split([spec.heads + spec.kv_heads, spec.kv_heads], dim=1)
        if spec.norm:
            qk = F.rms_norm(qk, (spec.size,), eps=1e-5) * self.norm.double()
        if spec.rotated:
            qk = self._rotate(qk)
        q, k = qk.split([spec.heads, spec.kv_heads], dim=1)
        q, k, v = (x.to(DTYPES[spec.kv_dtype]).double() for x in (q, k, v))
        return q, k, v

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        turning, rest = x[..., : self.spec.rotated], x[..., self.spec.rotated :]
        angles = self.angles[: len(x)].double()
        if self.spec.pairs == "halves":
            angles, rotate = torch.cat((angles, angles), dim=1), rotate_halves
        else:
            angles, rotate = angles.repeat_interleave(2, dim=1), rotate_neighbours
        turned, _ = rotate(turning, turning, angles.cos(), angles.sin(), unsqueeze_dim=1)
        return torch.cat((turned, rest), dim=-1)

    def expected(self, sequence: int) -> torch.Tensor:
        """[length, heads, size] in double precision."""
        spec = self.spec
        q, k, v = (x.transpose(0, 1)[None] for x in self.prepared(sequence))
        mask = self._mask(self.lengths[sequence])
        if spec.softcap is None and not spec.sinks:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=True)
            return out[0].transpose(0, 1)
        module = TheirLayer(spec.heads // spec.kv_heads, self.sinks.double()).eval()
        if spec.sinks:
            out, _ = attention_with_sinks(module, q, k, v, mask, scaling=self.scale)
        else:
            out, _ = attention_with_softcap(module, q, k, v, mask, scaling=self.scale, softcap=spec.softcap)
        return out[0].detach()

    def _mask(self, length: int) -> torch.Tensor:
        """[1, heads or 1, length, length]: what is added to the scores."""
        distance = torch.arange(length, dtype=torch.float64)[:, None] - torch.arange(length)
        unseen = (distance < 0) | (distance >= (self.spec.window or length))
        bias = -self.slopes.double()[:, None, None] * distance if self.spec.alibi else torch.zeros_like(distance)[None]
        return bias.masked_fill(unseen, -torch.inf)[None]


class TheirLayer(torch.nn.Module):
    """What transformers' functions read of their layer."""

    def __init__(self, groups: int, sinks: torch.Tensor) -> None:
        super().__init__()
        self.num_key_value_groups, self.sinks = groups, torch.nn.Parameter(sinks)


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """[..., head size]. float32: its own arithmetic. bfloat16: queries, keys, weights and results are rounded once
    each; one in the middle between two numbers may become the other one here, which moves its whole head: rare."""
    if found.dtype is torch.float32:
        torch.testing.assert_close(found.double(), expected, atol=3e-5, rtol=1e-4)
    else:
        excess = (found.double() - expected).abs() - 0.04 - 2**-7 * expected.abs()
        assert int((excess.amax(dim=-1) > 0).sum()) <= max(1, excess[..., 0].numel() // 100)
        torch.testing.assert_close(found.double(), expected, atol=0.5, rtol=2**-7)


def schedule(lengths: list[int]) -> list[list[Work]]:
    """Each sequence from its beginning to its end, by single tokens and chunks, beside others or alone."""
    done, steps = [0] * len(lengths), []
    while any(start < length for start, length in zip(done, lengths, strict=True)):
        work = []
        for row, length in enumerate(lengths):
            if done[row] < length and random.random() < 0.8:
                count = random.choice([1, 1, random.randint(1, 9), random.randint(1, length)])
                count = min(count, length - done[row])
                work.append((row, done[row], count))
                done[row] += count
        random.shuffle(work)
        if work:
            steps.append(work)
    return steps


def check(layer: Layer, machine: Machine, steps: list[list[Work]]) -> None:
    expected = [layer.expected(sequence) for sequence in range(len(layer.lengths))]
    for work in steps:
        for (row, start, count), found in zip(work, layer.run(machine, work), strict=True):
            near(found, expected[row][start : start + count])


SPECS = {
    "plain": Spec(),
    "one KV head": Spec(heads=5, kv_heads=1, rotated=64),
    "no sharing": Spec(heads=3, kv_heads=3, rotated=64),
    "many queries to a KV head": Spec(heads=52, kv_heads=1, size=32),
    "seven to a KV head": Spec(heads=14, kv_heads=2, rotated=32),
    "window": Spec(window=37, rotated=64),
    "window of one": Spec(window=1),
    "softcap": Spec(softcap=2.0, rotated=64),
    "ALiBi": Spec(alibi=True),
    "sinks": Spec(sinks=True, rotated=64),
    "sinks in a window": Spec(sinks=True, window=21),
    "norm before rotation": Spec(norm=True, rotated=64),
    "a part is rotated": Spec(rotated=24),
    "neighbours are rotated": Spec(rotated=64, pairs="neighbours"),
    "a part of neighbours": Spec(rotated=20, pairs="neighbours", norm=True),
    "everything": Spec(heads=6, window=50, softcap=3.0, alibi=True, norm=True, rotated=32),
}


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("name", SPECS)
def test_random_steps_equal_the_references(machine: Machine, name: str, kv_dtype: str) -> None:
    lengths = [random.randint(1, 150) for _ in range(random.randint(1, 6))]
    check(Layer(replace(SPECS[name], kv_dtype=kv_dtype), lengths), machine, schedule(lengths))


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 48, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256])
def test_head_sizes(machine: Machine, size: int, kv_dtype: str) -> None:
    lengths = [random.randint(1, 100) for _ in range(3)]
    spec = Spec(size=size, rotated=size // 2, norm=True, kv_dtype=kv_dtype)
    check(Layer(spec, lengths), machine, schedule(lengths))


def test_projections_in_bfloat16(machine: Machine) -> None:
    lengths = [40, 9]
    spec = Spec(rotated=64, norm=True, qkv_dtype="bfloat16", kv_dtype="bfloat16")
    check(Layer(spec, lengths), machine, schedule(lengths))


LONG = {
    "plain": Spec(rotated=32),
    "window": Spec(window=600, rotated=32),
    "sinks in a window": Spec(window=600, sinks=True, rotated=32),
    "everything": Spec(window=900, softcap=3.0, alibi=True, norm=True, rotated=32),
}


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("name", LONG)
def test_long_contexts(machine: Machine, name: str, kv_dtype: str) -> None:
    """Longer than a piece of keys: pieces are joined, by tasks of their own where there are threads for them."""
    lengths = [1700, 20]
    spec = replace(LONG[name], heads=2, kv_heads=1, size=32, kv_dtype=kv_dtype)
    steps = [[(0, 0, 1000)], [(0, 1000, 1), (1, 0, 20)], [(0, 1001, 600)], [(0, 1601, 5)], [(0, 1606, 93)]]
    check(Layer(spec, lengths), machine, [*steps, [(0, 1699, 1)]])


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 45])
def test_a_token_gets_the_same_bits_in_any_company(machine: Machine, window: int | None, kv_dtype: str) -> None:
    """Alone or beside others, by itself or in a chunk, with one thread or three."""
    lengths = [1200, 90, 33]
    layer = Layer(Spec(heads=6, window=window, rotated=64, softcap=5.0, kv_dtype=kv_dtype), lengths)
    whole = layer.run(machine, [(row, 0, length) for row, length in enumerate(lengths)])
    other = cpu_kernels.find(machine.level, 3)
    assert other is not None
    for row, length in enumerate(lengths):
        (alone,) = layer.run(other, [(row, 0, length)])
        assert torch.equal(alone, whole[row])
    computed = layer.pool.clone()

    def again(machine: Machine, work: list[Work]) -> None:
        layer.pool.copy_(computed)  # a page that is begun again forgets its later tokens
        for (row, start, count), found in zip(work, layer.run(machine, work), strict=True):
            assert torch.equal(found, whole[row][start : start + count])

    for _ in range(4):
        starts = [random.randint(0, length - 1) for length in lengths]
        work = [
            (row, start, random.choice([1, random.randint(1, length - start)]))
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True))
        ]
        again(machine, work)
        for entry in work:
            again(other, [entry])


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "window", "everything"])
def test_what_is_not_a_number_stays_in_its_sequence(machine: Machine, name: str, kv_dtype: str) -> None:
    """Not beside it, not in the sequence that gets its pages; and there it is seen, not hidden."""
    layer = Layer(replace(SPECS[name], kv_dtype=kv_dtype), [40, 25, 33])
    layer.qkv[1].fill_(NAN)
    layer.run(machine, [(0, 0, 39), (1, 0, 24), (2, 0, 32)])
    healthy, sick, begins = layer.run(machine, [(0, 39, 1), (1, 24, 1), (2, 32, 1)])
    assert sick.isnan().all()
    near(healthy[0], layer.expected(0)[-1])
    near(begins[0], layer.expected(2)[-1])
    layer.table[[1, 2], :2] = layer.table[[2, 1], :2]
    for start, count in ((0, 20), (20, 1), (21, 4)):
        (heir,) = layer.run(machine, [(2, start, count)])
        near(heir, layer.expected(2)[start : start + count])


@pytest.mark.parametrize("kv_dtype", DTYPES)
def test_a_query_that_is_not_a_number_gives_none(machine: Machine, kv_dtype: str) -> None:
    layer = Layer(Spec(kv_dtype=kv_dtype), [70])
    layer.qkv[0][50, : layer.spec.size] = NAN  # the first head's query only
    (found,) = layer.run(machine, [(0, 0, 70)])
    assert found[50, 0].isnan().all()
    assert not found[50, 1:].isnan().any()
    assert not found[:50].isnan().any()
    assert not found[51:].isnan().any()


def test_huge_scores_do_not_overflow(machine: Machine) -> None:
    """e^88 is float32's largest; scores here reach hundreds, where float32 still has four decimals."""
    layer = Layer(Spec(), [90], scale=10.0)
    (found,) = layer.run(machine, [(0, 0, 90)])
    torch.testing.assert_close(found.double(), layer.expected(0), atol=5e-3, rtol=5e-3)
    (found,) = Layer(Spec(), [90], scale=1e20).run(machine, [(0, 0, 90)])
    assert found.isfinite().all()


def columns(row: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([row]), np.array([start]), np.array([count])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ((2, 0, 1), "row 2 cannot compute 1 tokens from position 0"),
        ((-1, 0, 1), "row -1"),
        ((0, 48, 1), "from position 48"),
        ((0, 0, 49), "49 tokens"),
        ((0, 5, 0), "0 tokens"),
        ((0, -1, 4), "position -1"),
        ((0, 0, 2**62), "tokens"),
        ((0, 16, 1), "page 9 is none of the pool's 9"),
        ((1, 0, 1), "page -1 is none of the pool's 9"),
    ],
)
def test_work_outside_the_pages_is_refused(work: tuple[int, int, int], message: str) -> None:
    table = np.array([[0, 9, 8], [-1, 0, 1]], dtype=np.int32)
    with pytest.raises(ValueError, match=message):
        Step(*columns(*work), table, 9)


def test_columns_of_different_lengths_are_refused() -> None:
    table = np.zeros((1, 1), dtype=np.int32)
    with pytest.raises(ValueError, match="one value per entry, not 1 rows, 1 starts, 0 counts"):
        Step(*columns(0, 0, 1)[:2], np.array([], dtype=np.int64), table, 1)
    with pytest.raises(ValueError, match="contiguous"):
        Step(*columns(0, 0, 1), np.zeros((4, 4), dtype=np.int32)[:, ::2], 1)
    with pytest.raises(ValueError, match="two dimensions"):
        Step(*columns(0, 0, 1), np.zeros(4, dtype=np.int32), 1)


RULE = (0.125, None, None, None, None)


@pytest.mark.parametrize(
    ("heads", "rule", "norm", "message"),
    [
        ((5, 2, 64), RULE, None, "5 query heads cannot share 2 KV heads evenly"),
        ((4, 0, 64), RULE, None, "0 KV heads"),
        ((4, 2, 40), RULE, None, "heads of 40 dimensions"),
        ((4, 2, 272), RULE, None, "multiples of 16 up to 256"),
        ((4, 2, 64), (0.1, 0, None, None, None), None, "window of 0"),
        ((4, 2, 64), (0.1, None, 0.0, None, None), None, "capped at 0"),
        ((4, 2, 64), (NAN, None, None, None, None), None, "scaled by NaN"),
        ((4, 2, 64), (0.1, None, None, [0.5], None), None, "slopes has 1 values, not 4"),
        ((4, 2, 64), (0.1, None, None, None, [0.5] * 5), None, "sinks has 5 values, not 4"),
        ((4, 2, 64), RULE, (1e-5, [1.0] * 64), "norm of q and k has 64 values, not 384"),
    ],
)
def test_layers_without_a_kernel_are_refused(heads: tuple, rule: tuple, norm: tuple | None, message: str) -> None:
    machine = Machine(None, 1, 0, 0)
    with pytest.raises(ValueError, match=message):
        Attention(machine, heads, rule, "halves", norm, ("float32", "float32"))


def test_a_plan_for_other_heads_is_refused() -> None:
    layer, other = Layer(Spec(), [4]), Layer(Spec(heads=6), [4])
    machine = Machine(None, 1, 0, 0)
    plan = other.kernel(machine).plan(Step(*columns(0, 0, 4), layer.table, layer.num_pages))
    with pytest.raises(ValueError, match="does not fit a layer"):
        layer.kernel(machine).attend(plan, 0, 0, (0, 0), 0)
    plan = layer.kernel(machine).plan(Step(*columns(0, 0, 4), layer.table, layer.num_pages))
    with pytest.raises(ValueError, match="65 of 64 dimensions"):
        layer.kernel(machine).attend(plan, 0, 0, (0, 65), 0)
