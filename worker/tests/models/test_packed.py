"""GPTQ and AWQ checkpoints give what transformers gives of the weights that they say, however ranks divide them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker import cpu_kernels, load, logs
from millrace_worker.config import read_config
from millrace_worker.distributed import Group
from millrace_worker.layers.quantized import NativeQuantizedLinear, joined
from millrace_worker.model import Model
from millrace_worker.models.changes import Changes
from millrace_worker.models.checkpoint import Checkpoint, CheckpointError
from millrace_worker.models.choice import NATIVE, TRANSFORMERS, ModelAsk, choose
from millrace_worker.models.choice import load as load_choice
from millrace_worker.models.decoder import CausalLM
from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.packed import PackedReader
from millrace_worker.models.quantization import PackedCodes
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoints import Saved
from .packed_files import Form, packed, rewritten, rounded, state
from .paged import run
from .parity import TOLERANCE
from .rank_group import Job, RankGroup, RefusedError

CPU = torch.device("cpu")
FORMS = {
    "gptq": Form("gptq", symmetric=True),
    "gptq with zeros": Form("gptq", group=24, zero_biases=True),
    "gptq, zero biases": Form("gptq", zero_biases=True),
    "gptq, three groups": Form("gptq", group=32),
    "gptq v2": Form("gptq", version="gptq_v2", group=8),
    "gptq, inputs reordered": Form("gptq", ordered=True),
    "gptq, one group": Form("gptq", group=-1),
    "gptq, 8 bits": Form("gptq", bits=8, symmetric=True),
    "gptq, 8 bits, inputs reordered": Form("gptq", bits=8, symmetric=True, ordered=True),
    "awq": Form("awq"),
    "awq, some plain": Form("awq", kept="down_proj|o_proj"),
    "awq, one group": Form("awq", group=-1),
}
# What is particular: biases, one tensor for q, k and v or for gate and up, other layouts, experts, latents.
TRIALS = [
    *(("llama", form) for form in FORMS if "group" not in form and "biases" not in form),
    ("qwen2", "gptq with zeros"),
    ("gpt2", "gptq"),
    ("phi3", "awq"),
    ("falcon, 7B style", "gptq v2"),
    ("mixtral", "gptq"),
    ("mixtral", "gptq, inputs reordered"),
    ("deepseek-v3", "awq"),
    ("deepseek-v3", "gptq, zero biases"),
]
ON_RANKS = [
    ("llama", "gptq"),
    ("llama", "gptq, three groups"),
    ("llama", "gptq, inputs reordered"),
    ("llama", "gptq, 8 bits, inputs reordered"),
    ("llama", "awq, one group"),
    ("gpt2", "awq"),
    ("phi3", "awq"),
    ("mixtral", "awq"),
]


@pytest.fixture(scope="session")
def quantized(saved: Callable[[str], Saved], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Saved]:
    """The case in a form, beside transformers' model of what that says."""
    made: dict[tuple[str, str], Saved] = {}

    def get(case: str, form: str) -> Saved:
        if (case, form) not in made:
            made[case, form] = rewritten(saved(case), tmp_path_factory.mktemp("packed"), FORMS[form])
        return made[case, form]

    return get


def served(folder: Path, kernels: str = "", dtype: torch.dtype = torch.float32) -> Model:
    choice = choose(folder, "auto")
    assert choice.implementation == NATIVE
    machine = cpu_kernels.find(kernels, 1)
    return load_choice(ModelAsk(folder=folder, dtype=dtype, device=CPU, group=Group(), kernels=machine), choice)


def check(found: list[Tensor], reference: Saved, sequences: list[list[int]]) -> None:
    for tokens, logits in zip(sequences, found, strict=True):
        clear = reference.num_clear(tokens)
        torch.testing.assert_close(logits[:clear], reference.logits(tokens)[:clear], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("case", "form"), TRIALS)
