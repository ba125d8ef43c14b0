"""The clients people have: huggingface_hub's and OpenAI's, unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import openai
import pytest
from conftest import Launch, Server
from huggingface_hub import InferenceClient

PROMPT = "def compare(server, reference"


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(checkpoint(), "--dtype", "float32", "--max-total-tokens", "512")


def text_of(hub: InferenceClient, new_tokens: int) -> str:
    return hub.text_generation(PROMPT, max_new_tokens=new_tokens, return_full_text=False)


def test_text_generation(hub: InferenceClient) -> None:
    text = hub.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    assert isinstance(text, str)
    assert text
    assert hub.text_generation(PROMPT, max_new_tokens=12) == PROMPT + text  # the original's default at `/`


def test_text_generation_with_details(hub: InferenceClient) -> None:
    answer = hub.text_generation(PROMPT, max_new_tokens=12, details=True, return_full_text=False)
    assert answer.generated_text == text_of(hub, 12)
    assert answer.details is not None
    assert answer.details.finish_reason == "length"
    assert answer.details.generated_tokens == len(answer.details.tokens) == 12
    assert all(token.logprob <= 0 for token in answer.details.tokens)


def test_streamed_text_equals_the_whole(hub: InferenceClient) -> None:
    whole = text_of(hub, 20)
    pieces = list(hub.text_generation(PROMPT, max_new_tokens=20, stream=True))
    assert len(pieces) == 20
    # As with the original, a streamed token says its text also when it is special; the whole text leaves those out.
    said = "".join(piece for piece in pieces if piece not in checkpoints.SPECIAL)
    # An incomplete character at the end is no token's text, as with the original; the whole text shows it as one.
    assert said == whole.removesuffix("\ufffd") or said == whole


def test_streamed_details(hub: InferenceClient) -> None:
    events = list(hub.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True, return_full_text=False))
    assert [event.index for event in events] == list(range(1, 9))
    assert all(event.details is None for event in events[:-1])
    last = events[-1]
    assert last.generated_text == text_of(hub, 8)
    assert last.details is not None
    assert (last.details.finish_reason, last.details.generated_tokens) == ("length", 8)


def test_completion(ai: openai.OpenAI, hub: InferenceClient) -> None:
    answer = ai.completions.create(model="tgi", prompt=PROMPT, max_tokens=10, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == text_of(hub, 10)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 10


def test_completion_of_several_prompts_keeps_their_order(ai: openai.OpenAI) -> None:
    prompts = [PROMPT, "import json", "class Server:"]
    alone = [ai.completions.create(model="tgi", prompt=p, max_tokens=6, temperature=0) for p in prompts]
    answer = ai.completions.create(model="tgi", prompt=prompts, max_tokens=6, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [a.choices[0].text for a in alone]


def test_streamed_completion(ai: openai.OpenAI) -> None:
    whole = ai.completions.create(model="tgi", prompt=PROMPT, max_tokens=10, temperature=0)
    chunks = list(
        ai.completions.create(
            model="tgi",
            prompt=PROMPT,
            max_tokens=10,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a list?"}]


def test_chat(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=9, temperature=0)  # pyright: ignore[reportArgumentType]
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 9


def test_several_choices_with_logprobs(ai: openai.OpenAI) -> None:
    asked = {"model": "tgi", "messages": MESSAGES, "max_tokens": 9, "seed": 7, "n": 3, "logprobs": True}
    answer = ai.chat.completions.create(**asked, top_logprobs=2)  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    one = ai.chat.completions.create(**asked | {"n": 1})  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert answer.choices[0].message.content == one.choices[0].message.content
    assert answer.usage is not None
    num_tokens = 0
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        num_tokens += len(choice.logprobs.content)
        assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in choice.logprobs.content)
        said = b"".join(
            bytes(entry.bytes or []) for entry in choice.logprobs.content if entry.token not in checkpoints.SPECIAL
        )
        assert said.decode(errors="replace") == choice.message.content
    assert answer.usage.completion_tokens == num_tokens


def test_a_prompt_is_scored_by_its_echo(ai: openai.OpenAI) -> None:
    """As evaluation harnesses do: nothing generated, the logprob of each prompt token and of the likeliest in
    its place; text and ids alike."""
    ids = checkpoints.tokenizer().encode(PROMPT)
    by_text, by_ids = (
        ai.completions.create(model="tgi", prompt=prompt, max_tokens=0, echo=True, logprobs=1).choices[0]
        for prompt in (PROMPT, ids)
    )
    assert by_text.logprobs is not None
    assert by_ids.logprobs is not None
    logprobs = by_text.logprobs.token_logprobs
    assert logprobs is not None
    assert len(logprobs) == len(ids)
    assert logprobs[0] is None
    assert all(logprob is not None and logprob < 0 for logprob in logprobs[1:])
    assert by_ids.logprobs.token_logprobs == pytest.approx(logprobs)
    assert by_text.text == PROMPT
    top = by_text.logprobs.top_logprobs
    assert top is not None
    assert top[0] is None
    for token, logprob, best in zip((by_text.logprobs.tokens or [])[1:], logprobs[1:], top[1:], strict=True):
        assert best[token] == pytest.approx(logprob)
        assert len(best) <= 2
        assert max(best.values()) >= logprob


def test_a_bias_and_a_minimum_length(ai: openai.OpenAI) -> None:
    asked = {"model": "tgi", "prompt": PROMPT, "temperature": 0}
    plain = ai.completions.create(**asked, max_tokens=6).choices[0].text
    ids = checkpoints.tokenizer().encode("Z", add_special_tokens=False)
    biased = ai.completions.create(**asked, max_tokens=6, logit_bias={str(ids[0]): 100})
    assert biased.choices[0].text == "Z" * 6 != plain
    end = {str(checkpoints.tokenizer().eos_token_id): 100}
    ended = ai.completions.create(**asked, max_tokens=9, logit_bias=end)
    assert ended.choices[0].finish_reason == "stop"
    assert ended.usage is not None
    assert ended.usage.completion_tokens == 1
    longer = ai.completions.create(**asked, max_tokens=9, logit_bias=end, extra_body={"min_tokens": 5})
    assert longer.usage is not None
    assert longer.usage.completion_tokens == 6  # the end comes as soon as it may


def test_models_are_found_by_name(ai: openai.OpenAI) -> None:
    (served,) = ai.models.list().data
    assert ai.models.retrieve(served.id) == served
    with pytest.raises(openai.NotFoundError) as error:
        ai.models.retrieve("gpt-4o")
    assert error.value.code == "model_not_found"


def test_streamed_chat_equals_the_whole(ai: openai.OpenAI) -> None:
    asked = {"model": "tgi", "messages": MESSAGES, "max_tokens": 9, "seed": 7, "temperature": 0.8}
    whole = ai.chat.completions.create(**asked)
    chunks = list(ai.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_errors_are_openais(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        ai.completions.create(model="tgi", prompt=PROMPT, max_tokens=0)
    assert refused.value.status_code in {400, 422}
    assert isinstance(refused.value.body, dict)
    assert {"message", "type", "param", "code"} <= refused.value.body.keys()
