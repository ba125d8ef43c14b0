"""What parity means: the logits of transformers at every position of a ragged batch, and its ids, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoints import Saved

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Trial:
    """Sequences to run, the last of them a prompt with transformers' greedy continuation, one token at a time.

    If each id of it is the best of the logits before it, then the model that is tried says the same on its own.
    """

    sequences: list[list[int]]
    prompts: dict[int, int]  # of a sequence: its length before it grows by one token at a time
    expected: list[Tensor]
    clear: list[int]  # so many leading positions of each have but one right answer

    @classmethod
    def of(cls, saved: Saved, sequences: list[list[int]]) -> Trial:
        greedy = saved.greedy
        every, prompts = [*sequences, greedy.tokens], saved.prompts(sequences) | {len(sequences): greedy.prompt}
        expected = [saved.logits(tokens, prompts.get(i)) for i, tokens in enumerate(every)]
        clear = [saved.num_clear(tokens) for tokens in every]
        assert 2 * sum(clear) > sum(map(len, every)), f"too few positions have one right answer: {clear}"
        return cls(every, prompts, expected, clear)

    def difference(self, found: Sequence[Tensor]) -> float:
        """The greatest difference of a logit; NaN (of a page that nobody filled) is infinite."""
        pairs = zip(found, self.expected, self.clear, strict=True)
        most = torch.stack([(ours - theirs)[:clear].abs().max() for ours, theirs, clear in pairs if clear]).max()
        return float(most.nan_to_num(nan=torch.inf))

    def same_ids(self, found: Sequence[Tensor]) -> bool:
        which = len(self.sequences) - 1
        prompt = self.prompts[which]
        return found[which][prompt - 1 : -1].argmax(-1).tolist() == self.sequences[which][prompt:]

    def check(self, found: Sequence[Tensor], label: str) -> None:
        shapes = [tuple(ours.shape) for ours in found]
        assert shapes == [tuple(theirs.shape) for theirs in self.expected], f"{label}: {shapes}"
        difference = self.difference(found)
        assert difference <= TOLERANCE, f"{label}: logits differ by {difference:.2e}"
        assert self.same_ids(found), f"{label}: other ids than transformers"
