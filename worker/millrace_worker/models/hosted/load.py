"""From a folder to a served model of transformers: over pages where its attention can be hooked, else by rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from millrace_worker.layers.operators import choose_operators
from millrace_worker.models.hosted import hook
from millrace_worker.models.hosted.layers import HookError, LayerRecorder, PagedAttention, check_alike
from millrace_worker.models.hosted.library import HostedAsk, load_library_model, read_config
from millrace_worker.models.hosted.paged import Body, PagedModel, Size
from millrace_worker.models.hosted.trial import TOLERANCE, difference, own_scores, served_scores, trial_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from millrace_worker.cpu_kernels import Machine

# The longest sequence of a model whose configuration names none.
UNSTATED_POSITIONS = 1 << 15
# Rotary frequencies that are computed from the longest sequence in the batch.
BY_LENGTH = ("dynamic", "longrope")


def load_hosted(ask: HostedAsk, kernels: Machine | None) -> PagedModel:
    """Raises ConfigError or ShardingError, both ValueErrors that say what is wrong and what to do."""
    config = read_config(ask)
    model = load_library_model(ask, config)
    tokens = trial_tokens(config.get_text_config().vocab_size, ask.device)
    expected = own_scores(model, tokens)
    size = Size(vocab=expected.shape[-1], max_positions=max_positions(config))
    return _Hooking(ask, model, size, kernels).run(tokens, expected)


def max_positions(config: PretrainedConfig) -> int:
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else UNSTATED_POSITIONS


class _Hooking:
    """One attempt to run a model's attention over pages."""

    def __init__(self, ask: HostedAsk, model: PreTrainedModel, size: Size, kernels: Machine | None) -> None:
        self._ask, self._model, self._size, self._kernels = ask, model, size, kernels

    def run(self, tokens_T: Tensor, expected_TV: Tensor) -> PagedModel:
        """Raises HookError when the model cannot be hooked, or gives other scores then."""
        self._check_positions()
        hook.register()
        body = Body(self._model)
        recorder = LayerRecorder(self._size.max_positions)
        self._attend_with(hook.RECORDING, recorder)
        with torch.inference_mode():
            positions = torch.arange(len(tokens_T), device=tokens_T.device)
            body.hidden(tokens_T, positions)
        check_alike(recorder.heads)
        operators = choose_operators(self._kernels, recorder.heads, self._ask.dtype, self._ask.device)
        attention = PagedAttention(recorder, operators.backend, operators.qkv_dtype)
        self._attend_with(hook.PAGED, attention)
        paged = PagedModel(body, attention, operators.backend, self._size)
        paged.is_first_rank = self._ask.group.rank == 0
        paged.allocate_kv(2)
        self._compare(served_scores(paged, tokens_T), expected_TV)
        return paged

    def _check_positions(self) -> None:
        rope = getattr(self._model.config.get_text_config(), "rope_parameters", None) or {}
        for each in (rope, *rope.values()):
            kind = each.get("rope_type") if isinstance(each, dict) else None
            if kind in BY_LENGTH:
                raise HookError(f"its rotary frequencies ({kind}) depend on the longest sequence of a step")

    def _attend_with(self, name: str, attention: hook.Attention) -> None:
        hook.install(self._model, attention)
        self._model.set_attn_implementation(name)
        if self._model.config._attn_implementation != name:
            raise HookError("its attention does not go through transformers' attention interface")

    def _compare(self, found_TV: Tensor | None, expected_TV: Tensor) -> None:
        """Rank 0 knows; all ranks have to decide alike."""
        off = torch.zeros(1) if found_TV is None else torch.tensor([difference(found_TV, expected_TV)])
        off = float(self._ask.group.broadcast(off.to(self._ask.device)))
        if not off <= TOLERANCE[self._ask.dtype]:
            raise HookError(f"over pages it gives other scores than by itself (relative difference {off:.2g})")
