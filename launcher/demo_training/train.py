"""Train the demo model and write it, its tokenizer and its model card into a folder.

    python -m demo_training.train [--out FOLDER] [--tokens N]

About 20 minutes on two CPU cores with bfloat16 instructions. The seed is fixed and the data depends on the Python
version only, so that a second run gives the same model up to the rounding of the machine's matrix kernels.
"""

import argparse
import json
import logging
import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from . import batches
from .corpus import read_standard_library
from .model_card import Measured, Quality, model_card
from .network import Llama, Shape
from .tokenizer import save_tokenizer, train_tokenizer

log = logging.getLogger("demo_training")
PACKAGED = Path(__file__).parent.parent / "millrace_launcher" / "demo"


@dataclass(frozen=True)
class Recipe:
    num_tokens: int
    window: int = 512
    long_window: int = 2048  # in every so-many-th step, so that all positions that the model offers are trained
    long_every: int = 8
    batch_tokens: int = 4096
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warmup_share: float = 0.03
    num_threads: int = 2
    seed: int = 0

    @property
    def num_steps(self) -> int:
        return max(1, self.num_tokens // self.batch_tokens)

    def window_at(self, step: int) -> int:
        return self.long_window if step % self.long_every == self.long_every - 1 else self.window

    def rate_at(self, step: int) -> float:
        """Share of the full learning rate: linear up, then a cosine down to 2 %."""
        warmup = max(1, int(self.num_steps * self.warmup_share))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the embedding and the norms."""
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not q for q in layers)]
    muon = torch.optim.Muon(layers, lr=recipe.matrix_rate, momentum=0.95, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def mean_loss(model: Llama, ids_BT: Tensor) -> Tensor:
    """Mean next-token cross entropy in nats over all positions of ids [B, T + 1]; the forward pass in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BTV = model(ids_BT[:, :-1])
    return functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())


def train(model: Llama, corpus: batches.Corpus, recipe: Recipe) -> None:
    rng = np.random.default_rng(recipe.seed)
    optimizers = make_optimizers(model, recipe)
    full_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    sources: dict[int, Iterator[batches.Ids]] = {
        window: batches.training_windows(corpus, window, rng) for window in (recipe.window, recipe.long_window)
    }
    began, smoothed = time.monotonic(), math.log(model.shape.vocab_size)
    for step in range(recipe.num_steps):
        window = recipe.window_at(step)
        batch = batches.training_batch(sources[window], max(1, recipe.batch_tokens // window))
        loss = mean_loss(model, torch.from_numpy(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, full_rate in zip(optimizers, full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = full_rate * recipe.rate_at(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smoothed += 0.05 * (loss.item() - smoothed)
        if step % 25 == 24 or step == 0:
            seconds = time.monotonic() - began
            rate = (step + 1) * recipe.batch_tokens / seconds
            log.info("step %d/%d loss %.3f %.0f tokens/s %.0f s", step + 1, recipe.num_steps, smoothed, rate, seconds)


@torch.inference_mode()
def held_out_nats(model: Llama, corpus: batches.Corpus, window: int) -> tuple[float, int]:
    """Summed negative log-likelihood (nats) of the held-out files and their number of tokens, in float32."""
    total, count = 0.0, 0
    for ids in batches.held_out_windows(corpus, window):
        row = torch.from_numpy(ids)[None]
        logits_TV = model(row[:, :-1])[0].float()
        total += functional.cross_entropy(logits_TV, row[0, 1:], reduction="sum").item()
        count += row.shape[1] - 1
    return total, count


@torch.inference_mode()
def continuation(model: Llama, tokenizer: Tokenizer, prompt: str, num_tokens: int) -> str:
    """`prompt` and its greedy continuation; a prompt without a begin token gets one."""
    ids = tokenizer.encode(prompt, add_special_tokens=not prompt.startswith("<s>")).ids
    for _ in range(num_tokens):
        chosen = int(model(torch.tensor([ids]))[0, -1].argmax())
        if chosen == batches.EOS_ID:
            break
        ids.append(chosen)
    return tokenizer.decode(ids)


def save_checkpoint(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """The Hugging Face layout; weights in bfloat16, the tied output matrix not stored twice."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.shape.checkpoint_config(batches.BOS_ID, batches.EOS_ID)
    generation = {"bos_token_id": batches.BOS_ID, "eos_token_id": batches.EOS_ID}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, model.shape.max_positions)


def measure_quality(model: Llama, corpus: batches.Corpus, window: int) -> Quality:
    nats, count = held_out_nats(model, corpus, window)
    quality = Quality(window, math.exp(nats / count), nats / math.log(2) / corpus.held_out_bytes)
    log.info("held out, %d tokens per window: perplexity %.2f, %.3f bits per byte", *astuple(quality))
    return quality


def measure(model: Llama, corpus: batches.Corpus, recipe: Recipe) -> Measured:
    return Measured(
        quality=tuple(measure_quality(model, corpus, window) for window in (recipe.window, recipe.long_window)),
        held_out_files=len(corpus.held_out_files),
        held_out_tokens=sum(map(len, corpus.held_out_files)),
        corpus_tokens=corpus.num_training_tokens,
        training_tokens=recipe.num_steps * recipe.batch_tokens,
        num_parameters=sum(p.numel() for p in model.parameters()),
        python_version=platform.python_version(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder of the checkpoint")
    parser.add_argument("--tokens", type=int, default=5_000_000, help="training tokens")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    recipe = Recipe(num_tokens=arguments.tokens, num_threads=arguments.threads)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.num_threads)
    log.info("Python %s: another version has other sources and gives another model", platform.python_version())
    files = read_standard_library()
    tokenizer = train_tokenizer(file.text for file in files if not file.held_out)
    corpus = batches.load_corpus(tokenizer, files)
    model = Llama(Shape(vocab_size=tokenizer.get_vocab_size()))
    log.info("%d files, %d training tokens per epoch", len(files), corpus.num_training_tokens)
    train(model, corpus, recipe)
    # What ships is bfloat16, so that is what is measured.
    model.load_state_dict({name: t.to(torch.bfloat16).float() for name, t in model.state_dict().items()})
    measured = measure(model, corpus, recipe)
    save_checkpoint(model, tokenizer, arguments.out)
    (arguments.out / "README.md").write_text(model_card(model.shape, measured), encoding="utf-8")
    for prompt in ("def read_lines(path):\n", "import os\n\nclass ", "<s><|user|>Write a function add.\n<|assistant|>"):
        log.info("---\n%s", continuation(model, tokenizer, prompt, 96))


if __name__ == "__main__":
    main()