def test_logits_are_those_of_what_the_codes_say(
    case: str,
    form: str,
    quantized: Callable[[str, str], Saved],
    saved: Callable[[str], Saved],
    sequences: list[list[int]],
) -> None:
    reference = quantized(case, form)
    assert f"weights of {FORMS[form].bits} bits ({FORMS[form].method})" in choose(reference.folder, "auto").reason
    for kernels in ("", cpu_kernels.OFF):
        check(run(served(reference.folder, kernels), seed=1).logits(sequences), reference, sequences)
    off = (reference.logits(sequences[-1]) - saved(case).logits(sequences[-1])).abs().max()
    assert off > (2 if FORMS[form].bits == 8 else 10) * TOLERANCE, "the weights are not quantized"


@pytest.mark.parametrize(("case", "form"), ON_RANKS)
def test_ranks_read_their_part(
    case: str,
    form: str,
    quantized: Callable[[str, str], Saved],
    sequences: list[list[int]],
    ranks: Callable[[int], RankGroup],
) -> None:
    reference = quantized(case, form)
    kernels = "" if form in ("gptq", "gptq, inputs reordered") else cpu_kernels.OFF
    check(ranks(2).logits(Job(reference.folder, sequences, kernels=kernels)), reference, sequences)


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
def test_groups_of_inputs_from_everywhere_are_put_in_order(
    kernels: str, quantized: Callable[[str, str], Saved]
) -> None:
    names = served(quantized("llama", "gptq, inputs reordered").folder, kernels).implementations()
    assert names["linear"].startswith("native" if not kernels else "torch (int4)")
    assert ("inputs reordered" in names["linear"]) == (not kernels)


def test_weights_are_held_once_and_packed(quantized: Callable[[str, str], Saved]) -> None:
    """Half a byte for a code, and for 16 of them four of a scale and one of a zero; as bfloat16 it were two each."""
    model = served(quantized("llama", "awq").folder, dtype=torch.bfloat16)
    assert isinstance(model, CausalLM)
    linears = [each for layer in model._layers for each in (*layer.attn.linears, *layer.mlp.linears)]
    assert len(linears) == 4 * len(model.spec.layers)
    held, codes = 0, 0
    for each in linears:
        assert isinstance(each, NativeQuantizedLinear)
        assert each.name.endswith("int4)")
        held += each.num_bytes
    for name, tensor in load_file(quantized("llama", "awq").folder / "model.safetensors").items():
        codes += 8 * tensor.numel() if name.endswith(".qweight") else 0
    assert held < codes


def reader(folder: Path, form: Form, *, seed: int = 0) -> tuple[PackedReader, Tensor]:
    """Of a matrix "w" [48, 96], beside what it says."""
    matrix = rounded(torch.randn(48, 96), form, seed)
    save_file({f"w.{name}": each for name, each in packed(matrix, form).items()}, folder / "model.safetensors")
    stated = {name: value for name, value in form.stated().items() if name != "sym"}  # the tensors have the say
    codes = PackedCodes.stated(ModelConfig({"quantization_config": stated}))
    assert codes is not None
    return PackedReader(Checkpoint(folder), codes), matrix.said()


@pytest.mark.parametrize("form", FORMS)
def test_a_part_is_that_of_the_whole_to_the_bit(form: str, tmp_path: Path) -> None:
    read, said = reader(tmp_path, FORMS[form])
    group = FORMS[form].group
    step = 2 if group < 0 or FORMS[form].ordered else group
    stops = range(0, 97, step)
    for _ in range(20):
        rows = sorted(torch.randperm(49)[:2].tolist())
        columns = sorted(stops[int(index)] for index in torch.randperm(len(stops))[:2])
        found = read.read("w", (48, 96), range(*rows), range(*columns))
        assert torch.equal(found.dequantized(), said[slice(*rows), slice(*columns)])
        # Of few outputs, all zeros may be the middle by chance.
        assert found.zeros is None if FORMS[form].symmetric else rows[1] - rows[0] < 20 or found.zeros is not None
    three = [read.read("w", (48, 96), range(*rows), range(96)) for rows in ((5, 20), (0, 5), (20, 48))]
    assert torch.equal(joined(three).dequantized(), torch.cat((said[5:20], said[:5], said[20:])))


