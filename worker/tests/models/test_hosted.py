"""Models on transformers' own code over our pages: the same scores as by themselves, or a refusal that says why."""

from __future__ import annotations

import fcntl
import json
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.model import Model, in_rows
from millrace_worker.models.choice import NATIVE, TRANSFORMERS, ModelAsk, choose, load
from millrace_worker.models.hf_config import ConfigError, UnsupportedError
from millrace_worker.models.hosted.library import HostedAsk, load_library_model, read_config
from millrace_worker.models.hosted.load import max_positions
from millrace_worker.models.hosted.remote_code import LOCK, take_code
from millrace_worker.models.hosted.rows import HostedRowModel
from millrace_worker.step import Batch
from transformers import AutoConfig

from .checkpoints import Saved
from .paged import PagedRun
from .parity import Trial
from .rank_group import Job, RankGroup

HOOKED = ["llama", "qwen3", "gemma2, window 18", "gpt2", "gpt-neox, parallel", "mistral, window 9", "biogpt", "opt"]
# Why they cannot be hooked.
BY_ROWS = {"falcon, 7B style": "attention interface", "rwkv": "recurrent layers", "qwen3-next": "recurrent layers"}


def ask(folder: Path, *, kernels: str = "", trust: bool = False) -> ModelAsk:
    return ModelAsk(
        folder=folder,
        dtype=torch.float32,
        device=torch.device("cpu"),
        group=Group(),
        kernels=cpu_kernels.find(kernels, 1),
        trust_remote_code=trust,
    )


