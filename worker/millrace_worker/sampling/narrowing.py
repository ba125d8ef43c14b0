"""Warpers that narrow a distribution, as one: each of them keeps an interval of scores.

A score enters as its gap, by how much it is below the row's best one (0 for the best, in units of the temperature), so
that a token's weight is exp(-gap). Sorted by gap, what top-k and top-p keep is a beginning; what typical-p keeps of it
is a ball around the mean gap; min-p cuts its end. All bounds are gaps of tokens, so equal scores share one fate,
whatever the order of a sort. One sort and one sum of weights serve all of them.

Shapes: S rows, K sorted gaps of each (all of the vocabulary, or its best few), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.sampling.operators import row_sums
from millrace_worker.sampling.workspace import Workspace

FLOAT32_MAX = torch.finfo(torch.float32).max

# A distribution mostly narrows to fewer tokens than these; finding them costs a fraction of sorting all.
HEAD = 64

# A search over sorted tokens asks about this many at once: fewer, larger operators.
BRANCHES = 16


@dataclass(frozen=True)
class Limits:
    """The parameters of S rows, [S, 1] each: int64 `top_k` (0: off), float32 the others; `spread` is -log(min_p).

    `any_typical`: whether any row uses typical-p.
    """

    top_k: Tensor
    top_p: Tensor
    typical_p: Tensor
    spread: Tensor
    any_typical: bool

    def select(self, places: Tensor) -> Limits:
        parts = (part.index_select(0, places) for part in (self.top_k, self.top_p, self.typical_p, self.spread))
        return Limits(*parts, any_typical=self.any_typical)


@dataclass(frozen=True)
class Sorted:
    """`gaps` float32 [S, K] ascending, of a vocabulary of V; `weights` float32 [S, K], proportional to exp(-gaps).

    `sums` float64 [S, K + 1]: of the first 0 .. K weights. `total` [S, 1]: of all V, read for rows without top-k only.
    """

    gaps: Tensor
    weights: Tensor
    sums: Tensor
    total: Tensor
    whole: bool  # K = V


@dataclass(frozen=True)
class Kept:
    """Tokens `first` .. `end` of each row in the order of the gaps: all whose gap is from `near` to `far`.

    `first`, `end` int64, `near`, `far` float32, `mass` float64, the sum of their weights: [S, 1]. `certain` bool: what
    is kept ends within the gaps that were given.
    """

    first: Tensor
    end: Tensor
    near: Tensor
    far: Tensor
    mass: Tensor
    certain: Tensor


def narrow(given: Sorted, limits: Limits, workspace: Workspace) -> Kept:
    """Top-k, top-p, typical-p and min-p, each on what the one before left. Rows of NaN keep something in range."""
    gaps_SK, width = given.gaps, given.gaps.shape[1]
    end, certain, at_least = _top(given, limits)
    first = torch.zeros_like(end)
    is_typical = limits.typical_p < 1
    if limits.any_typical:
        ball_first, ball_end = _typical(given, end, limits.typical_p, workspace)
        first, end = torch.where(is_typical, ball_first, first), torch.where(is_typical, ball_end, end)
    near = gaps_SK.gather(1, first)
    end_spread = torch.searchsorted(gaps_SK, near + limits.spread, right=True)
    # A cut within the given gaps is certain when top-k and top-p end later; typical-p must know where.
    certain = certain | at_least & (end_spread < width) & ~is_typical
    end = torch.minimum(end, end_spread).clamp_(min=1)
    far = gaps_SK.gather(1, end - 1)
    return Kept(first, end, near, far, given.sums.gather(1, end) - given.sums.gather(1, first), certain)


def _top(given: Sorted, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
    """How many tokens top-k (Fan et al. 2018) and then top-p (Holtzman et al. 2020) keep.

    Top-k keeps the k best and those equal to the k-th; top-p the fewest best whose share of what is left reaches p,
    and those equal to the last of them. Also whether that is certain, and whether it is certain that they keep no less.
    """
    gaps_SK, width = given.gaps, given.gaps.shape[1]
    has_k = limits.top_k > 0
    kth = gaps_SK.gather(1, limits.top_k.clamp(1, width) - 1)
    end_k = torch.where(has_k, torch.searchsorted(gaps_SK, kth, right=True), width).clamp_(min=1)
    certain_k = has_k & (end_k < width) | given.whole
    total = torch.where(has_k, given.sums.gather(1, end_k), given.total)
    reaching = torch.minimum(torch.searchsorted(given.sums, total * limits.top_p), end_k).clamp_(min=1)
    end_p = torch.searchsorted(gaps_SK, gaps_SK.gather(1, reaching - 1), right=True).clamp_(min=1)
    uses_p = limits.top_p < 1
    known_total = certain_k | ~has_k
    end = torch.where(uses_p & known_total, torch.minimum(end_p, end_k), end_k)
    certain = torch.where(uses_p, known_total & (certain_k | (end_p < width)), certain_k)
    return end, certain, known_total | ~uses_p


def _typical(given: Sorted, end: Tensor, mass_S1: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """The tokens of the first `end` whose information is closest to the entropy and reaches the mass: first and end.

    Meister et al. 2023 (Locally Typical Sampling). A token's information less the entropy is its gap less the mean gap
    m, so the tokens are those in the smallest ball around m. An interval that begins at token a and reaches the mass
    ends at a token b(a): the distance of b from m grows with a, that of a falls. Where they cross, found by a search,
    the larger of the two is smallest.
    """
    gaps_SK, width = given.gaps, given.gaps.shape[1]
    total = given.sums.gather(1, end)
    mean = _mean_gap(given, end, workspace) / total
    needed = total * mass_S1

    def distances(begin: Tensor) -> tuple[Tensor, Tensor]:
        """From the mean: of token `begin`, and of the last token of the shortest interval from there."""
        reached = torch.searchsorted(given.sums, given.sums.gather(1, begin) + needed)
        # The smallest share may be lost in the sum: an interval holds the token it begins at.
        reached = torch.maximum(reached, begin + 1)
        last = gaps_SK.gather(1, (reached - 1).clamp_(max=width - 1))
        return mean - gaps_SK.gather(1, begin), torch.where(reached > end, torch.inf, last - mean)

    low = torch.zeros_like(end)
    high = torch.minimum(torch.searchsorted(gaps_SK, mean.float()), end - 1)  # crossed there: this gap is not below m
    steps = torch.arange(BRANCHES, device=end.device)
    reach = 1
    while reach <= width:  # low .. high shrinks to a BRANCHES-th in every round
        reach *= BRANCHES
        tried = low + ((high - low) * steps).div_(BRANCHES, rounding_mode="floor")
        begins, ends = distances(tried)
        before = (ends < begins).sum(dim=1, keepdim=True)
        low, high = (
            torch.where(before > 0, tried.gather(1, (before - 1).clamp_(min=0)) + 1, low),
            torch.where(before < BRANCHES, tried.gather(1, before.clamp(max=BRANCHES - 1)), high),
        )
    _, radius = distances(high)
    earlier, _ = distances((high - 1).clamp_(min=0))
    radius = torch.where(high > 0, torch.minimum(radius, earlier), radius)
    # The bounds are tokens' own gaps, to which float32 rounds them.
    first = torch.minimum(torch.searchsorted(gaps_SK, (mean - radius).float()), end - 1)
    last = torch.searchsorted(gaps_SK, (mean + radius).float(), right=True)
    return first, torch.minimum(torch.maximum(last, first + 1), end)


def _mean_gap(given: Sorted, end: Tensor, workspace: Workspace) -> Tensor:
    """[S, 1]: the sum of weight * gap of the first `end` tokens, in float64."""
    width = given.gaps.shape[1]
    shape = given.gaps.shape
    # A gap may be infinite, of weight 0.
    weighted_SK = torch.clamp(given.gaps, max=FLOAT32_MAX, out=workspace.take("weighted", shape)).mul_(given.weights)
    columns = torch.arange(width, device=end.device, dtype=torch.float32, out=workspace.take("columns", (width,)))
    before_SK = torch.lt(columns, end.float(), out=workspace.take("before", shape))
    return row_sums(weighted_SK.mul_(before_SK)).double()
