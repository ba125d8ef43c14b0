"""A model of an encoder and a decoder through the real launcher: ids of transformers, streams, killed workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import streams
import torch
from conftest import Launch, Server
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

LIMITS = ("--dtype", "float32", "--max-total-tokens", "400", "--max-input-tokens", "250")
CHUNKED = ("--max-batch-prefill-tokens", "256")  # for all prompts: some come in parts
NEW_TOKENS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("t5")
    torch.manual_seed(11)
    config = AutoConfig.for_model(
        "t5",
        vocab_size=checkpoints.VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_heads=4,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=2,
        pad_token_id=2,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(checkpoints.VOCABULARY, 64) / 8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name or ".q." in name:
                parameter.mul_(6.0)
            elif "EncDecAttention.o" in name:
                parameter.mul_(3.0)
    model.save_pretrained(made)
    checkpoints.tokenizer().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path, launch_module: Launch) -> Server:
    return launch_module(folder, *LIMITS, *CHUNKED)


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: PreTrainedModel, inputs: str) -> list[int]:
    prompt = checkpoints.tokenizer()(inputs, return_tensors="pt").input_ids
    found = model.generate(input_ids=prompt, max_new_tokens=NEW_TOKENS, do_sample=False)  # pyright: ignore
    return found[0, 1:].tolist()


def requests(count: int) -> list[tuple[str, dict[str, Any]]]:
    return streams.mixed_requests(count, new_tokens=NEW_TOKENS)


def test_streams_equal_transformers(server: Server, reference: PreTrainedModel) -> None:
    asked = [(inputs, {"max_new_tokens": NEW_TOKENS}) for inputs, _ in requests(8)]
    found = streams.crowd_ids(server.url, asked)
    assert found == [greedy(reference, inputs) for inputs, _ in asked]
    assert len(set(map(tuple, found))) > 4  # the prompts are what is answered


def test_generate_answers_as_its_stream_does(server: Server) -> None:
    answer = server.generate("a question", max_new_tokens=20, details=True, best_of=2, do_sample=True)
    assert answer["details"]["generated_tokens"] == 20
    alone = streams.read(server.url, "a question", max_new_tokens=20)
    answer = server.generate("a question", max_new_tokens=20, details=True)
    assert [token["id"] for token in answer["details"]["tokens"]] == alone.ids


def test_a_grammar_holds_what_is_decoded(server: Server) -> None:
    held = {"type": "regex", "value": "[0-9]{3}-[a-c]{2}"}
    for seed in range(3):
        answer = server.generate("a question", max_new_tokens=40, do_sample=True, seed=seed, grammar=held, details=True)
        assert re.fullmatch(held["value"], answer["generated_text"])
        assert answer["details"]["finish_reason"] == "eos_token"


def test_an_encoder_has_no_logprobs_of_the_prompt(server: Server) -> None:
    details = server.generate("a question", max_new_tokens=2, decoder_input_details=True, details=True)["details"]
    prompt = checkpoints.tokenizer()("a question").input_ids
    assert [(token["id"], token["logprob"]) for token in details["prefill"]] == [(token, None) for token in prompt]
    assert "nothing predicts its tokens" in server.output()


def test_a_killed_rank_costs_no_request(folder: Path, reference: PreTrainedModel, launch: Launch) -> None:
    server = launch(folder, *LIMITS, *CHUNKED, "--num-shard", "2")
    undisturbed = streams.crowd_ids(server.url, requests(8))
    assert undisturbed[::2] == [greedy(reference, inputs) for inputs, _ in requests(8)[::2]]  # the others sample
    crowd = streams.Crowd(server.url, requests(8))
    crowd.wait_started()
    workers = server.kill_worker()
    transcripts = crowd.transcripts()
    assert [each.error for each in transcripts] == [None] * 8
    assert [each.ids for each in transcripts] == undisturbed
    server.wait_replaced(workers)