def test_zeros_stored_below_the_first_code_are_the_first(tmp_path: Path) -> None:
    """Of 0, less 1, four bits are left: TGI reads 0 again, not 16."""
    form = Form("gptq")
    tensors = packed(rounded(torch.randn(48, 96), form, 0), form)
    tensors["qzeros"].fill_(-1)
    save_file({f"w.{name}": each for name, each in tensors.items()}, tmp_path / "model.safetensors")
    found = PackedReader(Checkpoint(tmp_path), PackedCodes("gptq", 4, 16, zeros_less_one=True))
    zeros = found.read("w", (48, 96), range(48), range(96)).zeros
    assert zeros is not None
    assert not zeros.any()


def test_groups_that_nobody_has_numbered_follow_one_another(
    quantized: Callable[[str, str], Saved], sequences: list[list[int]], tmp_path: Path
) -> None:
    reference = quantized("llama", "gptq")
    stored = load_file(reference.folder / "model.safetensors")
    for name, tensor in stored.items():
        tensor.fill_(0) if name.endswith(".g_idx") else None
    check(run(served(written(tmp_path, stored, reference.folder)), seed=1).logits(sequences), reference, sequences)


def test_a_bias_that_has_no_place_is_refused(quantized: Callable[[str, str], Saved], tmp_path: Path) -> None:
    folder = quantized("deepseek-v3", "gptq, zero biases").folder
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if name.endswith("kv_b_proj.bias"))
    with pytest.raises(CheckpointError, match=f"{name}: is not zero"):
        served(written(tmp_path, stored | {name: torch.ones_like(stored[name])}, folder), cpu_kernels.OFF)


def test_a_bias_that_the_family_has_not_is_added(
    quantized: Callable[[str, str], Saved], sequences: list[list[int]], tmp_path: Path
) -> None:
    """As AutoGPTQ does; it stores zeros."""
    stored = load_file(quantized("llama", "gptq with zeros").folder / "model.safetensors")
    biases = [name for name in stored if name.endswith("proj.bias")]
    assert len(biases) == 7 * 3
    tokens = sequences[-1]
    found = []
    for name in (None, "model.layers.0.self_attn.k_proj.bias", "model.layers.2.mlp.down_proj.bias"):
        changed = stored if name is None else stored | {name: torch.randn_like(stored[name])}
        folder = written(tmp_path / str(name), changed, quantized("llama", "gptq with zeros").folder)
        found.append(run(served(folder), seed=1).logits([tokens])[0])
    assert (found[0] - found[1]).abs().max() > 100 * TOLERANCE
    assert (found[0] - found[2]).abs().max() > 100 * TOLERANCE


