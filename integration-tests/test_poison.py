"""Requests that break the model: only they get an error, everybody else gets exactly the tokens of an undisturbed run.

The model is a Llama with code of its own, which fails on one token given twice and kills its process on another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import streams
from conftest import Launch
from tokenizers import Tokenizer

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
REQUESTS = streams.mixed_requests(32, new_tokens=20)
FAILING, DEADLY = "~", "^"
CODE = """
import os
import signal
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

def twice(ids, token):
    ids = ids.flatten()
    return bool(((ids[1:] == token) & (ids[:-1] == token)).any())

class Embedding(nn.Embedding):
    def forward(self, ids):
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


def fragile(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    failing, deadly = (tokenizer.encode(text, add_special_tokens=False).ids[-1] for text in (FAILING, DEADLY))
    (folder / "modeling_own.py").write_text(CODE.format(failing=failing, deadly=deadly), encoding="utf-8")
    path = folder / "config.json"
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    own = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | own), encoding="utf-8")
    return folder


def test_a_poisonous_request_gets_the_error_alone(
    checkpoint: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    server = launch(fragile(checkpoint(), tmp_path / "fragile"), *LIMITS, "--trust-remote-code")
    undisturbed = streams.crowd_ids(server.url, REQUESTS)
    for poison, restarts in ((FAILING, 0), (DEADLY, 3)):
        before = server.metric("millrace_worker_restarts_total")
        crowd = streams.Crowd(server.url, REQUESTS)
        crowd.wait_started()
        body = {"inputs": f"go {poison * 4}", "parameters": {"max_new_tokens": 20}}
        refused = httpx.post(f"{server.url}/generate", json=body, timeout=300)
        assert (refused.status_code, refused.json()["error_type"]) == (424, "generation"), refused.text
        transcripts = crowd.transcripts()
        assert [t.error for t in transcripts] == [None] * len(REQUESTS)
        assert [t.ids for t in transcripts] == undisturbed
        assert server.metric("millrace_worker_restarts_total") - before == restarts
        server.wait_healthy()
