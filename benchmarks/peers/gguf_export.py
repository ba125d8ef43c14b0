"""A Llama checkpoint of `benchmarks/models.py` as a GGUF file; run by the Python of llama.cpp's environment.

`python -m benchmarks.peers.gguf_export FOLDER FILE [Q8_0|Q4_0]`. Matrices keep their number format (float32 or
bfloat16), or those of the layers are quantized as said; norms are float32 as llama.cpp wants them. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf  # pyright: ignore[reportMissingImports]
import numpy as np

NORMAL, CONTROL = 1, 3  # gguf's kinds of tokens


def main(folder: Path, file: Path, kind: str = "") -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    unfinished = file.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "llama")
    add_shape(writer, config, folder.name)
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, stored in tensors(folder / "model.safetensors"):
        to = names.get_name(name, try_suffixes=(".weight",))
        if to is None:
            raise SystemExit(f"{folder}: GGUF has no name for {name}")
        add_tensor(writer, to, reordered(name, stored, config), kind if ".layers." in name else "")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(file)


def add_shape(writer: Any, config: dict[str, Any], name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer: Any, tokenizer: dict[str, Any]) -> None:
    """A byte-level BPE that splits as GPT-2's does."""
    by_id = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in by_id])
    writer.add_token_types([CONTROL if number in special else NORMAL for _, number in by_id])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_add_bos_token(False)


def tensors(file: Path) -> list[tuple[str, np.ndarray]]:
    """Every tensor of a safetensors file, mapped; bfloat16 as its 16 bits, for numpy does not know it."""
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(header_bytes))
    header.pop("__metadata__", None)
    data = np.memmap(file, mode="r", offset=8 + header_bytes)
    kinds = {"F32": np.float32, "BF16": np.uint16}
    return [
        (name, data[slice(*entry["data_offsets"])].view(kinds[entry["dtype"]]).reshape(entry["shape"]))
        for name, entry in header.items()
    ]


def reordered(name: str, tensor: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """llama.cpp rotates neighbouring pairs, the checkpoint the halves of a head: rows of q and k are interleaved."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, key in heads.items():
        if f".{part}." in name:
            halves = tensor.reshape(config[key], 2, -1, tensor.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
    return tensor


def add_tensor(writer: Any, name: str, tensor: np.ndarray, kind: str) -> None:
    if tensor.dtype != np.uint16 and not (kind and tensor.ndim == 2):
        writer.add_tensor(name, tensor)
    elif tensor.ndim == 1:
        writer.add_tensor(name, widened(tensor))
    elif kind:
        quantized = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(widened(tensor), quantized), raw_dtype=quantized)
    else:
        writer.add_tensor(name, tensor.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)


def widened(tensor: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 that is given as its 16 bits; float32 as it is."""
    return (tensor.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == np.uint16 else tensor


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