def hosted(folder: Path, *, kernels: str = "", trust: bool = False) -> Model:
    return load(ask(folder, kernels=kernels, trust=trust), choose(folder, TRANSFORMERS))


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("case", HOOKED)
def test_a_hooked_model_gives_its_own_scores_in_random_chunks(
    case: str, kernels: str, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    reference, seed = saved(case), random.randrange(2**32)
    model = hosted(reference.folder, kernels=kernels)
    assert model.implementation == "transformers"
    # These have no plan in transformers.
    assert set(model.missing) == ({"tensor_parallelism"} if case in ("gpt2", "biogpt", "opt") else set())
    for tokens, logits in zip(sequences, PagedRun(model, seed=seed).logits(sequences), strict=True):
        torch.testing.assert_close(logits, reference.logits(tokens), atol=1e-4, rtol=1e-5, msg=lambda m: f"{seed=} {m}")


def row_logits(model: Model, sequences: list[list[int]], seed: int) -> list[torch.Tensor]:
    """Of every position of every sequence, in random chunks beside one another; rows hold earlier sequences' states."""
    rows, choice = in_rows(model), random.Random(seed)
    rows.allocate_rows(len(sequences), 100)
    done, found = [0] * len(sequences), [list[torch.Tensor]() for _ in sequences]
    rows.hidden(*_inputs([(row, [3, 4, 5], 0) for row in range(len(sequences))], rows))
    while left := [row for row, tokens in enumerate(sequences) if done[row] < len(tokens)]:
        chosen = choice.sample(left, choice.randint(1, len(left)))
        counts = [min(len(sequences[row]) - done[row], choice.choice((1, 1, 5, 20))) for row in chosen]
        work = [
            (row, sequences[row][done[row] : done[row] + n], done[row]) for row, n in zip(chosen, counts, strict=True)
        ]
        logits = rows.logits(rows.hidden(*_inputs(work, rows)))
        assert logits is not None
        for row, part in zip(chosen, logits.split(counts), strict=True):
            found[row].append(part)
            done[row] += len(part)
    return [torch.cat(parts) for parts in found]


def _inputs(work: list[tuple[int, list[int], int]], model: Model) -> tuple[torch.Tensor, torch.Tensor, object]:
    rows, starts = np.array([row for row, _, _ in work]), np.array([start for *_, start in work])
    counts = np.array([len(tokens) for _, tokens, _ in work])
    positions = [position for _, tokens, start in work for position in range(start, start + len(tokens))]
    none = np.zeros((len(rows), 0), dtype=np.int32)
    batch = Batch(rows=rows, starts=starts, counts=counts, page_table=torch.from_numpy(none), page_table_host=none)
    return torch.tensor([t for _, tokens, _ in work for t in tokens]), torch.tensor(positions), model.plan(batch)


@pytest.mark.parametrize("case", BY_ROWS)
def test_a_model_that_cannot_be_hooked_has_a_cache_per_sequence(
    case: str, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    reference, seed = saved(case), random.randrange(2**32)
    model = hosted(reference.folder)
    assert (model.page_size, model.implementation) == (0, "transformers, a cache per sequence")
    assert BY_ROWS[case] in model.missing["batched_forward"]
    assert {"prefix_caching", "page_copies"} < set(model.missing)
    rows = in_rows(model)
    assert rows.row_bytes(100) > 1000
    for tokens, logits in zip(sequences, row_logits(model, sequences, seed), strict=True):
        torch.testing.assert_close(logits, reference.logits(tokens), atol=1e-3, rtol=1e-3, msg=lambda m: f"{seed=} {m}")
    assert isinstance(rows, HostedRowModel)
    assert set(rows._caches) == set(range(len(sequences)))
    rows.forget_rows([0, 3])
    assert set(rows._caches) == set(range(len(sequences))) - {0, 3}


@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_two_ranks_by_the_models_own_plan(
    case: str, saved: Callable[[str], Saved], sequences: list[list[int]], ranks: Callable[[int], RankGroup]
) -> None:
    reference = saved(case)
    trial = Trial.of(reference, sequences)
    job = Job(reference.folder, trial.sequences, trial.prompts, model_impl="transformers")
    trial.check(ranks(2).logits(job), "2 ranks")


def test_native_where_there_is_a_spec_else_transformers(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    folder = saved("llama").folder
    assert choose(folder, "auto").implementation == NATIVE
    assert choose(folder, "transformers").implementation == TRANSFORMERS
    AutoConfig.for_model("biogpt", architectures=["BioGptForCausalLM"]).save_pretrained(tmp_path)
    choice = choose(tmp_path, "auto")
    assert choice.implementation == TRANSFORMERS
    assert "BioGptForCausalLM" in choice.reason
    with pytest.raises(UnsupportedError, match=r"BioGptForCausalLM is not supported; supported are .*transformers may"):
        choose(tmp_path, "native")


def test_a_known_kind_of_model_with_a_class_of_its_own(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    """Its code runs when it is trusted; code beside a class that the library has never does."""
    source = saved("llama")
    for path in source.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((source.folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (tmp_path / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nclass OwnForCausalLM(LlamaForCausalLM):\n    own = True\n"
    )
    for architecture, is_own in (("OwnForCausalLM", True), ("LlamaForCausalLM", False)):
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        if is_own:
            with pytest.raises(ConfigError, match=r"modeling_own\.py.* start again with --trust-remote-code"):
                hosted(tmp_path)
        trusted = HostedAsk(
            folder=tmp_path,
            dtype=torch.float32,
            device=torch.device("cpu"),
            group=Group(),
            trust_remote_code=True,
        )
        assert hasattr(load_library_model(trusted, read_config(trusted)), "own") == is_own


def test_ranks_take_turns_with_the_code_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two files that import one another transformers makes copies; none while somebody else makes his."""
    modules = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr("sys.path", list(sys.path))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text("from .parts import part\n")
    (folder / "parts.py").write_text("part = 1\n")
    modules.mkdir()
    with (modules / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        other = threading.Thread(target=take_code, args=(folder, ["modeling_own.py"]))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert not list(modules.rglob("parts.py"))
    other.join(60)
    copies = [copy for name in ("modeling_own.py", "parts.py") for copy in modules.rglob(name)]
    assert [copy.read_text() for copy in copies] == ["from .parts import part\n", "part = 1\n"]
    made = [copy.stat().st_mtime_ns for copy in copies]
    take_code(folder, ["modeling_own.py"])
    assert [copy.stat().st_mtime_ns for copy in copies] == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is known neither"),
        (
            {"model_type": "nobodys", "architectures": ["Nobodys"]},
            "Nobodys is known neither .* no code of its own",
        ),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "t5 is an encoder-decoder"),
        ({"num_hidden_layers": 4}, "tensors of LlamaForCausalLM are missing from the checkpoint: model.layers.3"),
        ({"intermediate_size": 97}, "cannot load this model|do not fit in the checkpoint"),
    ],
)
def test_what_transformers_would_make_up_is_refused(
    values: dict[str, object], message: str, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    folder = saved("llama").folder
    config = json.loads((folder / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        hosted(tmp_path)


def test_a_sequence_ends_where_its_rotary_frequencies_would_change() -> None:
    """What its cache holds was computed with the others."""
    rope = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    kinds = {
        "longrope": rope | {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
        "dynamic": rope,
        "linear": rope,
    }
    for kind, expected in (("longrope", 64), ("dynamic", 64), ("linear", 256)):
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
        config = AutoConfig.for_model("llama", **sizes, rope_parameters=kinds[kind] | {"rope_type": kind})
        assert max_positions(config) == expected
