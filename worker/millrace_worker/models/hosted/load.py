"""From a folder to a served model of transformers: over pages where its attention can be hooked, else by rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from millrace_worker import logs
from millrace_worker.layers.operators import choose_operators
from millrace_worker.model import Model
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.hosted import hook
from millrace_worker.models.hosted.body import Body, body_of
from millrace_worker.models.hosted.layers import HookError, LayerRecorder, PagedAttention, check_alike
from millrace_worker.models.hosted.library import (
    HostedAsk,
    load_library_model,
    read_config,
    why_undivided,
)
from millrace_worker.models.hosted.operators import Replacer
from millrace_worker.models.hosted.paged import Facts, HostedPagedModel
from millrace_worker.models.hosted.quantized import check_quantization
from millrace_worker.models.hosted.rows import HostedRowModel
from millrace_worker.models.hosted.trial import (
    TOLERANCE,
    TRIAL_PAGES,
    difference,
    own_scores,
    served_scores,
    trial_tokens,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from millrace_worker.cpu_kernels import Machine

# The longest sequence of a model whose configuration names none.
UNSTATED_POSITIONS = 1 << 15
# Rotary frequencies that are computed from the longest sequence in the batch.
BY_LENGTH = ("dynamic", "longrope")


def load_hosted(ask: HostedAsk, kernels: Machine | None) -> Model:
    """Raises ConfigError or ShardingError, both ValueErrors that say what is wrong and what to do."""
    quantization = check_quantization(ModelConfig.read(ask.folder), ask.device, ask.group.size)
    config = read_config(ask)
    model = load_library_model(ask, config, quantization)
    tokens = trial_tokens(config.get_text_config().vocab_size, ask.device)
    scores = own_scores(model, tokens)
    facts = Facts(vocab_size=scores.shape[-1], max_positions=max_positions(config), group=ask.group)
    replacer = Replacer(kernels, ask.dtype)
    operators = replacer.replace(model, lambda: own_scores(model, tokens))
    tolerance = TOLERANCE[ask.dtype]
    if quantization is not None:
        operators["quantized linear"] = f"transformers ({quantization.label})"
        tolerance = quantization.tolerance(tolerance)
    hosting = _Hosting(ask, model, body_of(model), facts, _Trial(tokens, scores, tolerance))
    reason = why_undivided(model) if quantization is None else "quantized weights cannot be divided"
    undivided = {"tensor_parallelism": reason} if reason else {}
    own_attention = model.config._attn_implementation or "eager"
    try:
        served = hosting.over_pages(kernels)
        served.operators, served.missing = operators, {**served.missing, **undivided}
        return served
    except Exception as error:  # whatever it is, it says that this model's code and our attention do not fit
        reason = (
            str(error) if isinstance(error, HookError) else f"its attention cannot be hooked ({type(error).__name__})"
        )
        logs.info("not over pages", reason=reason, error=str(error))
    model.set_attn_implementation(own_attention)
    rows = hosting.by_rows(reason)
    rows.operators, rows.missing = operators, {**rows.missing, **undivided}
    return rows


def max_positions(config: PretrainedConfig) -> int:
    """The longest sequence. Frequencies that change with the length end it where they would change: what was computed
    before would have to be computed anew, which only the decoder by spec does."""
    text = config.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    longest = stated if isinstance(stated, int) and stated > 0 else UNSTATED_POSITIONS
    changes = [
        rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        for rope in _rope_parameters(config)
        if rope.get("rope_type") in BY_LENGTH
    ]
    return min([longest, *(each for each in changes if isinstance(each, int) and each > 0)])


def _rope_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Of all kinds of layers."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [each for each in (rope, *rope.values()) if isinstance(each, dict)]


@dataclass(frozen=True)
class _Trial:
    tokens: Tensor  # [T]
    scores: Tensor  # [T, V], what the model's own code makes of them
    tolerance: float  # how far served scores may be from these


@dataclass(frozen=True)
class _Hosting:
    ask: HostedAsk
    model: PreTrainedModel
    body: Body
    facts: Facts
    trial: _Trial

    def over_pages(self, kernels: Machine | None) -> HostedPagedModel:
        """Raises HookError when the model cannot be hooked or gives other scores then, and whatever its code raises."""
        self._check_kind()
        hook.register()
        recorder = LayerRecorder(self.facts.max_positions)
        self._attend_with(hook.RECORDING, recorder)
        tokens = self.trial.tokens
        with torch.inference_mode():
            self.body.hidden(tokens, torch.arange(len(tokens), device=tokens.device))
        check_alike(recorder.heads)
        operators = choose_operators(kernels, recorder.heads, self.ask.dtype, self.ask.device)
        attention = PagedAttention(recorder, operators.backend, operators.qkv_dtype)
        self._attend_with(hook.PAGED, attention)
        paged = HostedPagedModel(self.facts, self.body, attention, operators.backend)
        paged.allocate_kv(TRIAL_PAGES)
        off = self._difference(paged)
        if not off <= self.trial.tolerance:
            raise HookError(f"over pages it gives other scores than by itself ({self._told(off)})")
        logs.info("served as by its own code", trial=self._told(off))
        return paged

    def _check_kind(self) -> None:
        if getattr(self.model, "_is_stateful", False):
            raise HookError("it has recurrent layers, whose state is no page")
        for rope in _rope_parameters(self.model.config):
            kind = rope.get("rope_type")
            if kind in BY_LENGTH:
                raise HookError(f"its rotary frequencies ({kind}) depend on the longest sequence of a step")

    def _attend_with(self, name: str, attention: hook.Attention) -> None:
        hook.install(self.model, attention)
        self.model.set_attn_implementation(name)
        if self.model.config._attn_implementation != name:
            raise HookError("its attention does not go through transformers' attention interface")

    def by_rows(self, reason: str) -> HostedRowModel:
        """Raises ConfigError when not even single sequences, each with its cache, get the model's own scores."""
        off, problem = float("inf"), ""
        for takes_chunks in (True, False):
            rows = HostedRowModel(self.facts, self.body, reason, takes_chunks=takes_chunks)
            try:
                off = self._difference(rows)
            except Exception as error:
                problem = f": {error}"
                continue
            if off <= self.trial.tolerance:
                logs.info("served as by its own code", trial=self._told(off))
                rows.allocate_rows(0, 0)
                rows.weigh(self.trial.tokens)
                return rows
        raise ConfigError(
            f"{type(self.model).__name__} cannot be served: {reason}, and with a cache for each sequence it gives "
            f"other scores than without ({self._told(off)}){problem}"
        )

    def _told(self, off: float) -> str:
        return f"relative difference {off:.2g}, at most {self.trial.tolerance:.2g} is taken"

    def _difference(self, model: Model) -> float:
        """Between served and own scores. Rank 0 knows; all ranks have to decide alike."""
        found = served_scores(model, self.trial.tokens)
        off = torch.zeros(1) if found is None else torch.tensor([difference(found, self.trial.scores)])
        return float(self.ask.group.broadcast(off.to(self.ask.device)))