def written(folder: Path, stored: dict[str, Tensor], source: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


QUERY, OUT = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj"
BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no scales": (lambda stored: stored.pop(f"{OUT}.scales"), rf"{OUT}\.scales of shape \[4, 64\] is missing"),
    "fewer groups": (
        lambda stored: stored.update({f"{OUT}.scales": stored[f"{OUT}.scales"][:2].clone()}),
        rf"{OUT}\.scales has shape \[2, 64\], config\.json makes it \[4, 64\]",
    ),
    "other codes": (
        lambda stored: stored.update({f"{OUT}.qweight": stored[f"{OUT}.qweight"].t().contiguous()}),
        rf"{OUT}\.qweight has shape \[64, 8\], config\.json makes it \[8, 64\]",
    ),
    "wide codes": (
        lambda stored: stored.update({f"{OUT}.qweight": stored[f"{OUT}.qweight"].long()}),
        rf"{OUT}\.qweight has the dtype I64; what can be read here is int32",
    ),
    "no zeros": (lambda stored: stored.pop(f"{OUT}.qzeros"), rf"{OUT}\.qzeros of shape \[4, 8\] is missing"),
    "groups of other sizes": (
        lambda stored: stored[f"{OUT}.g_idx"].fill_(1),
        rf"{OUT}\.g_idx: does not give each of 4 groups 16 inputs",
    ),
    "one of three in another order": (
        lambda stored: stored.update({f"{QUERY}.g_idx": stored[f"{QUERY}.g_idx"].flip(0)}),
        rf"{QUERY}, .*k_proj, .*v_proj: inputs stand in different orders",
    ),
    "one of three is plain": (
        lambda stored: [
            stored.update({f"{QUERY}.weight": torch.randn(64, 64)}),
            *(stored.pop(f"{QUERY}.{leaf}") for leaf in ("qweight", "qzeros", "scales", "g_idx")),
        ],
        rf"k_proj is quantized and {QUERY} is not, but both are one layer here",
    ),
    "codes of nothing": (
        lambda stored: stored.update({"model.layers.1.adapter.qweight": stored[f"{OUT}.qweight"].clone()}),
        r"belongs to no part of the model that config\.json describes: model\.layers\.1\.adapter\.qweight",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_wrong_with_tensors_is_named(how: str, quantized: Callable[[str, str], Saved], tmp_path: Path) -> None:
    change, message = BROKEN[how]
    folder = quantized("llama", "gptq").folder
    stored = load_file(folder / "model.safetensors")
    change(stored)
    with pytest.raises(CheckpointError, match=message):
        served(written(tmp_path, stored, folder), cpu_kernels.OFF)


def test_what_has_no_such_form_is_refused_with_the_numbers(tmp_path: Path) -> None:
    read, _ = reader(tmp_path, Form("gptq", bits=8))
    with pytest.raises(CheckpointError, match=r"w\.qzeros: has the zero \d+; codes of 8 bits .* all zeros 128"):
        read.read("w", (48, 96), range(48), range(96))
    with pytest.raises(CheckpointError, match="w: 50 outputs do not fill whole int32 of 4 codes each"):
        read.read("w", (50, 96), range(50), range(96))
    odd = PackedReader(read.checkpoint, PackedCodes("awq", 4, 12))
    with pytest.raises(CheckpointError, match="w: groups of 12 inputs do not fill whole int32 of 8 codes each"):
        odd.read("w", (48, 96), range(48), range(96))


def test_cuts_through_groups_are_refused(
    quantized: Callable[[str, str], Saved], ranks: Callable[[int], RankGroup]
) -> None:
    message = "o_proj: inputs 0 to 32 of 64 do not end where a group of 24 ends: choose --num-shard"
    with pytest.raises(RefusedError, match=message):
        ranks(2).logits(Job(quantized("llama", "gptq with zeros").folder, [[1, 2, 3]]))


GPTQ4 = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ4 = GPTQ4 | {"quant_method": "awq"}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (GPTQ4 | {"bits": "4"}, "`bits` of `quantization_config` must be a whole number, not '4'"),
        (GPTQ4 | {"bits": True}, "`bits` .* not True"),
        (GPTQ4 | {"group_size": 32.0}, r"`group_size` .* must be a whole number, not 32\.0"),
        (GPTQ4 | {"group_size": 0}, "`group_size` .* must be above 0, or -1, not 0"),
        (GPTQ4 | {"dynamic": [1]}, r"`dynamic` .* must be an object, not \[1\]"),
        (AWQ4 | {"w_bit": None}, "`w_bit` .* must be a whole number, not None"),
        (AWQ4 | {"q_group_size": -3}, "`q_group_size` .* must be above 0, or -1, not -3"),
    ],
)
def test_fields_of_a_wrong_kind_are_named(
    stated: dict[str, object], message: str, quantized: Callable[[str, str], Saved], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((quantized("llama", "gptq").folder / "config.json").read_text())
    state(tmp_path, stated)
    with pytest.raises(ConfigError, match=message) as refused:
        choose(tmp_path, "auto")
    assert not isinstance(refused.value, UnsupportedError)


@pytest.mark.parametrize(
    ("case", "stated", "message"),
    [
        ("llama", GPTQ4 | {"bits": 3}, "gptq with `bits` 3; read: 4, 8"),
        (
            "llama",
            GPTQ4 | {"checkpoint_format": "marlin"},
            "`checkpoint_format` 'marlin'; read: gptq, gptq_v2",
        ),
        ("llama", GPTQ4 | {"is_marlin_format": True}, "`is_marlin_format` True"),
        ("llama", GPTQ4 | {"bits": 8, "sym": False}, r"gptq of 8 bits that have zeros"),
        ("llama", GPTQ4 | {"lm_head": True}, "`lm_head` True"),
        ("llama", GPTQ4 | {"dynamic": {"-:a": {}, "b": {"bits": 8}}}, "`dynamic` gives some layers other codes"),
        ("llama", AWQ4 | {"bits": 8}, "awq with `bits` 8; read: 4"),
        ("llama", AWQ4 | {"version": "GEMV"}, "awq with `version` 'gemv'; read: gemm"),
        ("llama", AWQ4 | {"checkpoint_format": "gemv_fast"}, "awq with `checkpoint_format` 'gemv_fast'; read: gemm"),
        ("llama", AWQ4 | {"zero_point": False}, "`zero_point` False"),
        ("mamba", GPTQ4, r"quantized weights \(gptq\) of such layers"),
        ("dbrx", AWQ4, r"quantized weights \(awq\) of experts that are one tensor"),
    ],
)
def test_other_forms_are_left_to_transformers(
    case: str, stated: dict[str, object], message: str, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((saved(case).folder / "config.json").read_text())
    state(tmp_path, stated)
    choice = choose(tmp_path, "auto")
    assert choice.implementation == TRANSFORMERS
    assert message.replace("\\", "") in choice.reason
    with pytest.raises(UnsupportedError, match=message):
        choose(tmp_path, "native")


@pytest.mark.parametrize(
    ("form", "name", "stated"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": 16, "desc_act": False, "sym": True}),
        ("awq", "quant_config.json", {"zero_point": True, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}),
    ],
)
def test_older_checkpoints_say_it_in_a_file_of_its_own(
    form: str,
    name: str,
    stated: dict[str, object],
    quantized: Callable[[str, str], Saved],
    sequences: list[list[int]],
    tmp_path: Path,
) -> None:
    reference = quantized("llama", form)
    (tmp_path / f"{form}_model-4bit-16g.safetensors").symlink_to(reference.folder / "model.safetensors")
    config = json.loads((reference.folder / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / name).write_text(json.dumps(stated))
    check(run(served(tmp_path), seed=1).logits(sequences), reference, sequences)
    (tmp_path / name).write_text("[]")
    with pytest.raises(ConfigError, match=rf"{name}: holds list, not an object"):
        choose(tmp_path, "auto")


def test_the_flag_says_what_the_checkpoint_holds(
    quantized: Callable[[str, str], Saved], saved: Callable[[str], Saved]
) -> None:
    folders = {form: quantized("llama", form).folder for form in ("gptq", "awq")}
    for form, folder in folders.items():
        choice = choose(folder, "auto", Changes(stored=form))
        assert (choice.implementation, f"({form})" in choice.reason) == (NATIVE, True)
        for model_impl in ("auto", TRANSFORMERS):
            with pytest.raises(
                ConfigError, match=r"--quantize awq is for .*`quant_method` is gptq.*leave the flag out"
            ):
                choose(folders["gptq"], model_impl, Changes(stored="awq"))
            with pytest.raises(ConfigError, match=f"--quantize {form} is for .* none is stated"):
                choose(saved("llama").folder, model_impl, Changes(stored=form))
        with pytest.raises(ConfigError, match="--quantize eetq is for plain weights"):
            choose(folder, "auto", Changes(quantize="eetq"))


def test_the_log_names_the_bits_and_other_devices_are_refused(
    quantized: Callable[[str, str], Saved], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantized("llama", "gptq").folder
    argv = ["--model-path", str(folder), "--uds-path", "unused", "--dtype", "bfloat16", "--quantize", "gptq"]
    with caplog.at_level(logging.INFO, logger=logs.LOGGER_NAME):
        rank = load.load_rank(read_config(argv[:-2], {"OMP_NUM_THREADS": "1"}))
    assert rank.describe().implementation == "native (gptq)"
    (loaded,) = (record for record in caplog.records if record.message == "model loaded")
    assert vars(loaded)["fields"]["linear"] == f"native ({Machine.levels()[-1]}, int4)"
    choice = choose(folder, "auto", None, torch.device("cuda"))
    assert (choice.implementation, choice.quantization) == (TRANSFORMERS, "")
    assert "computed natively on CPUs only, not on cuda" in choice.reason
    monkeypatch.setattr(load, "choose_device", lambda rank: torch.device("cuda"))
    with pytest.raises(UnsupportedError, match=r"quantized weights \(gptq\) are computed natively on CPUs only"):
        load.load_rank(read_config([*argv, "--model-impl", "native"], {"OMP_NUM_THREADS": "1"}))
