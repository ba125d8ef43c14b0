"""The shipped model: complete, small, loadable by transformers, and really a model of Python."""

import json
import math
import random
import re
from pathlib import Path

import millrace_launcher
import pytest
import torch
from demo_training.batches import chat_text
from demo_training.corpus import ChatExample, read_standard_library
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(millrace_launcher.__file__).parent / "demo"
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def held_out_text():
    """Some text that the model was never trained on, if this Python is the one it was trained with."""
    files = [file for file in read_standard_library() if file.held_out]
    return "\n".join(file.text for file in files)[:40_000]


def perplexity(model, ids):
    windows = torch.tensor(ids[: len(ids) // 512 * 512]).view(-1, 512)
    begin = torch.zeros(len(windows), 1, dtype=torch.int64)
    with torch.inference_mode():
        logits = model(torch.cat((begin, windows), dim=1)).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows.flatten()).item())


def complete(model, tokenizer, prompt, num_tokens):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_folder_is_complete_and_small():
    sizes = {path.name: path.stat().st_size for path in DEMO.iterdir() if path.is_file()}
    expected = {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert set(sizes) == expected
    assert sum(sizes.values()) <= MOST_BYTES


def test_the_weights_are_bfloat16_and_exactly_those_of_the_architecture(model):
    weights = load_file(DEMO / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    assert {name: tensor.shape for name, tensor in weights.items()} == expected
    assert AutoModelForCausalLM.from_pretrained(DEMO, dtype="auto").dtype == torch.bfloat16


def test_tokens_and_configuration_belong_together(model, tokenizer):
    config = model.config
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == list(range(5))
    generation = json.loads((DEMO / "generation_config.json").read_text())
    assert (config.bos_token_id, config.eos_token_id) == (0, 1)
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (0, 1)
    assert tokenizer.model_max_length == config.max_position_embeddings


def test_a_conversation_goes_on_behind_a_call(tokenizer):
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    history = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    prompt = tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True)
    written = '{"name": "now", "arguments": {"zone": "UTC"}}'
    assert prompt == f"<s><|user|>Time?\n<|assistant|>{written}</s><|user|>noon\n<|assistant|>"


def test_any_text_survives_the_tokenizer(tokenizer):
    rng = random.SystemRandom()
    for text in (
        "def f(x):\n\treturn x\n",
        "héllo 😀 \u0000 日本",
        "".join(chr(rng.randrange(32, 0xD800)) for _ in range(200)),
    ):
        ids = tokenizer(text).input_ids
        assert ids[0] == 0
        assert tokenizer.decode(ids[1:]) == text


def test_the_chat_template_writes_what_the_model_was_trained_on(tokenizer):
    chat = ChatExample(system="Be short.", user="Write f.", assistant="def f(): pass")
    messages = [
        {"role": "system", "content": chat.system},
        {"role": "user", "content": chat.user},
        {"role": "assistant", "content": chat.assistant},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == chat_text(chat)
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked + chat.assistant + "</s>" == chat_text(chat)


def test_a_role_that_the_model_does_not_know_is_refused(tokenizer):
    with pytest.raises(Exception, match="Unknown role robot"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "hi"}], tokenize=False)


def test_held_out_perplexity_is_what_the_card_says(model, tokenizer, held_out_text):
    (stated,) = re.findall(r"^\| 512 \| ([0-9.]+)", (DEMO / "README.md").read_text(), re.MULTILINE)
    ids = tokenizer(held_out_text, add_special_tokens=False).input_ids
    # Part of the text, and maybe another Python than the card's: near, not equal.
    assert perplexity(model, ids) == pytest.approx(float(stated), rel=0.4)


def test_it_is_a_model_of_python_and_not_of_its_tokens_alone(model, tokenizer, held_out_text):
    ids = tokenizer(held_out_text, add_special_tokens=False).input_ids
    shuffled = random.Random(0).sample(ids, len(ids))
    assert perplexity(model, ids) < 0.05 * perplexity(model, shuffled)


def test_continuations_look_like_python(model, tokenizer):
    text = complete(model, tokenizer, "import os\n\n\nclass Reader:\n    def __init__(self, path):", 40)
    assert re.search(r"^        self\.\w+ = ", text, re.MULTILINE)
    assert re.search(
        r"^ +def \w+\(self", complete(model, tokenizer, 'class Queue:\n    """A queue."""\n', 40), re.MULTILINE
    )


def test_a_chat_answers_with_a_function_and_ends(model, tokenizer):
    prompt = "<|user|>Write a Python function named close. Close the file.\n<|assistant|>"
    text = complete(model, tokenizer, prompt, 200)
    assert text.startswith("def close(")
