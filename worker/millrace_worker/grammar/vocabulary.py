"""The tokens of a model as bytes, as grammars see them: from tokenizer.json, the file that the router encodes by.

The library knows tokenizers of bytes (byte-level, or with byte fallback). Of Metaspace tokenizers it is told the texts
of the tokens. Where the text of a token depends on the tokens around it (WordPiece), no grammar can be kept:
`VocabularyError` says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import AddedToken, Tokenizer

# Stands for "any token that ends the text" in masks. No model has it: which real tokens end a text, each row says.
END = "\ue000end of the grammar's text\ue000"

METASPACE = "\u2581"


class VocabularyError(ValueError):
    """No grammar can be kept with this tokenizer; the message says why."""


@dataclass(frozen=True)
class Vocabulary:
    """`end`: the id that stands for the end of a text, beyond the tokenizer's own. `hidden`: special tokens, which a
    client does not see. `odd`: tokens that are written as something else than the library believes; no grammar takes
    them. `num_words`: 32-bit words of a mask."""

    tokenizer: LLTokenizer
    end: int
    hidden: tuple[int, ...]
    odd: tuple[int, ...]

    @property
    def num_words(self) -> int:
        return -(-self.tokenizer.vocab_size // 32)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Takes a second for a hundred thousand tokens, and holds the interpreter's lock. Raises VocabularyError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise VocabularyError(f"there is no tokenizer.json in {folder.name}: save the fast tokenizer there")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise VocabularyError(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    hidden = tuple(sorted(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special))
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    end = tokenizer.token_to_id(END)
    if end is None:
        raise VocabularyError("its tokenizer takes no further token")
    text = tokenizer.to_str()
    try:
        known = LLTokenizer(text, eos_token=[end])
    except ValueError as error:
        pieces = _Pieces.of(tokenizer, json.loads(text), end, str(error))
        known = LLTokenizer(TokenizerWrapper(pieces), eos_token=[end])
    return Vocabulary(known, end, hidden, _odd(tokenizer, known))


def _odd(tokenizer: Tokenizer, known: LLTokenizer) -> tuple[int, ...]:
    """Of the tokens that were added to the vocabulary: some normalizers write a space before them."""
    added = tokenizer.get_added_tokens_decoder()
    before = next(
        (i for i in range(tokenizer.get_vocab_size()) if i not in added and tokenizer.decode([i]).isalnum()), 0
    )
    return tuple(
        i
        for i, token in added.items()
        if not _is_control(token)
        and tokenizer.decode([before, i]) != tokenizer.decode([before]) + known.decode_str([i])
    )


def _is_control(token: AddedToken) -> bool:
    """Whether it stands for itself and never for its text, as the library and the router have it."""
    return token.special or (token.content.startswith("<") and token.content.endswith(">"))


class _Pieces:
    """A tokenizer whose tokens the library is told: texts as UTF-8, by id."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_token_ids: Sequence[int], end: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_token_ids, end
        plain = set(range(len(tokens))).difference(special_token_ids)
        self._ids = {tokens[i]: i for i in sorted(plain, reverse=True) if tokens[i]}
        self._longest = max(map(len, self._ids), default=0)

    @classmethod
    def of(cls, tokenizer: Tokenizer, described: dict[str, Any], end: int, refusal: str) -> _Pieces:
        """Of a tokenizer that writes spaces as a mark and has no bytes. Raises VocabularyError for any other."""
        decoder = described.get("decoder") or {"type": "none"}
        if decoder["type"] != "Metaspace":
            raise VocabularyError(
                f"with its tokenizer's decoder ({decoder['type']}) the text of a token depends on the tokens around it"
                if "decoder type" in refusal
                else f"its tokenizer cannot be used: {refusal}"
            )
        added = tokenizer.get_added_tokens_decoder()
        mark = decoder.get("replacement", METASPACE)
        texts = [tokenizer.id_to_token(i) or "" for i in range(end + 1)]
        tokens = [(text if i in added else text.replace(mark, " ")).encode() for i, text in enumerate(texts)]
        return cls(tokens, sorted(i for i, token in added.items() if _is_control(token)), end)

    def __call__(self, text: bytes | str) -> list[int]:
        """Always the longest token that fits, up to where none does."""
        data = text.encode() if isinstance(text, str) else text
        ids, at = [], 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            end = next((end for end in ends if data[at:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[data[at:end]])
            at = end
        return ids
