"""Requests that break the model: only they get an error, everybody else gets exactly the tokens of an undisturbed run.

The model is a Llama with code of its own, which fails on one token given twice and kills its process on another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoints
import httpx
import pytest
import refusals
import streams
from conftest import Launch, Server
from tokenizers import Tokenizer

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
REQUESTS = streams.mixed_requests(32, new_tokens=20)
FAILING, DEADLY, SICK = "~", "^", "|"
NUM_SICK = 1
CODE = """
import os
import signal
from pathlib import Path
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

def twice(ids, token):
    ids = ids.flatten()
    return bool(((ids[1:] == token) & (ids[:-1] == token)).any())

def is_sick():
    '''The first processes that come across that file.'''
    file, own = Path({file!r}), f"{{os.getpid()}}\\n"
    if not file.exists():
        return False
    processes = file.read_text().splitlines(keepends=True)
    if own not in processes and len(processes) < {num_sick}:
        file.write_text("".join([*processes, own]))
        return True
    return own in processes

class Embedding(nn.Embedding):
    def forward(self, ids):
        if twice(ids, {sick}) and is_sick():
            raise RuntimeError("the device is sick")
        if twice(ids, {failing}):
            raise RuntimeError("these tokens break the model")
        if twice(ids, {deadly}):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(ids)

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.__class__ = Embedding
"""


Record = Callable[[str, object], None]


def fragile(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = {"failing": FAILING, "deadly": DEADLY, "sick": SICK}
    ids = {name: tokenizer.encode(text, add_special_tokens=False).ids[-1] for name, text in tokens.items()}
    code = CODE.format(**ids, file=str(folder / "sick"), num_sick=NUM_SICK)
    (folder / "modeling_own.py").write_text(code, encoding="utf-8")
    path = folder / "config.json"
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    own = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | own), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fragile(checkpoint(), tmp_path_factory.mktemp("poison") / "fragile")


def test_code_of_the_model_is_refused_unless_trusted(folder: Path) -> None:
    refused = refusals.start(folder)
    assert refused.status != 0
    assert "brings its own code (modeling_own.py)" in refused.log
    assert "start again with --trust-remote-code" in refused.log


@pytest.fixture(scope="module")
def server(folder: Path, launch_module: Launch) -> Server:
    return launch_module(folder, *LIMITS, "--trust-remote-code", "--max-restart-wait-seconds", "0")


@pytest.fixture(scope="module")
def undisturbed(server: Server, checkpoint: Callable[..., Path]) -> list[list[int]]:
    undisturbed = streams.crowd_ids(server.url, REQUESTS)
    reference = checkpoints.Reference(checkpoint())  # the same model, of the library's own code
    for (inputs, parameters), ids in list(zip(REQUESTS, undisturbed, strict=True))[:8:2]:
        assert ids == reference.greedy(checkpoints.tokenizer().encode(inputs), parameters["max_new_tokens"])[0]
    return undisturbed


@pytest.mark.parametrize(("poison", "count", "most_restarts"), [(FAILING, 1, 0), (DEADLY, 1, 3), (DEADLY, 3, 9)])
def test_poisonous_requests_get_the_error_alone(
    server: Server, undisturbed: list[list[int]], poison: str, count: int, most_restarts: int, record_property: Record
) -> None:
    before = server.metric("millrace_worker_restarts_total")
    crowd = streams.Crowd(server.url, REQUESTS)
    crowd.wait_started()
    body = {"inputs": f"go {poison * 4}", "parameters": {"max_new_tokens": 20}}
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(httpx.post, f"{server.url}/generate", json=body, timeout=300) for _ in range(count)]
        refused = [each.result() for each in asked]
    assert [(answer.status_code, answer.json()["error_type"]) for answer in refused] == [(424, "generation")] * count
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * len(REQUESTS)
    assert [t.ids for t in transcripts] == undisturbed
    restarts = int(server.metric("millrace_worker_restarts_total") - before)
    # Two deaths make a request suspect, one more finds it guilty; several share the first two where they meet.
    assert restarts == most_restarts if count == 1 else count + 2 <= restarts <= most_restarts
    server.wait_healthy()
    record_property("culprits refused", count)
    record_property("others exact", len(transcripts))
    record_property("restarts", restarts)


def test_a_device_that_fails_every_step_costs_at_most_three_requests_until_its_group_is_replaced(
    server: Server, folder: Path
) -> None:
    bodies = [{"inputs": f"{number}: go {SICK * 4}", "parameters": {"max_new_tokens": 5}} for number in range(8)]

    def ask(body: dict[str, object]) -> httpx.Response:
        return httpx.post(f"{server.url}/generate", json=body, timeout=300)

    (folder / "sick").write_text("", encoding="utf-8")
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(ask, bodies))
    assert len((folder / "sick").read_text(encoding="utf-8").splitlines()) == NUM_SICK
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 424}
    assert statuses.count(424) <= 3
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 424 or answer.json() == ask(body).json()
