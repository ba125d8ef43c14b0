"""OpenVINO GenAI's ContinuousBatchingPipeline, in process; run by the Python of its own environment.

`python -m benchmarks.peers.openvino_pipeline EXPORTED CACHE_TOKENS MAX_STREAMS [PROPERTY=VALUE …]`, asked as
`benchmarks/lines.py` says. Prompts are token ids: neither tokenizing nor detokenizing is in its time.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]
import openvino_genai as genai  # pyright: ignore[reportMissingImports]

from benchmarks import lines

CPU_BLOCK_TOKENS = 32  # the CPU plugin's size of a KV block


def run(pipeline: Any, prompts: list[list[int]], new_tokens: int) -> lines.Ran:
    # The models have no end-of-sequence, which it reads as -1 and refuses: it is given one, and told to pass over it.
    config = genai.GenerationConfig(max_new_tokens=new_tokens, do_sample=False, ignore_eos=True, eos_token_id=0)
    inputs = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
    generated: list[list[int]] = [[] for _ in prompts]
    first = [0.0] * len(prompts)
    started = time.perf_counter()
    handles = [pipeline.add_request(number, ids, config) for number, ids in enumerate(inputs)]
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for number, handle in enumerate(handles):
            if handle.can_read():
                generated[number] += [token for output in handle.read().values() for token in output.generated_ids]
                first[number] = first[number] or time.perf_counter() - started
    return lines.Ran(time.perf_counter() - started, first, generated)


def main(exported: str, cache_tokens: int, max_streams: int, properties: dict[str, str]) -> None:
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = -(-cache_tokens // CPU_BLOCK_TOKENS)
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = max_streams
    pipeline = genai.ContinuousBatchingPipeline(exported, scheduler, "CPU", properties, {})
    lines.answer(lambda prompts, new_tokens: run(pipeline, prompts, new_tokens))


if __name__ == "__main__":
    given = dict(pair.split("=", 1) for pair in sys.argv[4:])
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), given)
