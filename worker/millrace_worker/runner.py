"""One step on the device: forward, prompt logprobs in bounded slices, sampling, the chosen ids back into the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from millrace_worker.sampling import PromptScores, SampleContext, Sampled, sample

if TYPE_CHECKING:
    from millrace_worker.distributed import Group
    from millrace_worker.inputs import PromptInputs, StepInputs
    from millrace_worker.model import Model
    from millrace_worker.rows import Rows

# Float32 logits that may exist at once for prompt logprobs: 64 MiB, 512 positions of a vocabulary of 32,768.
PROMPT_LOGITS_BYTES = 64 << 20


@dataclass(frozen=True)
class Forwarded:
    """`logits` [R, V] float32 of the sampled entries (None without any, and on ranks other than 0).

    `prompt`: None when nobody asked, and on ranks other than 0.
    """

    logits: torch.Tensor | None
    prompt: PromptScores | None


class Runner:
    """Runs steps of one model on one set of rows."""

    def __init__(self, model: Model, rows: Rows, group: Group) -> None:
        self._model = model
        self._rows = rows
        self._group = group
        self._prompt_slice = max(1, PROMPT_LOGITS_BYTES // (4 * model.vocab_size))

    def forward(self, inputs: StepInputs) -> Forwarded:
        """K and V of every token into the pool; logits only where somebody reads them."""
        model = self._model
        self._rows.grammars.begin(inputs.sampled_rows, inputs.sampled_positions)
        step = model.plan(inputs.batch)
        hidden_TD = model.hidden(inputs.token_ids, inputs.positions, step)
        logits_RV = None
        if inputs.store_index is not None:
            read_RD = hidden_TD if inputs.logits_index is None else hidden_TD.index_select(0, inputs.logits_index)
            logits_RV = model.logits(read_RD)
        prompt = self._prompt_scores(hidden_TD, inputs.prompt) if inputs.prompt else None
        return Forwarded(logits_RV, prompt)

    def _prompt_scores(self, hidden_TD: torch.Tensor, prompt: PromptInputs) -> PromptScores | None:
        """Log-softmax of the raw scores at the next token, slice by slice: never more than a slice of logits exists.

        No number (null, to clients) where the model has nothing to say of its prompt.
        """
        num_top = min(int(prompt.num_top.max()), self._model.vocab_size)
        if "prompt_logprobs" in self._model.missing:
            nothing = torch.full(prompt.targets.shape, torch.nan)
            return PromptScores(nothing, torch.empty(len(nothing), 0, dtype=torch.int64), torch.empty(len(nothing), 0))
        slices = zip(
            prompt.hidden_index.split(self._prompt_slice), prompt.targets.split(self._prompt_slice), strict=True
        )
        chosen = []
        for index, targets in slices:
            logits_PV = self._model.logits(hidden_TD.index_select(0, index))  # collective: every rank takes part
            if logits_PV is not None:
                mass_P1 = logits_PV.logsumexp(dim=1, keepdim=True)
                scores_P1 = logits_PV.gather(1, targets[:, None])
                top = logits_PV.topk(num_top, dim=1)
                chosen.append(((scores_P1 - mass_P1).squeeze(1), top.indices, top.values - mass_P1))
        return PromptScores(*map(torch.cat, zip(*chosen, strict=True))) if chosen else None

    def sample(self, logits_RV: torch.Tensor | None, inputs: StepInputs) -> Sampled | None:
        """Chooses on rank 0, tells the ids to all ranks, stores them in the rows. None when nothing was sampled.

        Ranks other than 0 get None too: they only need the ids on their device.
        """
        if inputs.store_index is None:
            return None
        rows, sampled = self._rows, None
        if logits_RV is not None:
            context = SampleContext(inputs.sampled_rows, inputs.sampled_positions, rows.token_ids)
            rows.grammars.apply(logits_RV)
            sampled = sample(logits_RV, context, rows.sampling)
            ids_R = sampled.token_ids
            rows.grammars.advance(ids_R)
        else:
            ids_R = torch.empty_like(inputs.store_index)
        if self._group.size > 1:
            self._group.broadcast(ids_R)
        rows.flat_token_ids.index_copy_(0, inputs.store_index, ids_R)
        return sampled
