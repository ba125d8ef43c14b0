"""Tiny random checkpoints of every case, made and saved by transformers as their families store them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .cases import CASES, COMMON, VOCAB, Case

__all__ = ["CASES", "VOCAB", "Case", "Greedy", "Saved", "save"]

PROMPTS, STEPS = 8, 24
PROMPT_LENGTH = 21  # longer than the contexts at which frequencies switch: one set of them holds for all steps
MIN_DISTINCT, MIN_LEAD = 8, 1e-3  # of the ids that follow; how far the chosen logit leads, ten times the tolerance
# Deviations of a matrix, times the root of the width, and of embeddings (half of it where the head is tied). A model of
# narrow matrices repeats one token for ever. The first is taken with which it does not.
WIDTHS = ((1.6, 0.1), (2.5, 0.1), (1.6, 0.3), (2.5, 0.3)) * 3
VECTOR = 0.2  # the deviation of what is added to norms and biases
NUDGE, THROWN = 2e-5, 0.01  # of an embedding's value, ten times what rounding does; of a logit
KEPT = ("A_log",)  # an exponent


@dataclass(frozen=True)
class Greedy:
    """A prompt and the ids that transformers says after it."""

    tokens: list[int]
    prompt: int  # how many of them are the prompt


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk and transformers' model of it, float32."""

    folder: Path
    reference: PreTrainedModel
    _known: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    @property
    def has_encoder(self) -> bool:
        """Then logits depend on where prompts end, and there are none before that."""
        return self.reference.config.is_encoder_decoder

    def prompts(self, sequences: list[list[int]]) -> dict[int, int]:
        """Where it matters which of the tokens are a prompt: some of each sequence."""
        return {i: -(-len(tokens) // 2) for i, tokens in enumerate(sequences)} if self.has_encoder else {}

    @torch.inference_mode()
    def logits(self, tokens: list[int], prompt: int | None = None) -> Tensor:
        """[len, VOCAB], computed once for each sequence; zeros where an encoder reads the prompt."""
        prompt = prompt or len(tokens)
        key = (*tokens, prompt)
        if key not in self._known:
            self._known[key] = self._forward(torch.tensor([tokens]), prompt)[0]
        return self._known[key]

    def _forward(self, ids: Tensor, prompt: int) -> Tensor:
        """[B, len, VOCAB]"""
        if not self.has_encoder:
            return self.reference(ids, use_cache=False).logits
        written = pad(ids[:, prompt:], (1, 0), value=self.reference.config.decoder_start_token_id)
        found = self.reference(input_ids=ids[:, :prompt], decoder_input_ids=written, use_cache=False).logits
        return pad(found, (0, 0, prompt - 1, 0))

    @torch.inference_mode()
    def num_clear(self, tokens: list[int]) -> int:
        """How many leading positions have logits that two slightly other embeddings do not throw far away. Beyond them
        the choice of a token's experts hangs by less than rounding may move it: either choice is right."""
        if not any("Router" in type(module).__name__ for module in self.reference.modules()):
            return len(tokens)
        embeds = self.reference.get_input_embeddings()(torch.tensor([tokens]))
        nudge = torch.randn_like(embeds) * NUDGE
        moved = torch.cat((embeds * (1 + nudge), embeds * (1 - nudge)))
        found = self.reference(inputs_embeds=moved, use_cache=False).logits
        thrown = ((found - self.logits(tokens)).abs() > THROWN).any(-1).any(0).nonzero()
        return int(thrown[0]) if len(thrown) else len(tokens)

    @cached_property
    def greedy(self) -> Greedy:
        """Of some prompts that which is followed by the most different ids, each ahead of the next best by far."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, VOCAB, (PROMPTS, PROMPT_LENGTH), generator=generator)
        lead = torch.full((PROMPTS,), torch.inf)
        with torch.inference_mode():
            for _ in range(STEPS):
                best = self._forward(ids, PROMPT_LENGTH)[:, -1].topk(2)
                lead = lead.minimum(best.values[:, 0] - best.values[:, 1])
                ids = torch.cat((ids, best.indices[:, :1]), dim=1)
        clear = [row for row, least in zip(ids.tolist(), lead.tolist(), strict=True) if least > MIN_LEAD]
        return Greedy(max(clear, key=lambda row: len(set(row[PROMPT_LENGTH:])), default=[]), PROMPT_LENGTH)

    @property
    def is_varied(self) -> bool:
        """Greedy text is more than a few tokens repeated."""
        return len(set(self.greedy.tokens[self.greedy.prompt :])) >= MIN_DISTINCT


def save(folder: Path, case: Case) -> Saved:
    """Every parameter is random, norms and biases too: none may be left out unnoticed."""
    names = CONFIG_MAPPING[case.model_type].attribute_map
    values = {names.get(key, key): value for key, value in {**COMMON, **case.over}.items()}
    config = AutoConfig.for_model(case.model_type, **values)
    seed = crc32(repr((case.model_type, dict(case.over))).encode())
    drawn = (Saved(folder, _draw(config, case, seed + index, *width)) for index, width in enumerate(WIDTHS))
    saved = next((each for each in drawn if each.is_varied), None)
    assert saved is not None, f"{case}: greedy text repeats itself, whatever the weights"
    saved.reference.save_pretrained(folder)
    _rename(folder / "model.safetensors", case)
    return saved


@torch.no_grad()
def _draw(config: PretrainedConfig, case: Case, seed: int, matrix: float, embedding: float) -> PreTrainedModel:
    torch.manual_seed(seed)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32, attn_implementation=case.reference).eval()
    if config.is_encoder_decoder and not config.tie_word_embeddings:  # transformers ties them all the same
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    embed = next(model.get_input_embeddings().parameters())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor is embed:
            tensor.normal_(std=embedding / 2 if config.tie_word_embeddings else embedding)
        elif (tensor.ndim == 1 and tensor.is_floating_point()) or name.endswith("bias"):
            tensor.add_(torch.randn_like(tensor), alpha=VECTOR)  # a parameter or not
        elif isinstance(tensor, torch.nn.Parameter) and not name.endswith(KEPT):
            tensor.normal_(std=matrix / config.hidden_size**0.5)
            if config.is_encoder_decoder and name.endswith(".q.weight"):
                tensor.mul_(config.d_kv**-0.5)  # nothing else scales the scores of T5
    return model


def _rename(path: Path, case: Case) -> None:
    if not case.stored:
        return
    stored = {}
    for name, tensor in load_file(path).items():
        for pattern, replacement in case.stored:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        assert name not in stored, name
        stored[name] = tensor
    save_file(stored, path, metadata={"format": "pt"})
