"""Constrained output through the whole server, by the clients people have, on a random model that knows no JSON."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
import streams
from conftest import Launch, Server
from huggingface_hub import InferenceClient
from jsonschema.validators import validator_for
from pydantic import BaseModel, Field

from worker.tests.grammar import schemas

# Room for few sequences at once, so that a crowd preempts.
LIMITS = (
    "--dtype",
    "float32",
    "--max-total-tokens",
    "384",
    "--max-batch-total-tokens",
    "448",
    "--max-batch-prefill-tokens",
    "64",
)
PROMPT = "def check(server, reference"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "count": {"type": "integer", "minimum": -20, "maximum": 300},
        "share": {"enum": [0.25, 0.5, None]},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
        "at": {"type": "string", "format": "date"},
    },
    "required": ["name", "count", "share", "tags"],
}


class Step(BaseModel):
    word: str = Field(max_length=6)
    times: int = Field(ge=0, le=9)


class Plan(BaseModel):
    kind: Literal["short", "long"]
    steps: list[Step] = Field(max_length=2)


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(checkpoint(), *LIMITS, "--num-shard", "2")


def grammar(kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "value": value}


def check(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


def test_the_originals_client_gets_what_its_schema_says(hub: InferenceClient) -> None:
    asked: Any = {"grammar": grammar("json", SCHEMA), "max_new_tokens": 300, "return_full_text": False}
    for seed in range(6):
        check(hub.text_generation(PROMPT, **asked, do_sample=True, seed=seed))
    asked["grammar"] = grammar("json", json.dumps(SCHEMA))
    check("".join(hub.text_generation(PROMPT, **asked, stream=True)).removesuffix("</s>"))
    said: Any = {"response_format": grammar("json", SCHEMA), "max_tokens": 300}
    answer = hub.chat_completion([{"role": "user", "content": "x"}], **said)
    check(answer.choices[0].message.content or "")


def test_every_kind_of_grammar_is_held_to_and_ends_by_itself(server: Server) -> None:
    rules = 'start: item ("," item){2}\nitem: /[a-f]{2}/ | "<" item ">"\n'
    for kind, value, holds in [
        ("regex", r"[0-9]{3}-[a-c]+x", re.compile(r"[0-9]{3}-[a-c]+x").fullmatch),
        ("choice", ["yes", "no", 'per"haps'], ["yes", "no", 'per"haps'].__contains__),
        ("lark", rules, re.compile(r"(<*[a-f]{2}>*,){2}<*[a-f]{2}>*").fullmatch),
        ("json_schema", {"name": "n", "schema": SCHEMA}, lambda text: check(text) is None),
    ]:
        for seed in range(3):
            answer = server.generate(
                PROMPT, grammar=grammar(kind, value), max_new_tokens=300, do_sample=True, seed=seed, details=True
            )
            text, details = answer["generated_text"], answer["details"]
            if kind == "regex" and details["finish_reason"] == "length":
                continue  # its one open part may go on
            assert details["finish_reason"] == "eos_token", text
            assert holds(text), text


def test_openais_client_parses_types(ai: openai.OpenAI, server: Server) -> None:
    asked: Any = {
        "model": "tgi",
        "messages": [{"role": "user", "content": "plan"}],
        "max_tokens": 300,
        "response_format": Plan,
    }
    parsed = ai.chat.completions.parse(**asked, seed=1).choices[0]
    assert isinstance(parsed.message.parsed, Plan)
    assert parsed.finish_reason == "stop"
    with ai.chat.completions.stream(**asked, seed=1) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.parsed == parsed.message.parsed

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
            return await client.chat.completions.parse(**asked, seed=1, n=2)

    choices = asyncio.run(ask()).choices
    assert choices[0].message.parsed == parsed.message.parsed
    assert all(isinstance(choice.message.parsed, Plan) for choice in choices)


def test_completions_and_objects_of_any_kind(ai: openai.OpenAI) -> None:
    form: Any = {"response_format": grammar("regex", "(ja|nein)!")}
    both = ai.completions.create(model="tgi", prompt=["a", "b"], max_tokens=20, extra_body=form)
    assert [re.fullmatch("(ja|nein)!", choice.text) is not None for choice in both.choices] == [True, True]
    assert [choice.finish_reason for choice in both.choices] == ["stop", "stop"]
    cut = ai.chat.completions.create(
        model="tgi", messages=[{"role": "user", "content": "x"}], max_tokens=12, response_format={"type": "json_object"}
    )
    assert (cut.choices[0].message.content or "").startswith("{")
    bad: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {"a": {"not": {}}}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(model="tgi", messages=[{"role": "user", "content": "x"}], response_format=bad)
    assert refused.value.param == "response_format"
    assert "at `/properties/a/not`: `not` is not supported" in str(refused.value)


def test_each_of_several_answers_is_held_to_it(server: Server, ai: openai.OpenAI) -> None:
    asked: Any = {"grammar": grammar("json", SCHEMA), "max_new_tokens": 300, "do_sample": True}
    answer = server.generate(PROMPT, **asked, best_of=2, details=True)
    texts = [answer["generated_text"], *(each["generated_text"] for each in answer["details"]["best_of_sequences"])]
    form: Any = {"response_format": grammar("json", SCHEMA)}
    several = ai.completions.create(model="tgi", prompt=PROMPT, n=2, max_tokens=300, seed=5, extra_body=form)
    for text in [*texts, *(choice.text for choice in several.choices)]:
        check(text)
    streamed = ["", ""]
    for chunk in ai.completions.create(
        model="tgi", prompt=PROMPT, n=2, max_tokens=300, seed=5, stream=True, extra_body=form
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in several.choices]


def test_lengths_and_stop_strings_end_a_grammar_early(server: Server) -> None:
    cut = server.generate(PROMPT, grammar=grammar("regex", "[0-9]{40}"), max_new_tokens=5, details=True)
    assert cut["details"]["finish_reason"] == "length"
    assert re.fullmatch("[0-9]{1,40}", cut["generated_text"])
    stopped = server.generate(
        PROMPT, grammar=grammar("regex", "[a-c]{3};[0-9]{9}"), stop=[";"], max_new_tokens=60, details=True
    )
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    assert re.fullmatch("[a-c]{3};[0-9]*", stopped["generated_text"])


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Constrained and free ones, greedy and sampled, that need more room than there is."""
    kinds = [grammar("json", SCHEMA), grammar("regex", "([a-z]{3} ){60}"), None]
    return [
        (
            f"{PROMPT} {index}",
            {"grammar": kinds[index % 3], "max_new_tokens": 200, "do_sample": index % 2 == 0, "seed": index},
        )
        for index in range(12)
    ]


