"""What the attention of a model's layers is, learned from the calls that one trial forward pass makes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace_worker.attention.interface import AttentionBackend, Heads, ScoreRule
from millrace_worker.models.hosted.hook import RULE, MaskRule

# A rule is looked at up to this position.
FARTHEST = 1 << 20

# Arguments of the interface that are read here, or change nothing for an inference over positions.
HARMLESS = frozenset(
    {"scaling", "sliding_window", "softcap", "s_aux", "dropout", "position_ids", "position_embeddings"}
    | {"cache_position", "use_cache", "past_key_values", "layer_head_mask", "output_attentions"}
    | {"output_hidden_states", "output_router_logits", "is_causal", "logits_to_keep", "return_dict"}
    | {"deterministic", "training"}
)


class HookError(ValueError):
    """The model's attention cannot run over pages; the message says why."""


class LayerRecorder:
    """An attention (`hook.Attention`) that takes down each call and answers with causal attention over the call's own
    tokens: right enough to reach the next layer."""

    def __init__(self, max_positions: int) -> None:
        self.heads: list[Heads] = []
        self.modules: list[nn.Module] = []
        self._max_positions = min(max_positions, FARTHEST)

    def __call__(
        self, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        if any(each is module for each in self.modules):
            raise HookError(f"{type(module).__name__} attends more than once in a forward pass")
        window = self._window(module, mask, options)
        self.heads.append(_heads(len(self.heads), module, qkv, options | {"sliding_window": window}))
        self.modules.append(module)
        q, k, v = qkv
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).contiguous()

    def _window(self, module: nn.Module, mask: Tensor | None, options: dict[str, Any]) -> int | None:
        """How many positions a query sees, its own included; None: all. Raises HookError for other rules."""
        name = type(module).__name__
        causal = options.get("is_causal")
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            raise HookError(f"{name} looks at later tokens too")
        if mask is None:
            return options.get("sliding_window")
        rule = getattr(mask, RULE, None)
        if rule is None:
            raise HookError(f"{name} masks its attention in a way of its own")
        windows = {_window_at(rule, query, self._max_positions) for query in self._far_queries()}
        if len(windows) > 1 or None in windows:
            raise HookError(f"{name} sees other tokens than the latest ones")
        window = windows.pop()
        return None if window == self._max_positions else window

    def _far_queries(self) -> list[int]:
        """Odd places, so that a rule of blocks or chunks shows."""
        last = self._max_positions - 1
        return [last, last - last // 5, last - last // 3]


def _window_at(rule: MaskRule, query: int, no_window: int) -> int | None:
    """How many of the latest positions a query sees; `no_window` when all; None when it is others."""
    keys = torch.arange(query + 1)
    seen = rule(0, 0, torch.full_like(keys, query), keys).expand(query + 1).flip(0)
    later = rule(0, 0, torch.full_like(keys, query), keys + query + 1)
    count = int(seen.sum())
    if not seen[:count].all() or later.any():
        return None
    return no_window if count == query + 1 else count


def _heads(layer: int, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], options: dict[str, Any]) -> Heads:
    """Raises HookError for what our attention does not compute."""
    q, k, v = qkv
    name = type(module).__name__
    if q.shape[2] != k.shape[2] or k.shape[:3] != v.shape[:3] or q.shape[1] % k.shape[1]:
        raise HookError(f"{name} has queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)}")
    if q.shape[3] != k.shape[3] or v.shape[3] > k.shape[3]:
        raise HookError(f"{name} has heads of {q.shape[3]}, {k.shape[3]} and {v.shape[3]} dimensions")
    sinks = options.get("s_aux")
    if sinks is not None and sinks.shape != q.shape[1:2]:
        raise HookError(f"{name} has attention sinks {tuple(sinks.shape)} for {q.shape[1]} heads")
    for key, value in options.items():
        if key not in HARMLESS and isinstance(value, Tensor):
            raise HookError(f"{name} hands {key!r} to its attention, which pages know nothing of")
    scale, window, softcap = options.get("scaling"), options.get("sliding_window"), options.get("softcap")
    return Heads(
        layer=layer,
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[3],
        scale=q.shape[3] ** -0.5 if scale is None else float(scale),
        rule=ScoreRule(int(window) if window else None, float(softcap) if softcap else None),
        sinks=None if sinks is None else tuple(sinks.float().tolist()),
    )


def check_alike(heads: list[Heads]) -> None:
    """Raises HookError unless the layers' keys and values have one size, as the pool needs."""
    if not heads:
        raise HookError("its attention does not go through transformers' attention interface")
    widths = sorted({each.width for each in heads})
    if len(widths) > 1:
        raise HookError(f"its layers keep {widths} values per token, and pages hold one size")


class PagedAttention:
    """An attention (`hook.Attention`) over the pages of `backend`, for the step that was set last."""

    def __init__(self, recorder: LayerRecorder, backend: AttentionBackend, qkv_dtype: torch.dtype) -> None:
        self.step: Any = None
        self._backend, self._dtype = backend, qkv_dtype
        self._heads = {id(module): heads for module, heads in zip(recorder.modules, recorder.heads, strict=True)}
        self._modules = recorder.modules  # alive as long as their ids count

    def __call__(
        self, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        del mask, options  # as they were when the layer was recorded
        q, k, v = qkv
        heads, size = self._heads[id(module)], v.shape[3]
        if size < heads.head_dim:  # zeros beside the values: their part of the result is left out
            v = F.pad(v, (0, heads.head_dim - size))
        parts = (q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1))
        qkv_TC = torch.cat(parts, dim=1).to(self._dtype).view(q.shape[2], -1)
        attended = self._backend.attend(heads, qkv_TC, None, self.step)
        return attended.view(1, q.shape[2], heads.num_heads, heads.head_dim)[..., :size].to(q.dtype)
