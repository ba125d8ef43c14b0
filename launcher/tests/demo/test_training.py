"""The training script's parts: what is data, what is held out, and that what it saves is what it trained."""

import textwrap

import numpy as np
import pytest
import torch
from demo_training import batches, train
from demo_training.corpus import SourceFile, chat_examples, read_standard_library
from demo_training.network import Llama, Shape
from demo_training.tokenizer import train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

SOURCE = textwrap.dedent('''
    class Box:
        @property
        def size(self):
            """Return the size.

            More words.
            """
            return self._size

    def undocumented():
        return 1

    def add(a, b=2):
        """Add two numbers."""
        return a + b
''')


@pytest.fixture
def small_corpus():
    torch.set_num_threads(1)
    files = [
        SourceFile(f"file{index}.py", SOURCE.replace("Box", f"Box{index}") * 8, index % 5 == 0) for index in range(10)
    ]
    tokenizer = train_tokenizer(file.text for file in files if not file.held_out)
    return tokenizer, batches.load_corpus(tokenizer, files)


def test_documented_functions_become_chats():
    chats = [chat for index in range(40) for chat in chat_examples(SourceFile(f"{index}.py", SOURCE, False))]
    assert len(chats) == 80
    written = [chat for chat in chats if chat.assistant.startswith(("def add", "@property\ndef size"))]
    explained = [chat for chat in chats if chat.assistant in ("Add two numbers.", "Return the size.")]
    assert len(written) + len(explained) == 80
    assert len(written) > len(explained) > 0
    assert all("Add two" in chat.user or "Return the size" in chat.user or "`" in chat.user for chat in written)
    assert not any('"""' in chat.user for chat in explained)
    assert {chat.system for chat in chats} > {""}


def test_a_file_that_does_not_parse_has_no_chats():
    assert list(chat_examples(SourceFile("x.py", "def f(:\n", False))) == []


def test_the_corpus_is_the_same_each_time_and_tests_are_not_in_it():
    files = read_standard_library()
    assert files == read_standard_library()
    names = {file.name for file in files}
    assert {"os.py", "json/decoder.py"} <= names
    assert not [name for name in names if "/test" in name or "site-packages" in name]
    share = sum(file.held_out for file in files) / len(files)
    assert 0 < share < 0.1


def test_held_out_files_are_in_no_training_window(small_corpus):
    tokenizer, corpus = small_corpus
    windows = batches.training_windows(corpus, 64, np.random.default_rng(0))
    text = "".join(tokenizer.decode(next(windows).tolist()) for _ in range(200))
    assert "Box1" in text
    assert "Box0" not in text
    assert "Box5" not in text
    assert len(corpus.held_out_files) == 2


def test_every_held_out_token_is_a_target_once(small_corpus):
    _, corpus = small_corpus
    targets = np.concatenate([window[1:] for window in batches.held_out_windows(corpus, 33)])
    assert targets.tolist() == np.concatenate(corpus.held_out_files).tolist()


def test_training_lowers_the_loss_and_what_is_saved_is_what_was_trained(small_corpus, tmp_path):
    tokenizer, corpus = small_corpus
    torch.manual_seed(1)
    shape = Shape(tokenizer.get_vocab_size(), 64, 2, 4, 2, 96, max_positions=128)
    model = Llama(shape)
    before, count = train.held_out_nats(model, corpus, 128)
    train.train(model, corpus, train.Recipe(num_tokens=30 * 512, window=64, long_window=128, batch_tokens=512))
    after, _ = train.held_out_nats(model, corpus, 128)
    assert count == sum(map(len, corpus.held_out_files))
    assert after < 0.5 * before

    train.save_checkpoint(model, tokenizer, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model.load_state_dict({name: t.to(torch.bfloat16).float() for name, t in model.state_dict().items()})
    ids = torch.randint(0, shape.vocab_size, (2, 50))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path)("def add").input_ids == tokenizer.encode("def add").ids
