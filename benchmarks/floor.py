"""The floor: paged attention hooked into transformers, in process, without a server.

`python -m benchmarks.floor MODEL` is asked as `benchmarks/lines.py` says; the prompts of a batch have one length.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from benchmarks import lines

PAGE = 16


class Pool:
    """K and V of every layer, addressed by slot; sequence i owns a run of pages."""

    def __init__(self, config: Any, streams: int, longest: int, dtype: torch.dtype):
        self.pages = -(-longest // PAGE)
        head_dim = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, streams * self.pages * PAGE, config.num_key_value_heads, head_dim)
        self.k, self.v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.base = torch.arange(streams) * self.pages * PAGE


def paged(module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, **step: Any) -> tuple[Tensor, None]:
    """q [1, heads, streams x count, head_dim]; every stream computes positions start .. start + count."""
    pool, start = step["pool"], step["start"]
    streams = len(pool.base)
    count = q.shape[2] // streams
    slots = (pool.base[:, None] + torch.arange(start, start + count)).flatten()
    keys, values = pool.k[module.layer_idx], pool.v[module.layer_idx]
    keys[slots], values[slots] = k[0].transpose(0, 1), v[0].transpose(0, 1)
    read = pool.base[:, None] + torch.arange(start + count)
    q = q[0].unflatten(1, (streams, count)).transpose(0, 1)
    gathered = (keys[read].transpose(1, 2), values[read].transpose(1, 2))
    out = F.scaled_dot_product_attention(q, *gathered, is_causal=count > 1, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1)[None], None


def run(model: Any, prompts: Tensor, new_tokens: int) -> lines.Ran:
    """A greedy batch; prompts [streams, length], all computed at once, then token by token."""
    streams, length = prompts.shape
    pool = Pool(model.config, streams, length + new_tokens, model.dtype)
    generated: list[Tensor] = []
    first = 0.0
    started = time.perf_counter()
    with torch.no_grad():
        ids, start = prompts, 0
        for _ in range(new_tokens):
            count = ids.shape[1]
            logits = model(
                input_ids=ids.reshape(1, -1),
                position_ids=torch.arange(start, start + count).repeat(streams)[None],
                use_cache=False,
                logits_to_keep=torch.arange(count - 1, streams * count, count),
                pool=pool,
                start=start,
            ).logits[0]
            ids, start = logits.argmax(-1)[:, None], start + count
            generated.append(ids)
            first = first or time.perf_counter() - started
    seconds = time.perf_counter() - started
    return lines.Ran(seconds, [first] * streams, torch.cat(generated, 1).tolist())


def main(folder: Path) -> None:
    AttentionInterface.register("floor", paged)
    AttentionMaskInterface.register("floor", lambda *_, **__: None)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="floor", dtype="auto").eval()
    lines.answer(lambda prompts, new_tokens: run(model, torch.tensor(prompts), new_tokens))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
