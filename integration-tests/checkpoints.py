"""Tiny random checkpoints with a tokenizer of their own, and transformers' answers to compare with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 512
SPECIAL = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    # Wide weights: a random model whose logits differ clearly, so that the argmax is no coin toss.
    "initializer_range": 0.1,
}
GATED = {"intermediate_size": 96, "num_key_value_heads": 2}
# One configuration per architecture; windows are short so that prompts leave them.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "mistral": GATED | {"sliding_window": 24},
    "qwen2": GATED,
    "qwen3": GATED | {"head_dim": 32},
    "gemma2": GATED | {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 16},
    "gpt2": {"n_inner": 96},
    "gpt_neox": {"intermediate_size": 96, "use_parallel_residual": True},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False, "alibi": False},
}
# Those whose sequences hold no pages: test_row_state.py.
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 32},
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 entries that adds `<s>`, trained once on this folder's sources. It is kept: trained anew,
    a word in one test would change the tokens of all others."""
    made = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast


def make(folder: Path, architecture: str = "llama", **over: Any) -> Path:
    """Writes a random float32 checkpoint of that architecture into `folder`."""
    values = SIZES | (ARCHITECTURES | RECURRENT)[architecture] | over
    if architecture == "gpt2":
        values = {GPT2_NAMES.get(key, key): value for key, value in values.items()}
    torch.manual_seed(len(architecture))
    config = AutoConfig.for_model(architecture, **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    embed_template(folder)
    return folder


def embed_template(folder: Path) -> None:
    """Keeps the chat template inside tokenizer_config.json, as most checkpoints do."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"chat_template": TEMPLATE}), encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)


class Reference:
    """The same checkpoint in transformers, float32, on its SDPA path."""

    def __init__(self, folder: Path):
        is_eager = any(name in str(folder) for name in ("gemma2", *RECURRENT))
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager" if is_eager else "sdpa"
        ).eval()

    @torch.no_grad()
    def greedy(self, prompt: list[int], steps: int) -> tuple[list[int], list[float]]:
        """Greedy continuation, end-of-sequence stopping it, and the logprob of each chosen id."""
        ids, logprobs = list(prompt), []
        for _ in range(steps):
            scores = self.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            chosen = int(scores.argmax())
            ids.append(chosen)
            logprobs.append(float(scores[chosen]))
            if chosen == SIZES["eos_token_id"]:
                break
        return ids[len(prompt) :], logprobs

    @torch.no_grad()
    def prompt_logprobs(self, prompt: list[int]) -> list[float]:
        """The logprob of each prompt token but the first."""
        scores = self.model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        return scores[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
