"""The Transformers backend through the real launcher: the ids of the native path, faults and preemption for free."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import streams
from conftest import Launch

HOSTED = ("--model-impl", "transformers")
LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
REQUESTS = streams.mixed_requests(8, new_tokens=60)
FEW_PAGES = ("--max-batch-total-tokens", "544", "--max-batch-prefill-tokens", "128")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_the_same_ids_as_native(architecture: str, checkpoint: Callable[..., Path], launch: Launch) -> None:
    native, hosted = (launch(checkpoint(architecture), *LIMITS, "--model-impl", each) for each in ("native", HOSTED[1]))
    found = [httpx.get(f"{server.url}/info", timeout=10).json()["model"] for server in (native, hosted)]
    assert [each["implementation"] for each in found] == ["native", "transformers"]
    assert "prefix_caching" in found[1]["capabilities"]
    assert set(found[1]["missing"]) == ({"tensor_parallelism"} if architecture == "gpt2" else set())
    assert streams.crowd_ids(hosted.url, REQUESTS) == streams.crowd_ids(native.url, REQUESTS)


def test_a_killed_worker_and_preemption_cost_nothing(checkpoint: Callable[..., Path], launch: Launch) -> None:
    roomy = launch(checkpoint(), *LIMITS, *HOSTED)
    undisturbed = streams.crowd_ids(roomy.url, REQUESTS)
    tight = launch(checkpoint(), *LIMITS, *HOSTED, *FEW_PAGES)
    assert streams.crowd_ids(tight.url, REQUESTS) == undisturbed
    assert tight.metric("millrace_preemptions_total") > 0
    crowd = streams.Crowd(roomy.url, REQUESTS)
    crowd.wait_started()
    os.kill(roomy.children("millrace_worker")[0], signal.SIGKILL)
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * len(REQUESTS)
    assert [t.ids for t in transcripts] == undisturbed


def own_code(source: Path, folder: Path) -> Path:
    """A Llama under another name, whose code lies beside its weights."""
    shutil.copytree(source, folder)
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_code_of_the_model_runs_only_when_trusted(
    checkpoint: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    folder = own_code(checkpoint(), tmp_path / "own")
    launcher = str(Path(sys.executable).parent / "millrace-launcher")
    refused = subprocess.run(
        [launcher, "--model-id", str(folder), "--port", "0", "--hostname", "127.0.0.1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode != 0
    said = refused.stdout + refused.stderr
    assert "brings its own code (modeling_own.py)" in said
    assert "start again with --trust-remote-code" in said
    trusted = launch(folder, *LIMITS, "--trust-remote-code")
    native = launch(checkpoint(), *LIMITS)
    assert streams.crowd_ids(trusted.url, REQUESTS[:4]) == streams.crowd_ids(native.url, REQUESTS[:4])


def test_a_model_without_pages_serves_many_and_keeps_seeds(checkpoint: Callable[..., Path], launch: Launch) -> None:
    """Falcon's attention cannot be hooked: each sequence has a cache of its own."""
    hosted = launch(checkpoint("falcon"), *LIMITS, *HOSTED)
    model = httpx.get(f"{hosted.url}/info", timeout=10).json()["model"]
    assert model["implementation"] == "transformers, a cache per sequence"
    assert "prefix_caching" in model["missing"]
    native = launch(checkpoint("falcon"), *LIMITS, "--model-impl", "native")
    assert streams.crowd_ids(hosted.url, REQUESTS) == streams.crowd_ids(native.url, REQUESTS)
