"""T5 in its forms gives what transformers gives, whatever the chunks of a prompt, the neighbours and a row's past."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.models.architectures import describe_encoder_decoder
from millrace_worker.models.encoder_decoder.load import load_encoder_decoder
from millrace_worker.models.encoder_decoder.model import EncoderDecoderModel
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.step import Batch

from .checkpoints import Saved

VOCAB, MAX_ROWS, MAX_TOKENS = 99, 4, 90
COMMON = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "d_kv": 24,
    "d_ff": 96,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 3,
    "dropout_rate": 0.0,
}
CASES = ("t5", "t5, 1.1", "mt5")


def expected(of: Saved, tokens: list[int], prompt: int) -> torch.Tensor:
    """[len - prompt + 1, VOCAB]: what follows the prompt, and each later token."""
    return of.logits(tokens, prompt)[prompt - 1 :]


class RowsRun:
    """Sequences enter rows, compute in random chunks beside one another, and leave what they had behind."""

    def __init__(self, model: EncoderDecoderModel, seed: int) -> None:
        self.model, self.random = model, random.Random(seed)
        model.allocate_rows(MAX_ROWS, MAX_TOKENS)
        self.table = np.zeros((MAX_ROWS, 0), dtype=np.int32)

    def logits(self, sequences: list[tuple[list[int], int]]) -> list[torch.Tensor]:
        """Per sequence (tokens, length of its prompt), from the prompt's last token on."""
        waiting, free = list(range(len(sequences))), list(range(MAX_ROWS))
        running: dict[int, int] = {}
        done = [0] * len(sequences)
        found: list[list[torch.Tensor]] = [[] for _ in sequences]
        while waiting or running:
            while waiting and free and self.random.random() < 0.7:
                running[waiting.pop(0)] = free.pop(self.random.randrange(len(free)))
            work = []
            for sequence in self.random.sample(list(running), len(running)):
                left = len(sequences[sequence][0]) - done[sequence]
                count = 1 if self.random.random() < 0.5 else min(left, self.random.randint(2, 24))
                if self.random.random() < 0.8:
                    work.append((sequence, running[sequence], done[sequence], count))
            if work:
                self.step(sequences, work, found)
            for sequence, row, _, count in work:
                done[sequence] += count
                if done[sequence] == len(sequences[sequence][0]):
                    free.append(row)
                    del running[sequence]
        return [torch.cat(parts) if parts else torch.empty(0) for parts in found]

    def step(self, sequences: list[tuple[list[int], int]], work: list[tuple[int, int, int, int]], found: list) -> None:
        ids = [token for s, _, start, count in work for token in sequences[s][0][start : start + count]]
        positions = [at for _, _, start, count in work for at in range(start, start + count)]
        batch = Batch(
            rows=np.array([row for _, row, _, _ in work]),
            starts=np.array([start for _, _, start, _ in work]),
            counts=np.array([count for *_, count in work]),
            num_prompt_tokens=np.array([sequences[s][1] for s, *_ in work]),
            page_table=torch.from_numpy(self.table),
            page_table_host=self.table,
        )
        hidden = self.model.hidden(torch.tensor(ids), torch.tensor(positions), self.model.plan(batch))
        at = 0
        for sequence, _, start, count in work:
            first = max(start, sequences[sequence][1] - 1)
            logits = self.model.logits(hidden[at + first - start : at + count])
            if logits is not None and len(logits):
                found[sequence].append(logits)
            at += count


def random_sequences() -> list[tuple[list[int], int]]:
    """Prompts and answers of some lengths: buckets of distances of all kinds, one token too."""
    lengths = [(1, 0), (30, 11), (17, 40), (2, 5), (60, 1), (23, 24)]
    return [(torch.randint(VOCAB, (prompt + more,)).tolist(), prompt) for prompt, more in lengths]


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_in_random_chunks_beside_others(
    case: str, kernels: str, saved: Callable[[str], Saved]
) -> None:
    reference = saved(case)
    machine = cpu_kernels.find(kernels, 1)
    model = load_encoder_decoder(
        reference.folder, dtype=torch.float32, device=torch.device("cpu"), group=Group(), kernels=machine
    )
    seed, sequences = random.randrange(2**32), random_sequences()
    for (tokens, prompt), logits in zip(sequences, RowsRun(model, seed).logits(sequences), strict=True):
        wanted = expected(reference, tokens, prompt)
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-5, msg=lambda m: f"{seed=} {m}")


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"feed_forward_proj": "doubly-gated-gelu"}, "feed_forward_proj"),
        ({"feed_forward_proj": "gated-softplus"}, "softplus"),
        ({"decoder_start_token_id": VOCAB}, "decoder_start_token_id"),
        ({"relative_attention_num_buckets": 6}, "relative_attention_num_buckets"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(over: dict[str, Any], message: str) -> None:
    config = ModelConfig(COMMON | {"architectures": ["T5ForConditionalGeneration"]} | over)
    with pytest.raises(ConfigError, match=message):
        describe_encoder_decoder(config)


def test_older_configurations_say_by_the_tie_whether_scores_are_scaled() -> None:
    named = COMMON | {"architectures": ["T5ForConditionalGeneration"]}
    scales = {
        tied: describe_encoder_decoder(ModelConfig(named | {"tie_word_embeddings": tied}))[0].ends.logit_scale
        for tied in (True, False)
    }
    assert scales == {True: 64**-0.5, False: 1.0}
    newer = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert describe_encoder_decoder(ModelConfig(named | newer))[0].ends.logit_scale == 1.0


def test_a_row_costs_what_the_model_says(saved: Callable[[str], Saved]) -> None:
    """For each token and layer of the decoder K and V of one place, of the prompt or of the answer; and its id."""
    folder = saved("t5").folder
    for rank in range(2):
        group = Group(rank=rank, size=2)
        model = load_encoder_decoder(folder, dtype=torch.bfloat16, device=torch.device("cpu"), group=group)
        assert model.row_bytes(50) == 50 * (2 * 2 * 2 * 24 * 2 + 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
def test_half_precision_is_as_near_as_transformers(
    kernels: str, dtype: torch.dtype, saved: Callable[[str], Saved]
) -> None:
    reference = saved("t5, 1.1")
    machine = cpu_kernels.find(kernels, 1)
    model = load_encoder_decoder(
        reference.folder, dtype=dtype, device=torch.device("cpu"), group=Group(), kernels=machine
    )
    sequences = random_sequences()
    theirs = copy.deepcopy(reference.reference)
    torch.nn.Module.to(theirs, dtype)
    halved = Saved(reference.folder, theirs)
    wanted = torch.cat([expected(reference, *sequence) for sequence in sequences])
    rounded = torch.cat([expected(halved, *sequence).float() for sequence in sequences])
    found = torch.cat(RowsRun(model, 3).logits(sequences))
    assert (found - wanted).square().mean() < 1.5 * (rounded - wanted).square().mean()
