"""Chooses the next token of every row of a batch at once.

    state = SamplingRows(max_rows, device)        # parameters of the sequences in the batch's rows
    state.set(row, parameters, num_prompt_tokens)
    sampled = sample(logits_RV, SampleContext(rows, positions, token_ids), state)

A chosen token is a pure function of (logits, parameters, seed, position, the sequence's tokens): nothing of the other
rows enters. Shapes: R rows that sample, V vocabulary, L tokens of the longest sequence, S rows that use a feature.
"""

from millrace_worker.sampling.choice import PromptScores, Sampled, TopTokens
from millrace_worker.sampling.context import SampleContext
from millrace_worker.sampling.rows import SamplingRows
from millrace_worker.sampling.sampler import sample
from millrace_worker.sampling.watermark import Watermark, green_list

__all__ = ["PromptScores", "SampleContext", "Sampled", "SamplingRows", "TopTokens", "Watermark", "green_list", "sample"]