def test_neither_preemption_nor_a_killed_rank_changes_a_constrained_text(server: Server) -> None:
    asked = requests()
    alone = [streams.read(server.url, inputs, **parameters).ids for inputs, parameters in asked]
    before = server.metric("millrace_preemptions_total")
    for number in range(1, 31):  # on a fast machine the first ones may be done when the last ones come
        copies = 1 + number % 3
        assert streams.crowd_ids(server.url, asked * copies) == alone * copies
        if server.metric("millrace_preemptions_total") > before:
            break
    assert server.metric("millrace_preemptions_total") > before
    crowd = streams.Crowd(server.url, asked)
    crowd.wait_started()
    workers = server.kill_worker(1)
    transcripts = crowd.transcripts()
    assert [transcript.error for transcript in transcripts] == [None] * len(asked)
    assert [transcript.ids for transcript in transcripts] == alone
    server.wait_replaced(workers)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def references(count: int, last: dict[str, Any]) -> dict[str, Any]:
    """Definitions that refer to one another in a row."""
    chain = {str(index): {"$ref": f"#/$defs/{index + 1}"} for index in range(count)}
    return {"$ref": "#/$defs/0", "$defs": chain | {str(count): last}}


OPTIONS = [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(20)]} for i in range(20)]
PATTERNS = [f"(.*a){{{count}}}.*" for count in range(1, 40)]
HOSTILE: dict[str, dict[str, Any]] = {
    "lookahead": grammar("regex", "a(?=b)"),
    "open groups": grammar("regex", "(" * 5000),
    "repeated repeats": grammar("regex", "((a{9999}){9999}){9999}"),
    "long regex": grammar("regex", "a" * 1_000_000),
    "reference to itself": grammar("json", {"$ref": "#"}),
    "loop of references": grammar("json", references(2, {"$ref": "#/$defs/0"})),
    "long chain": grammar("json", references(9000, {"type": "null"})),
    "remote reference": grammar("json", {"$ref": "http://127.0.0.1:9/schema.json"}),
    "file reference": grammar("json", {"$ref": "file:///etc/passwd"}),
    "deep": grammar("json", nested(120)),
    "deep as text": grammar("json", "[" * 100_000),
    "large": grammar("json", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(30_000)}}),
    "large enum": grammar("json", {"enum": list(range(200_000))}),
    "large bound": grammar("json", {"type": "string", "maxLength": 10**9}),
    "large count": grammar("json", {"type": "array", "items": {}, "minItems": 10**9}),
    "large step": grammar("json", {"type": "integer", "multipleOf": 999_983}),
    "combinations": grammar("json", {"allOf": OPTIONS}),
    "patterns of one text": grammar("json", {"allOf": [{"type": "string", "pattern": one} for one in PATTERNS]}),
    "a list of itself": grammar("json", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
    "rules that never end": grammar("lark", "start: start"),
    "rules with intersections": grammar("lark", "start: A\nA: " + " & ".join(f"/{one}/" for one in PATTERNS)),
    "deep rules": grammar("lark", "start: " + "(" * 50_000),
    "many choices": grammar("choice", [f"choice {i}" for i in range(90_000)]),
}


