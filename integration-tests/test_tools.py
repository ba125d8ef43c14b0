"""Calls of tools through the whole server, by the clients people have. A random model calls because it must."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import checkpoints
import httpx
import jsonschema
import millrace_launcher
import openai
import pytest
from conftest import Launch, Server
from huggingface_hub import InferenceClient
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel, Field

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
ASK: dict[str, Any] = {"model": "tgi", "messages": [{"role": "user", "content": "Weather?"}], "max_tokens": 200}
# As Mistral's newer models have it; the marker is a control token of the model.
MISTRAL = (
    "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}[TOOL_CALLS]{{ call.function.name }}"
    "[ARGS]{{ call.function.arguments | tojson }}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}{% endfor %}"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Weather(BaseModel):
    """The weather."""

    city: str = Field(max_length=5)
    unit: Literal["c", "f"]


def with_template(folder: Path, template: str) -> Path:
    """The same checkpoint with another template, and `<pad>` called `[TOOL_CALLS]`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace("<pad>", "[TOOL_CALLS]"), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory, launch_module: Launch) -> Server:
    folder = with_template(checkpoints.make(tmp_path_factory.mktemp("mistral")), MISTRAL)
    return launch_module(folder, "--dtype", "float32", "--max-total-tokens", "2048")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, launch_module: Launch) -> Server:
    """A model with the demo's template, which shows no tools; it is said to think first, without a mark for it."""
    demo = Path(millrace_launcher.__file__).parent / "demo" / "tokenizer_config.json"
    template = json.loads(demo.read_text(encoding="utf-8"))["chat_template"]
    folder = with_template(checkpoints.make(tmp_path_factory.mktemp("plain")), template)
    flags = ("--dtype", "float32", "--max-total-tokens", "2048", "--reasoning-parser", "deepseek_r1")
    return launch_module(folder, *flags)


