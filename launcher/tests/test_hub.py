"""Finding a model: folders, and a stand-in hub over HTTP that behaves as huggingface_hub expects."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from millrace_launcher.errors import LauncherError, Variant
from millrace_launcher.hub import LocatedModel, ModelSource, files_to_fetch, locate_model
from millrace_launcher.logs import Log
from millrace_launcher.model_folder import check_model_folder, check_override, demo_folder, folder_with_other_weights

from launcher.tests.fakes.stand_in_hub import Repository, StandInHub

NAME = "someone/some-model"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"add_bos_token": true}',
    "model.safetensors": bytes(range(256)) * 2000,
    "pytorch_model.bin": b"pickle",
    "modeling_custom.py": b"import os",
    "README.md": b"hello",
    "onnx/model.safetensors": b"elsewhere",
}
SERVED = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    hub = StandInHub()
    hub.repositories[NAME] = Repository(dict(FILES))
    yield hub
    hub.close()


@pytest.fixture
def source(hub: StandInHub, tmp_path: Path) -> ModelSource:
    return ModelSource(NAME, cache=tmp_path / "cache", endpoint=hub.url)


def silent_log() -> Log:
    return Log(io.StringIO())


def found(source: ModelSource) -> dict[str, bytes]:
    folder = locate_model(source, silent_log()).folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(source: ModelSource) -> str:
    with pytest.raises(LauncherError) as caught:
        locate_model(source, silent_log())
    assert caught.value.variant is Variant.DOWNLOAD
    assert caught.value.exit_code == 1
    return caught.value.message


def test_only_what_serving_needs_is_fetched(hub: StandInHub, source: ModelSource) -> None:
    assert found(source) == {name: FILES[name] for name in SERVED}
    assert set(hub.fetched()) == SERVED


def test_a_second_start_fetches_nothing(hub: StandInHub, source: ModelSource) -> None:
    first = found(source)
    hub.requests.clear()
    assert found(source) == first
    assert hub.fetched() == []


def test_a_download_that_broke_off_goes_on_where_it_stopped(hub: StandInHub, source: ModelSource) -> None:
    weights = bytes(11 << 20)
    hub.repositories[NAME].files["model.safetensors"] = weights
    # The client writes pieces of 10 MiB: what it has written when the connection breaks is not asked for again.
    hub.repositories[NAME].cut_once["model.safetensors"] = (10 << 20) + 1
    assert found(source)["model.safetensors"] == weights
    gets = [headers for verb, path, headers in hub.requests if verb == "GET" and path.endswith("model.safetensors")]
    assert [headers.get("range") for headers in gets] == [None, f"bytes={10 << 20}-"]


def test_a_revision_is_a_branch_or_a_commit(hub: StandInHub, source: ModelSource) -> None:
    hub.repositories[NAME].revisions["refs-dev"] = "b" * 40
    by_branch = locate_model(replace(source, revision="refs-dev"), silent_log())
    by_commit = locate_model(replace(source, revision="b" * 40), silent_log())
    assert by_branch == by_commit
    assert by_branch.commit == by_branch.folder.name == "b" * 40
    message = refusal(replace(source, revision="never"))
    assert "never" in message


def test_a_branch_that_moved_is_fetched_anew(hub: StandInHub, source: ModelSource) -> None:
    found(source)
    hub.repositories[NAME].revisions["main"] = "c" * 40
    hub.repositories[NAME].files["config.json"] = b'{"model_type": "other"}'
    assert found(source)["config.json"] == b'{"model_type": "other"}'


def test_a_private_model_needs_the_right_token(hub: StandInHub, source: ModelSource) -> None:
    hub.repositories[NAME].token = "hf_right"
    assert "HF_TOKEN" in refusal(source)
    assert "HF_TOKEN" in refusal(replace(source, token="hf_wrong"))
    assert set(found(replace(source, token="hf_right"))) == SERVED


def test_a_gated_model_says_that_its_terms_must_be_accepted(hub: StandInHub, source: ModelSource) -> None:
    hub.repositories[NAME].token = "hf_right"
    hub.repositories[NAME].gated = True
    assert "gated" in refusal(source)


@pytest.mark.parametrize("name", ["someone/else", "nope"])
def test_a_model_that_does_not_exist_may_have_been_meant_as_a_folder(
    name: str, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    no_folder = f"there is no folder {name} in {tmp_path}"
    online = refusal(replace(source, model_id=name))
    assert f"there is no model {name} on the hub" in online
    assert no_folder in online
    offline = refusal(replace(source, model_id=name, offline=True))
    assert f"{name} is not in the cache" in offline
    assert no_folder in offline


def test_pickled_weights_are_fetched_when_there_are_no_others(hub: StandInHub, source: ModelSource) -> None:
    files = hub.repositories[NAME].files
    del files["model.safetensors"]
    assert set(found(source)) == SERVED - {"model.safetensors"} | {"pytorch_model.bin"}
    del files["pytorch_model.bin"]
    hub.requests.clear()
    hub.repositories[NAME].revisions["main"] = "e" * 40
    assert "neither a *.safetensors file nor a pytorch_model.bin" in refusal(source)
    assert hub.fetched() == []


def test_offline_uses_the_cache_and_asks_nobody(hub: StandInHub, source: ModelSource) -> None:
    offline = replace(source, offline=True)
    assert "not in the cache" in refusal(offline)
    online = found(source)
    hub.requests.clear()
    assert found(offline) == online
    assert hub.requests == []


def test_offline_finds_the_branch_that_was_fetched(hub: StandInHub, source: ModelSource) -> None:
    hub.repositories[NAME].revisions["v1"] = "d" * 40
    tagged = replace(source, revision="v1")
    fetched = locate_model(tagged, silent_log())
    assert locate_model(replace(tagged, offline=True), silent_log()) == fetched
    assert "v2" in refusal(replace(source, revision="v2", offline=True))


def test_a_hub_that_is_down_leaves_the_cache(hub: StandInHub, source: ModelSource) -> None:
    online = found(source)
    hub.close()
    stream = io.StringIO()
    assert locate_model(source, Log(stream)).commit == "a" * 40
    assert f"The hub at {hub.url} cannot be reached ([Errno " in stream.getvalue()
    assert found(source) == online
    missing = refusal(replace(source, model_id="someone/else"))
    assert "cannot be reached" in missing
    assert "someone/else" in missing


def test_a_hub_that_answers_with_errors_leaves_the_cache(hub: StandInHub, source: ModelSource) -> None:
    online = found(source)
    hub.repositories[NAME].status = 500
    assert found(source) == online


def test_a_cache_that_cannot_be_written_is_named(source: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be stored: " in refusal(replace(source, cache=tmp_path / "file" / "cache"))


def test_what_the_hub_refuses_for_other_reasons_is_told_as_it_is(hub: StandInHub, source: ModelSource) -> None:
    hub.repositories[NAME].status = 418
    assert "the hub answered 418" in refusal(source)


def test_an_incomplete_cache_is_not_taken_for_a_model(hub: StandInHub, source: ModelSource) -> None:
    found(source)
    folder = next((source.cache or Path()).glob("*/snapshots/*"))
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(replace(source, offline=True))
    assert set(found(source)) == SERVED


@pytest.mark.parametrize("name", ["a/b/c", "--x", "a b", ""])
def test_names_that_no_hub_has(name: str, source: ModelSource) -> None:
    assert "neither a folder" in refusal(replace(source, model_id=name))


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "../nowhere", "~/nowhere-at-all"])
def test_paths_are_never_looked_for_on_the_hub(path: str, hub: StandInHub, source: ModelSource) -> None:
    assert "does not exist" in refusal(replace(source, model_id=path))
    assert hub.requests == []


def test_the_environment_names_token_endpoint_and_mode() -> None:
    environment = {"HF_API_TOKEN": "old", "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://hub"}
    source = ModelSource.from_environment(NAME, "main", "/cache", environment)
    assert source == ModelSource(NAME, "main", Path("/cache"), "old", True, "http://hub")
    newer = ModelSource.from_environment(NAME, None, None, {**environment, "HF_TOKEN": "new", "HF_HUB_OFFLINE": "0"})
    assert (newer.token, newer.offline, newer.cache) == ("new", False, None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "model.bin"], ["model.safetensors"]),
        (["consolidated.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        (
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"],
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["model.safetensors", "pytorch_model.bin.index.json", "chat_template.jinja", "run.py"],
            ["model.safetensors", "chat_template.jinja"],
        ),
        (
            ["pytorch_model-2.bin", "pytorch_model-1.bin", "pytorch_model.bin.index.json", "training_args.bin"],
            ["pytorch_model-1.bin", "pytorch_model-2.bin", "pytorch_model.bin.index.json"],
        ),
        (["optimizer.pt", "consolidated.00.pth", "config.json"], ["consolidated.00.pth", "config.json"]),
        (["original/model.safetensors"], []),
    ],
)
def test_files_to_fetch(names: list[str], expected: list[str]) -> None:
    assert files_to_fetch(names) == expected


def test_code_is_fetched_only_when_asked_for() -> None:
    names = ["model.safetensors", "modeling_x.py", "config.json", "scripts/train.py", "run.sh"]
    assert files_to_fetch(names) == ["model.safetensors", "config.json"]
    assert files_to_fetch(names, with_code=True) == ["model.safetensors", "config.json", "modeling_x.py"]


def make_folder(folder: Path, **changes: bytes | None) -> Path:
    folder.mkdir()
    files = {name: FILES[name] for name in SERVED} | {name.replace("__", "."): data for name, data in changes.items()}
    for name, data in files.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    assert locate_model(ModelSource(str(folder), revision="main"), silent_log()) == LocatedModel(folder, commit=None)


def test_the_demo_is_shipped_whole() -> None:
    assert locate_model(ModelSource("demo"), silent_log()) == LocatedModel(demo_folder())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config__json": None}, "config.json"),
        ({"tokenizer__json": None}, r"tokenizer\.json .*AutoTokenizer\.from_pretrained.*save_pretrained"),
        ({"model__safetensors": None}, "safetensors"),
        ({"model__safetensors": None, "optimizer__bin": b"x"}, "safetensors"),
        ({"config__json": b"{"}, "config.json"),
        ({"config__json": b"[]"}, "config.json"),
    ],
)
def test_a_folder_that_cannot_be_served_says_what_is_missing(
    changes: dict[str, bytes | None], named: str, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "model", **changes)
    with pytest.raises(LauncherError, match=named) as caught:
        check_model_folder(folder)
    assert caught.value.variant is Variant.DOWNLOAD


def test_an_index_whose_shards_are_missing_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LauncherError, match=r"model-2\.safetensors"):
        check_model_folder(folder)
    for broken in ({"weight_map": {"a": 1}}, {"weight_map": []}, {}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(broken))
        with pytest.raises(LauncherError, match="is broken: its `weight_map`"):
            check_model_folder(folder)


def test_quantized_weights_are_for_the_workers_to_judge(tmp_path: Path) -> None:
    """They know which formats they read; the launcher would refuse some that are served."""
    config = json.dumps({"quantization_config": {"quant_method": "mxfp4"}}).encode()
    check_model_folder(make_folder(tmp_path / "model", config__json=config))


def test_other_weights_replace_only_the_weights(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "other.safetensors").write_bytes(b"other")
    (weights / "config.json").write_bytes(b"not this one")
    joined = folder_with_other_weights(model, weights, tmp_path / "joined")
    check_model_folder(joined)
    assert {path.name for path in joined.iterdir()} == (SERVED - {"model.safetensors"}) | {"other.safetensors"}
    assert (joined / "config.json").read_bytes() == FILES["config.json"]
    with pytest.raises(LauncherError, match="weights-cache-override"):
        check_override(tmp_path / "absent")