def test_hostile_grammars_are_refused_while_a_stream_goes_on(server: Server) -> None:
    workers, request = (
        server.children(""),
        (PROMPT, {"max_new_tokens": 250, "grammar": grammar("regex", "[a-z ]{4000}")}),
    )
    undisturbed = streams.crowd_ids(server.url, [request])
    crowd = streams.Crowd(server.url, [request])
    crowd.wait_started()

    def ask(name: str) -> tuple[str, int, str]:
        body = {"inputs": "x", "parameters": {"grammar": HOSTILE[name], "max_new_tokens": 5}}
        answer = httpx.post(f"{server.url}/generate", json=body, timeout=60)
        return name, answer.status_code, answer.text[:300]

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, HOSTILE))
    assert [answer for answer in answers if answer[1] not in (400, 422)] == []
    assert all('"error"' in text for _, _, text in answers)
    transcript = crowd.transcripts()[0]
    assert (transcript.error, [transcript.ids]) == (None, undisturbed)
    assert server.children("") == workers


def test_schemas_of_every_keyword_are_held_to(server: Server) -> None:
    # Each eleventh, another one of every family: the worker's tests go through all of them.
    sample = schemas.corpus()[::11]

    def ask(schema: dict[str, Any]) -> tuple[dict[str, Any], str]:
        answer = server.generate(
            PROMPT, grammar=grammar("json", schema), max_new_tokens=340, details=True, temperature=3.0
        )
        assert answer["details"]["finish_reason"] in ("eos_token", "length"), answer
        return schema, answer["generated_text"] if answer["details"]["finish_reason"] == "eos_token" else ""

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(ask, (schema for _, schema in sample)))
    complete = [(schema, text) for schema, text in texts if text]
    assert len(complete) > len(sample) * 0.8
    for schema, text in complete:
        validator_for(schema, jsonschema.Draft202012Validator)(schema).validate(json.loads(text))


def test_a_constant_that_reads_like_a_control_token_is_text(server: Server) -> None:
    answer = server.generate(PROMPT, grammar=grammar("json", {"const": "</s><s>"}), max_new_tokens=40, details=True)
    assert (answer["generated_text"], answer["details"]["finish_reason"]) == ('"</s><s>"', "eos_token")
