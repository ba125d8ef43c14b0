"""Random Llama checkpoints of three sizes for the benchmarks, made on the spot and kept under `target/benchmarks`.

`tiny` (7 M, float32) costs nearly nothing, so it shows a server's own overhead; `mid` (152 M, bfloat16) is bound by
memory bandwidth as real models are; `1b` (1.0 G, bfloat16) has the layers of a real model of that size, `1b-int8` and
`1b-int4` are the same with weights of 8 and 4 bits (fewer_bits.py). None has an end-of-sequence token: every stream
runs to its length.
"""

from __future__ import annotations

import json
import random
import shutil
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import fewer_bits

FOLDER = Path(__file__).resolve().parent.parent / "target" / "benchmarks"
VOCABULARY = 8192
# hidden, layers, intermediate, heads, KV heads, dtype
SHAPES = {
    "tiny": (256, 4, 688, 4, 2, torch.float32),
    "mid": (1024, 12, 2816, 16, 4, torch.bfloat16),
    "1b": (2048, 16, 8192, 32, 8, torch.bfloat16),
}
NAMES = [*SHAPES, "1b-int8", "1b-int4"]


def path(name: str) -> Path:
    """The checkpoint's folder; made when absent."""
    folder = FOLDER / name
    if not (folder / "model.safetensors").exists():
        unfinished = FOLDER / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shape, _, form = name.partition("-")
        if form:
            fewer_bits.make(unfinished, path(shape), form)
        else:
            make(unfinished, shape)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    return folder


def make(folder: Path, shape: str) -> None:
    hidden, layers, intermediate, heads, kv_heads, dtype = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(dtype)  # a float32 copy of the largest would need twice its memory
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    # What transformers' server needs to find no end-of-sequence either.
    model.generation_config.save_pretrained(folder)


def form_of(folder: Path) -> str:
    """`int8`, `int4`, or empty: the weights of the layers, where they are not in the checkpoint's number format."""
    return folder.name.partition("-")[2]


def plain(folder: Path) -> Path:
    """The checkpoint that `folder` was made from, or itself."""
    return folder.with_name(folder.name.partition("-")[0])


def dtype_of(folder: Path) -> str:
    """The number format of a checkpoint's weights, as flags name it: `float32` or `bfloat16`."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]


def torch_dtype_of(folder: Path) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype_of(folder)]


def bytes_read_per_token(folder: Path) -> int:
    """Every weight but the input embedding; what is quantized at load, in one byte."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = 4 if config["dtype"] == "float32" else 2
    embedding = config["vocab_size"] * config["hidden_size"] * width
    total = (folder / "model.safetensors").stat().st_size - embedding
    if form_of(folder) == "int8":  # all but the head, of the embedding's size
        total = (total - embedding) // width + embedding
    return total


def cache_bytes_per_token(folder: Path) -> int:
    """Bytes of K and V that one token of a sequence takes, in the number format of the weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = config["num_key_value_heads"] * config["head_dim"]
    return 2 * config["num_hidden_layers"] * width * (4 if config["dtype"] == "float32" else 2)


def tokenizer() -> PreTrainedTokenizerFast:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in sorted(library.glob("*.py")) if f.is_file()]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((f.read_text(encoding="utf-8", errors="replace") for f in files), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return fast


def prompts(folder: Path, count: int, tokens: int, seed: int) -> list[str]:
    """Different random texts of exactly `tokens` tokens, so that no prefix is shared."""
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    chance = random.Random(seed)
    made: list[str] = []
    while len(made) < count:
        ids = [chance.randrange(300, VOCABULARY) for _ in range(tokens + 8)]
        text = encoder.decode(ids)
        kept = encoder.encode(text, add_special_tokens=False).ids[:tokens]
        text = encoder.decode(kept)
        if len(encoder.encode(text, add_special_tokens=False).ids) == tokens:
            made.append(text)
    return made


def encode(folder: Path, texts: list[str]) -> list[list[int]]:
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [encoding.ids for encoding in encoder.encode_batch(texts, add_special_tokens=False)]


def decode(folder: Path, ids: list[list[int]]) -> list[str]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode_batch(ids, skip_special_tokens=True)
