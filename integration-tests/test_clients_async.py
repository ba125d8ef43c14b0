"""The clients people have, asynchronous and streamed, and the errors that they know by class and code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Launch, Server
from huggingface_hub import AsyncInferenceClient, InferenceClient

PROMPT = "def check(server, reference"
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a list?"}]
KEY = "secret"


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    flags = ("--dtype", "float32", "--max-total-tokens", "512", "--strict-model-names")
    return launch_module(checkpoint(), *flags, API_KEY=KEY)


@pytest.fixture(scope="module")
def ai(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def test_asynchronous_openai_at_once_streamed_and_whole(server: Server) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as ai:
            asked: Any = {"model": "tgi", "messages": MESSAGES, "max_completion_tokens": 12, "seed": 3}
            whole, *others = await asyncio.gather(*[ai.chat.completions.create(**asked) for _ in range(4)])
            said = whole.choices[0].message.content
            assert [other.choices[0].message.content for other in others] == [said] * 3
            stream = await ai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
            assert chunks[-1].usage is not None
            assert whole.usage is not None
            assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
            async with ai.chat.completions.stream(**asked) as helper:
                deltas = [event.delta async for event in helper if event.type == "content.delta"]
            assert "".join(deltas) == said
            text = await ai.completions.create(model="tgi", prompt=PROMPT, max_tokens=6, temperature=0)
            pieces = await ai.completions.create(model="tgi", prompt=PROMPT, max_tokens=6, temperature=0, stream=True)
            assert "".join([c.choices[0].text async for c in pieces if c.choices]) == text.choices[0].text

    asyncio.run(ask())


def test_asynchronous_hub_client(server: Server) -> None:
    async def ask() -> None:
        async with AsyncInferenceClient(server.url, token=KEY) as hub:
            whole = await hub.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
            events = await hub.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True)
            assert isinstance(events, AsyncIterable)
            *_, last = [event async for event in events]
            assert last.generated_text is not None
            assert last.generated_text.endswith(whole)
            answer = await hub.chat_completion(MESSAGES, max_tokens=8, seed=5)
            stream = await hub.chat_completion(MESSAGES, max_tokens=8, seed=5, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(pieces) == answer.choices[0].message.content

    asyncio.run(ask())


def test_the_hubs_client_chats(server: Server) -> None:
    hub = InferenceClient(server.url, token=KEY)
    asked: Any = {"max_tokens": 8, "seed": 5, "logprobs": True, "top_logprobs": 2, "stop": ["zzzz"]}
    answer = hub.chat_completion(MESSAGES, **asked)
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    pieces = list(hub.chat_completion(MESSAGES, **asked, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in pieces if c.choices) == answer.choices[0].message.content


def test_every_field_that_changes_nothing_is_taken(ai: openai.OpenAI) -> None:
    plain = ai.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=8, temperature=0)
    neutral: Any = {
        "user": "somebody",
        "metadata": {"a": "b"},
        "store": False,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "logit_bias": {},
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "service_tier": "auto",
        "stop": "zzzzzzzz",
        "n": 1,
        "extra_body": {"min_p": 0, "top_k": -1, "repetition_penalty": 1, "ignore_eos": None, "min_tokens": 0},
    }
    answer = ai.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=8, temperature=0, **neutral)
    assert answer.choices == plain.choices
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_errors_have_the_classes_and_codes_that_programs_look_for(server: Server, ai: openai.OpenAI) -> None:
    picture: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(openai.BadRequestError) as error:
        ai.chat.completions.create(model="tgi", messages=picture)
    assert (error.value.code, error.value.param) == ("unsupported_parameter", "messages[0].content[0]")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            ai.completions.create(model="tgi", prompt="word " * 2000, stream=stream)
        assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as error:
        ai.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as error:
        ai.completions.create(model="tgi", prompt="a", suffix="b")
    assert error.value.param == "suffix"
    with pytest.raises(openai.BadRequestError) as error:
        ai.chat.completions.create(model="tgi", messages=MESSAGES, temperature=-1)
    assert error.value.param == "temperature"
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        wrong.chat.completions.create(model="tgi", messages=MESSAGES)
    assert refused.value.code == "invalid_api_key"