@pytest.fixture(params=["mistral", "plain"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def check(calls: Iterable[Any] | None, *names: str) -> None:
    """Whole calls of these functions, in this order if they are named."""
    calls = list(calls or [])
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, SCHEMA if call.function.name == "get_weather" else {"maxProperties": 0})
    if names:
        assert [call.function.name for call in calls] == list(names)


def test_required_and_named_calls_hold_to_their_schema(server: Server) -> None:
    ai = client(server)
    for seed in range(4):
        answer = ai.chat.completions.create(
            **ASK, tools=TOOLS, tool_choice="required", seed=seed, max_completion_tokens=200
        )
        choice = answer.choices[0]
        assert choice.message.content is None
        if choice.finish_reason == "length":  # many calls in a row
            check((choice.message.tool_calls or [])[:-1] or choice.message.tool_calls)
            continue
        assert choice.finish_reason == "tool_calls"
        check(choice.message.tool_calls)
    for name in ("get_weather", "now"):
        choices: list[Any] = [{"type": "function", "function": {"name": name}}, name]
        for choice in choices:
            answer = ai.chat.completions.create(**ASK, tools=TOOLS, tool_choice=choice, seed=1, n=2).choices
            assert [one.finish_reason for one in answer] == ["tool_calls", "tool_calls"]
            for one in answer:
                check(one.message.tool_calls, name)


def test_streams_say_the_same(server: Server) -> None:
    ai = client(server)
    asked: Any = ASK | {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "logprobs": True}
    for seed in range(3):
        whole = ai.chat.completions.create(**asked, seed=seed).choices[0]
        check(whole.message.tool_calls)
        with ai.chat.completions.stream(**asked, seed=seed, stream_options={"include_usage": True}) as stream:
            events = list(stream)
            final = stream.get_final_completion()
        streamed = final.choices[0]
        assert (streamed.finish_reason, streamed.message.content) == ("tool_calls", None)
        (mine,), (theirs,) = streamed.message.tool_calls or [], whole.message.tool_calls or []
        assert isinstance(theirs, ChatCompletionMessageFunctionToolCall)
        assert (mine.function.name, mine.function.arguments) == (theirs.function.name, theirs.function.arguments)
        assert whole.logprobs is not None
        assert streamed.logprobs is not None
        assert len(streamed.logprobs.content or []) == len(whole.logprobs.content or [])
        assert final.usage is not None
        assert sum(event.type == "tool_calls.function.arguments.done" for event in events) == 1


def test_typed_tools_are_parsed(server: Server) -> None:
    ai = client(server)
    tool = openai.pydantic_function_tool(Weather)  # strict
    asked: Any = ASK | {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "seed": 5}
    (call,) = ai.chat.completions.parse(**asked).choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    with ai.chat.completions.stream(**asked) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert streamed.function.parsed_arguments == call.function.parsed_arguments


def test_a_free_model_may_say_what_it_likes(server: Server) -> None:
    ai = client(server)
    strict: Any = [openai.pydantic_function_tool(Weather), TOOLS[1]]
    for tools in (TOOLS, strict):
        asked: Any = ASK | {"max_tokens": 40, "tools": tools, "seed": 2}
        whole = ai.chat.completions.create(**asked).choices[0]
        assert whole.finish_reason in ("length", "stop", "tool_calls")
        chunks = list(ai.chat.completions.create(**asked, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == (whole.message.content or "")
        assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_thoughts_are_told_apart(plain: Server, mistral: Server) -> None:
    asked: Any = ASK | {"max_tokens": 30, "seed": 6}
    message = client(plain).chat.completions.create(**asked).choices[0].message
    thought = getattr(message, "reasoning_content", None)
    assert thought
    assert not message.content
    chunks = list(client(plain).chat.completions.create(**asked, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
    assert (
        getattr(client(mistral).chat.completions.create(**asked).choices[0].message, "reasoning_content", None) is None
    )
    # An answer that is bound to a format has no room for thoughts.
    form: Any = {"type": "regex", "value": "[0-9]{3}"}
    said = client(plain).chat.completions.create(**asked, response_format=form).choices[0].message
    assert re.fullmatch("[0-9]{3}", said.content or "")


def test_asynchronous_clients_at_once(mistral: Server) -> None:
    asked: Any = ASK | {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{mistral.url}/v1", api_key="-", max_retries=0) as ai:
            return await asyncio.gather(*(ai.chat.completions.create(**asked, seed=seed) for seed in range(8)))

    for answer in asyncio.run(ask()):
        check(answer.choices[0].message.tool_calls, "get_weather")


def test_a_call_that_is_cut_off_is_no_error(server: Server) -> None:
    asked: Any = ASK | {"tools": TOOLS, "tool_choice": "get_weather", "seed": 3}
    ai = client(server)
    whole = ai.chat.completions.create(**asked).choices[0].message.tool_calls
    assert whole
    assert isinstance(whole[0], ChatCompletionMessageFunctionToolCall)
    for length in range(1, 14, 3):
        choice = ai.chat.completions.create(**asked | {"max_tokens": length}).choices[0]
        assert choice.finish_reason == "length"
        assert not choice.message.content
        for part in choice.message.tool_calls or []:
            assert isinstance(part, ChatCompletionMessageFunctionToolCall)
            assert whole[0].function.arguments.startswith(part.function.arguments)


def test_results_go_back_to_the_model(server: Server) -> None:
    """Three turns of an agent's loop: it calls, is told what came of it, calls again, and answers."""
    ai = client(server)
    history: list[Any] = list(ASK["messages"])
    lengths: list[int] = []
    for turn in range(3):
        choice: Any = "now" if turn < 2 else "auto"
        asked: Any = ASK | {"messages": history, "tools": TOOLS, "tool_choice": choice, "max_tokens": 60}
        answer = ai.chat.completions.create(**asked)
        assert answer.usage is not None
        lengths.append(answer.usage.prompt_tokens)
        message = answer.choices[0].message
        history.append(message.model_dump(exclude_none=turn == 0))  # clients write what there is not in both ways
        for call in message.tool_calls or []:
            history.append({"role": "tool", "tool_call_id": call.id, "content": "noon </s>"})
        assert message.tool_calls or turn == 2
    assert lengths == sorted(set(lengths))


def test_the_hubs_client_calls(server: Server) -> None:
    hub = InferenceClient(server.url)
    messages = ASK["messages"]
    choices: list[Any] = ["required", "get_weather"]
    for choice in choices:
        answer = hub.chat_completion(messages, tools=TOOLS, tool_choice=choice, max_tokens=700, seed=4).choices[0]
        if answer.finish_reason == "length":
            continue
        assert answer.finish_reason == "tool_calls"
        for call in answer.message.tool_calls or []:
            assert isinstance(call.function.arguments, str)
            jsonschema.validate(
                json.loads(call.function.arguments), SCHEMA if call.function.name == "get_weather" else {}
            )
    stream = hub.chat_completion(messages, tools=TOOLS, tool_choice=choices[1], max_tokens=200, seed=4, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    fragments = [call.function.arguments for delta in deltas for call in delta.tool_calls or []]
    jsonschema.validate(json.loads("".join(fragments)), SCHEMA)


def test_a_response_format_stands_beside_tools(server: Server) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    ai = client(server)
    for seed in range(3):
        choice = ai.chat.completions.create(**ASK, tools=TOOLS, response_format=form, seed=seed).choices[0]
        if choice.message.tool_calls:
            continue
        jsonschema.validate(json.loads(choice.message.content or ""), schema)


def test_the_parser_is_the_templates_and_ids_are_such_as_it_takes(mistral: Server, plain: Server) -> None:
    names = [httpx.get(f"{server.url}/info").json()["tool_call_parser"] for server in (mistral, plain)]
    assert names == ["mistral", "json"]
    for server, form in ((mistral, r"[0-9a-zA-Z]{9}"), (plain, r"call_[0-9a-zA-Z]{24}")):
        answer = client(server).chat.completions.create(**ASK, tools=TOOLS, tool_choice="now")  # pyright: ignore[reportCallIssue, reportArgumentType]
        (call,) = answer.choices[0].message.tool_calls or []
        assert re.fullmatch(form, call.id)


def test_bad_tools_are_refused_by_their_place(plain: Server) -> None:
    def tool(**fields: Any) -> list[Any]:
        return [{"type": "function", "function": {"name": "f"} | fields}]

    bad: Any = {"type": "object", "properties": {"a": {"unevaluatedItems": False}}}
    ai = client(plain)
    for tools, choice, place in (
        (tool(name=""), "auto", "tools[0].function.name"),
        (tool(parameters=bad), "required", "tools[0].function.parameters"),
        (tool(parameters=bad, strict=True), "auto", "tools[0].function.parameters"),
        (tool(), "g", "tool_choice"),
    ):
        asked: Any = ASK | {"tools": tools, "tool_choice": choice}
        with pytest.raises(openai.BadRequestError) as error:
            ai.chat.completions.create(**asked)
        assert error.value.param == place
