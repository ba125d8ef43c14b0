"""Which token of each row is taken: from the whole vocabulary, from the best few, or from a sorted whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling import choice, operators
from millrace_worker.sampling.choice import Found
from millrace_worker.sampling.narrowing import HEAD, Kept, Limits, Sorted, narrow
from millrace_worker.sampling.workspace import Workspace


@dataclass(frozen=True)
class Chosen:
    """Of S rows: `ids` int64, `logprobs` float32 [S], and the top tokens where asked."""

    ids: Tensor
    logprobs: Tensor
    top: Found | None = None


@dataclass(frozen=True)
class Asked:
    """What S rows ask for: limits, the keys int32 [S, 2] of those that draw, how many top tokens [S] (on the host)."""

    limits: Limits
    keys: Tensor | None
    wanted: NDArray[np.int64] | None

    def select(self, places: NDArray[np.int64], index: Tensor) -> Asked:
        """Some of the rows, `index` being `places` on the device."""
        return Asked(
            self.limits.select(index),
            None if self.keys is None else self.keys.index_select(0, index),
            None if self.wanted is None else self.wanted[places],
        )


@dataclass(frozen=True)
class Chooser:
    """Chooses from gaps float32 [S, V] (`narrowing`), contiguous. `words` int32 [V]: `noise.token_words`."""

    workspace: Workspace
    words: Tensor

    def open(self, gaps_SV: Tensor, asked: Asked) -> Chosen:
        """From the whole vocabulary: nothing narrows these rows."""
        weights_SV = operators.shares(gaps_SV, self.workspace.take("weights", gaps_SV.shape))
        log_mass_S1 = -weights_SV.amax(dim=1, keepdim=True).log()  # the best gap is 0
        if asked.keys is None:
            ids_S = operators.argmin(gaps_SV, self._ids(gaps_SV))
        else:
            ids_S = choice.draw(weights_SV, asked.keys, self.words, self.workspace)
        logprobs_S = _logprobs(gaps_SV.gather(1, ids_S[:, None]), log_mass_S1)
        if asked.wanted is None:
            return Chosen(ids_S, logprobs_S)
        least_S1 = choice.least_of_top(gaps_SV, asked.wanted)
        return Chosen(ids_S, logprobs_S, choice.within(gaps_SV, torch.zeros_like(least_S1), least_S1, log_mass_S1))

    def head(self, gaps_SV: Tensor, asked: Asked, *, needs_total: bool) -> Chosen:
        """From the best `HEAD` tokens where those are enough; the other rows are sorted as a whole. On CPUs."""
        gaps_SK, ids_SK = gaps_SV.topk(HEAD, dim=1, largest=False)
        weights_SK = torch.neg(gaps_SK, out=self.workspace.take("head_weights", gaps_SK.shape)).exp_()
        sums = self._sums("head_sums", weights_SK)
        total_S1 = sums[:, :1]
        if needs_total:
            shares_SV = operators.shares(gaps_SV, self.workspace.take("weights", gaps_SV.shape))
            total_S1 = shares_SV.amax(dim=1, keepdim=True).reciprocal()  # the best weight is 1
        given = Sorted(gaps_SK, weights_SK, sums, total_S1, whole=False)
        kept = narrow(given, asked.limits, self.workspace)
        chosen = self._choose_among(given, ids_SK, kept, asked)
        uncertain = np.flatnonzero(~kept.certain.numpy())
        if len(uncertain) == 0:
            return chosen
        index = torch.from_numpy(uncertain)
        rest = self.wide(gaps_SV.index_select(0, index), asked.select(uncertain, index))
        chosen.ids.index_copy_(0, index, rest.ids)
        chosen.logprobs.index_copy_(0, index, rest.logprobs)
        if chosen.top is None or rest.top is None:
            return chosen
        found = chosen.top.without(uncertain), Found(uncertain[rest.top.rows], rest.top.ids, rest.top.logprobs)
        return Chosen(chosen.ids, chosen.logprobs, choice.joined(found))

    def _choose_among(self, given: Sorted, ids_SK: Tensor, kept: Kept, asked: Asked) -> Chosen:
        """From candidates that are sorted by their gaps. Uses up their weights."""
        log_mass_S1 = kept.mass.log()
        if asked.keys is None:
            vocab_size = len(self.words)
            equal_SK = ids_SK.masked_fill(given.gaps != kept.near, vocab_size)
            ids_S, gaps_S1 = equal_SK.amin(dim=1).clamp_(max=vocab_size - 1), kept.near
        else:
            columns_K = torch.arange(HEAD, device=ids_SK.device)
            weights_SK = given.weights.mul_((columns_K >= kept.first) & (columns_K < kept.end))
            column_S1 = choice.draw(weights_SK, asked.keys, self.words[ids_SK], self.workspace)[:, None]
            ids_S, gaps_S1 = ids_SK.gather(1, column_S1)[:, 0], given.gaps.gather(1, column_S1)
        logprobs_S = _logprobs(gaps_S1, log_mass_S1)
        if asked.wanted is None:
            return Chosen(ids_S, logprobs_S)
        least_S1 = _least(given.gaps, kept, asked.wanted)
        found = choice.within(given.gaps, kept.near, least_S1, log_mass_S1)
        return Chosen(ids_S, logprobs_S, Found(found.rows, ids_SK.numpy()[found.rows, found.ids], found.logprobs))

    def wide(self, gaps_SV: Tensor, asked: Asked) -> Chosen:
        """From the whole vocabulary, sorted."""
        workspace, shape = self.workspace, gaps_SV.shape
        sorted_SV = operators.sort(gaps_SV, workspace.take("sorted", shape))
        weights_SV = operators.shares(sorted_SV, workspace.take("weights", shape))
        log_share_S1 = weights_SV[:, :1].double().log()  # of a weight of 1
        sums = self._sums("sums", weights_SV)
        kept = narrow(Sorted(sorted_SV, weights_SV, sums, sums[:, -1:], whole=True), asked.limits, workspace)
        mask_SV = workspace.take("mask", shape)
        if asked.keys is None:
            torch.eq(gaps_SV, kept.near, out=mask_SV)
            ids_S = operators.argmax(mask_SV, self._ids(gaps_SV))
        else:
            weights_SV = operators.shares(gaps_SV, weights_SV).mul_(torch.le(gaps_SV, kept.far, out=mask_SV))
            if asked.limits.any_typical:
                weights_SV.mul_(torch.ge(gaps_SV, kept.near, out=mask_SV))
            ids_S = choice.draw(weights_SV, asked.keys, self.words, workspace)
        log_mass_S1 = kept.mass.log() - log_share_S1
        logprobs_S = _logprobs(gaps_SV.gather(1, ids_S[:, None]), log_mass_S1)
        if asked.wanted is None:
            return Chosen(ids_S, logprobs_S)
        least_S1 = _least(sorted_SV, kept, asked.wanted)
        return Chosen(ids_S, logprobs_S, choice.within(gaps_SV, kept.near, least_S1, log_mass_S1))

    def _ids(self, gaps_SV: Tensor) -> Tensor:
        return self.workspace.take("drawn", (len(gaps_SV),), torch.int64)

    def _sums(self, name: str, weights_SK: Tensor) -> Tensor:
        rows, width = weights_SK.shape
        return operators.prefix_sums(weights_SK, self.workspace.take(name, (rows, width + 1), torch.float64))


def _logprobs(gaps_S1: Tensor, log_mass_S1: Tensor) -> Tensor:
    """float32 [S]."""
    return (-gaps_S1 - log_mass_S1)[:, 0].float()


def _least(gaps_SK: Tensor, kept: Kept, wanted_S: NDArray[np.int64]) -> Tensor:
    """The gap of the last top token among sorted ones: [S, 1]."""
    wanted_S1 = torch.from_numpy(wanted_S).to(gaps_SK.device)[:, None]
    return gaps_SK.gather(1, torch.minimum(kept.first + wanted_S1, kept.end).clamp_(min=1) - 1)
