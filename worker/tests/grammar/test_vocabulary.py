"""Tokenizers of every kind: the bytes of their tokens, or the reason why there is no grammar."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher
from millrace_worker.config import WorkerConfig
from millrace_worker.grammar import VocabularyError, read_vocabulary
from millrace_worker.grammar.matchers import UNFORCED
from millrace_worker.load import load_rank
from millrace_worker.proto import worker_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .conftest import DEMO
from .noisy import NoisyModel, Request, generate, noisy_engine, seeded

SPECIAL = ["<unk>", "</s>"]
TEXTS = ['say {"a": 12, "b": [true, false]} the quick brown fox'] * 9 + [chr(code) * 3 for code in range(33, 127)]
GRAMMAR = 'start: %json {"type": "array", "items": {"enum": ["fox", "the quick", "ü"]}, "minItems": 3, "maxItems": 5}'


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tokenizer


def _byte_fallback() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    space = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL + names))
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [each for each in described["added_tokens"] if each["content"] not in names]
    return Tokenizer.from_str(json.dumps(described))


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator([*TEXTS, "ü"], trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    return tokenizer


def _folder(path: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("make", [_byte_level, _byte_fallback, _unigram])
def test_a_model_speaks_json_in_its_own_tokens(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    tokenizer = make()
    plain = AddedToken("e quick", normalized=False)
    tokenizer.add_tokens([AddedToken("quick"), plain, AddedToken("<|x|>", special=True)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    vocabulary = read_vocabulary(_folder(tmp_path, tokenizer))
    size = tokenizer.get_vocab_size()
    assert (vocabulary.end, vocabulary.hidden) == (size, (0, 1, size - 1))
    assert vocabulary.odd == ((size - 3,) if make is _byte_fallback else ())
    engine = noisy_engine(vocabulary, NoisyModel(size + 24))
    for first in range(5):
        generated = generate(engine, {0: Request(seeded(GRAMMAR), prompt=[first, 9])})
        assert generated.failed == {}
        *said, end = generated.ids[0]
        assert end == 1
        assert not set(said) & set(vocabulary.hidden)
        items = json.loads(vocabulary.tokenizer.decode_str(said))
        assert 3 <= len(items) <= 5
        assert set(items) <= {"fox", "the quick", "ü"}
        assert json.loads(tokenizer.decode(said)) == items


@pytest.mark.parametrize("make", [_byte_level, _byte_fallback, _unigram])
def test_added_tokens_in_angle_brackets_are_written_by_id_only(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    """The router, which names Qwen's `<tool_call>` by its id, goes by the same rule."""
    tokenizer = make()
    tokenizer.add_tokens([AddedToken("<tool_call>"), AddedToken("<|x"), AddedToken("</s >")])
    first = tokenizer.get_vocab_size() - 3
    vocabulary = read_vocabulary(_folder(tmp_path, tokenizer))
    assert not set(vocabulary.odd) & {first, first + 2}, "whoever asks for one by its id gets it"

    def allowed(grammar: str) -> list[bool]:
        matcher = LLMatcher(vocabulary.tokenizer, UNFORCED + grammar, log_level=0)
        mask = matcher.compute_bitmask()
        return [bool(mask[i // 8] >> (i % 8) & 1) for i in range(first, first + 3)]

    assert allowed("start: /(.|\\n)*/") == [False, True, False]
    assert allowed('start: "<tool_call>"') == [False, False, False]
    assert allowed(f"start: <[{first}]>") == [True, False, False]


def test_what_its_tokens_cannot_say_fails_alone(tmp_path: Path) -> None:
    """As with T5, whose vocabulary has no braces."""
    vocabulary = read_vocabulary(_folder(tmp_path, _unigram()))
    generated = generate(noisy_engine(vocabulary, NoisyModel(190)), {0: Request(seeded('start: "日本"'))})
    assert "no token" in generated.failed[0] or "cannot go on" in generated.failed[0]


def test_a_tokenizer_whose_tokens_have_no_text_of_their_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="WordPiece"):
        read_vocabulary(_folder(tmp_path, _word_piece()))
    plain = _word_piece()
    plain.decoder = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(VocabularyError, match="depends on the tokens around it"):
        read_vocabulary(_folder(tmp_path, plain))


def test_no_tokenizer_and_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"there is no tokenizer\.json"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(VocabularyError, match="cannot be read"):
        read_vocabulary(tmp_path)


def test_a_rank_describes_what_it_can_and_why_not(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "model")
    rank = load_rank(WorkerConfig(model_path=folder, uds_path="unused"))
    assert "grammar" in rank.describe().capabilities
    asked: dict[str, Any] = {"max_rows": 3, "max_step_tokens": 64, "max_pool_tokens": 640}
    without = rank.prepare(worker_pb2.PrepareRequest(**asked))
    priced = rank.prepare(worker_pb2.PrepareRequest(**asked, grammars=True))
    assert priced.workspace_bytes >= without.workspace_bytes + (3 << 20)
    _folder(folder, _word_piece())
    described = load_rank(WorkerConfig(model_path=folder, uds_path="unused")).describe()
    assert "grammar" not in described.capabilities
    assert "WordPiece" in described.missing["grammar"]
