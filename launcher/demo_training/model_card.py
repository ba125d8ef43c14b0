"""The text of the demo model's card, with the numbers of the run that made it."""

from dataclasses import dataclass

from .corpus import HELD_OUT_SHARE
from .network import Shape


@dataclass(frozen=True)
class Quality:
    window: int  # tokens of context at most
    perplexity: float  # per token
    bits_per_byte: float  # the same, independent of the tokenizer


@dataclass(frozen=True)
class Measured:
    quality: tuple[Quality, ...]  # on the held-out files
    held_out_files: int
    held_out_tokens: int
    corpus_tokens: int  # one epoch
    training_tokens: int  # seen in the run
    num_parameters: int
    python_version: str


def model_card(shape: Shape, measured: Measured) -> str:
    quality = "\n".join(f"| {q.window} | {q.perplexity:.2f} | {q.bits_per_byte:.3f} |" for q in measured.quality)
    return f"""\
# Millrace demo model

A small language model of Python code that ships with Millrace, so that the server runs without a network:
`millrace-launcher --model-id demo`. It writes text that looks like Python. It knows nothing else, and what it writes is
rarely correct: it is there to try, test and measure the server.

## Architecture

`LlamaForCausalLM` of {measured.num_parameters / 1e6:.2f} million parameters in bfloat16:

| | |
| --- | --- |
| layers | {shape.num_layers} |
| hidden size | {shape.hidden_size} |
| attention heads | {shape.num_heads} of width {shape.head_dim}, over {shape.num_kv_heads} key-value heads |
| intermediate size | {shape.intermediate_size} |
| positions | {shape.max_positions}, rotary with base {shape.rope_theta:g} |
| vocabulary | {shape.vocab_size}; output matrix tied to the embedding |

The tokenizer is a byte-level BPE. `<s>` begins every text and `</s>` ends it; `<|user|>`, `<|assistant|>` and
`<|system|>` begin the messages of a chat.

## Data

The sources of the Python {measured.python_version} standard library without its tests and tables:
{measured.corpus_tokens:,} tokens, partly as files, partly as chats made from documented functions (the request is the
docstring and the answer the function, or the other way round). One file in {HELD_OUT_SHARE}, chosen by a hash of its
name, is held out, with all chats made of it. The run saw {measured.training_tokens:,} tokens.

## Quality

On {measured.held_out_files} held-out files ({measured.held_out_tokens:,} tokens), cut into windows:

| tokens per window | perplexity per token | bits per byte |
| --- | --- | --- |
{quality}

Measured on the weights as shipped (bfloat16, computed in float32).

Every eighth step was trained on windows of {shape.max_positions} tokens, so that long texts are modelled no worse than
short ones. Ends of lines and indentation are tokens of their own: a prompt may stop at any of them.

## Licence

The training text is Copyright © Python Software Foundation, under the PSF License Agreement (parts of it under the
licences that Python's own licence file lists). The weights were made from it by this project and come under the
project's licence; text that repeats the training data stays under the licence of the data.

## Making it again

    python -m demo_training.train

from the folder `launcher/` of the sources, with torch, numpy, tokenizers and safetensors: under 30 minutes on two CPU
cores. The seed is fixed. The same model comes out only on the same version of Python, because its sources are the
data, and up to the rounding of the machine's matrix kernels.
"""
