"""Token windows out of the corpus: packed for training, in order for measuring."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .corpus import ChatExample, SourceFile, chat_examples
from .tokenizer import BOS, EOS, SPECIAL_TOKENS

Ids = NDArray[np.int64]
BOS_ID, EOS_ID = SPECIAL_TOKENS.index(BOS), SPECIAL_TOKENS.index(EOS)


@dataclass(frozen=True)
class Corpus:
    files: list[Ids]  # no begin or end tokens
    chats: list[Ids]  # whole, from begin to end token
    held_out_files: list[Ids]
    held_out_bytes: int  # UTF-8 length of the held-out files

    @property
    def num_training_tokens(self) -> int:
        return sum(map(len, self.files)) + sum(map(len, self.chats))


def load_corpus(tokenizer: Tokenizer, files: list[SourceFile]) -> Corpus:
    train = [file for file in files if not file.held_out]
    held_out = [file for file in files if file.held_out]
    chats = [example for file in train for example in chat_examples(file)]
    return Corpus(
        files=_encode(tokenizer, [file.text for file in train]),
        chats=_encode(tokenizer, [chat_text(chat) for chat in chats]),
        held_out_files=_encode(tokenizer, [file.text for file in held_out]),
        held_out_bytes=sum(len(file.text.encode()) for file in held_out),
    )


def chat_text(chat: ChatExample) -> str:
    """One exchange as the tokenizer's chat template renders it, ended by the end token."""
    system = f"<|system|>{chat.system}\n" if chat.system else ""
    return f"{BOS}{system}<|user|>{chat.user}\n<|assistant|>{chat.assistant}{EOS}"


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[Ids]:
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [np.array(one.ids, dtype=np.int64) for one in encoded]


def training_windows(corpus: Corpus, window: int, rng: np.random.Generator) -> Iterator[Ids]:
    """Endless shuffled windows [window + 1]: inputs and, one to the left, targets.

    A file is cut at a random phase, anew in every epoch; each full cut is one window that starts with the begin token,
    so that the model learns to go on from the middle of a file. Tails and chat examples share windows.
    """
    body = window  # plus the begin token: window + 1 ids
    while True:
        whole: list[Ids] = []
        parts: list[Ids] = [corpus.chats[i] for i in rng.permutation(len(corpus.chats))]
        for ids in corpus.files:
            phase = int(rng.integers(0, body))
            pieces = np.split(ids, range(phase, len(ids), body))
            for index, piece in enumerate(pieces):
                with_begin = np.concatenate(([BOS_ID], piece))
                if len(piece) == body:
                    whole.append(with_begin)
                else:
                    is_end = index == len(pieces) - 1
                    parts.append(np.append(with_begin, EOS_ID) if is_end else with_begin)
        shuffled_parts = np.concatenate([parts[i] for i in rng.permutation(len(parts))])
        num_packed = len(shuffled_parts) // (window + 1)
        windows = whole + list(shuffled_parts[: num_packed * (window + 1)].reshape(num_packed, window + 1))
        for index in rng.permutation(len(windows)):
            yield windows[index]


def training_batch(windows: Iterator[Ids], rows: int) -> Ids:
    return np.stack([next(windows) for _ in range(rows)])


def held_out_windows(corpus: Corpus, window: int) -> Iterator[Ids]:
    """Each held-out file in order, cut every `window` tokens; every token is a target exactly once."""
    for ids in corpus.held_out_files:
        for start in range(0, len(ids), window):
            yield np.concatenate(([BOS_ID], ids[start : start + window]))
