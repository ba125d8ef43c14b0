"""The requests of the load: greedy or by a seed, so that an answer is a function of its body and can be checked."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from enum import Enum
from typing import Any

_TEXT = (
    "the quick brown fox jumps over the lazy dog while def return import class print for in range "
    "a river runs to the sea and nobody asks why the stars are out tonight"
)


class Api(Enum):
    """A route, and with it the form of the answer."""

    GENERATE_STREAM = "/generate_stream"
    GENERATE = "/generate"
    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Ask:
    """One distinct request."""

    number: int
    api: Api
    prompt: str
    new_tokens: int
    seed: int | None

    def body(self) -> bytes:
        if self.api in (Api.GENERATE, Api.GENERATE_STREAM):
            return json.dumps({"inputs": self.prompt, "parameters": self._parameters()}).encode()
        told: dict[str, Any] = {"max_tokens": self.new_tokens, "stream": True, "model": "-", "temperature": 0}
        told["stream_options"] = {"include_usage": True}
        if self.seed is not None:
            told |= {"temperature": 0.9, "top_p": 0.95, "seed": self.seed}
        if self.api is Api.CHAT:
            told["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            told["prompt"] = self.prompt
        return json.dumps(told).encode()

    def _parameters(self) -> dict[str, Any]:
        told: dict[str, Any] = {"max_new_tokens": self.new_tokens, "details": True}
        if self.seed is not None:
            told |= {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "seed": self.seed}
        return told


@dataclass(frozen=True)
class Sizes:
    """How long requests may be: words of a prompt, tokens of an answer."""

    prompt_words: int
    new_tokens: int


def make_asks(count: int, sizes: Sizes, chance: random.Random, *, chat: bool) -> list[Ask]:
    """`count` distinct requests over all routes; every other one is sampled with a seed. Without `chat`, for models
    that have no template, completions take the place of conversations."""
    talk = Api.CHAT if chat else Api.COMPLETIONS
    routes = [Api.GENERATE_STREAM, talk, Api.GENERATE_STREAM, Api.GENERATE]
    made: list[Ask] = []
    for number in range(count):
        words = chance.choices(_TEXT.split(), k=chance.randint(1, max(sizes.prompt_words, 1)))
        new_tokens = chance.randint(min(8, sizes.new_tokens), sizes.new_tokens)
        seed = 1000 + number if (number // len(routes)) % 2 else None
        prompt = f"{number}: {' '.join(words)}"
        made.append(Ask(number, routes[number % len(routes)], prompt, new_tokens, seed))
    return made
