//! Model folders for tests, written on the spot.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::TextModel;

/// Control tokens of the fixture; their ids are their places. The last one is added, but not marked special.
pub(crate) const ADDED: [&str; 7] = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>"];

/// Ids of bytes begin here: one token per byte of text.
pub(crate) const FIRST_BYTE: u32 = 7;
pub(crate) const VOCAB_SIZE: u32 = FIRST_BYTE + 256;

pub(crate) const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('Unknown role ' + message.role) }}{% endif %}\
<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// A byte-level tokenizer without merges that puts `<s>` in front of a prompt.
pub(crate) fn tokenizer_json() -> Value {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let vocab: serde_json::Map<String, Value> =
        (FIRST_BYTE..).zip(bytes).map(|(id, byte)| (byte.to_string(), json!(id))).collect();
    let added: Vec<Value> = ADDED
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *content != "<think>" })
        })
        .collect();
    let mut all: serde_json::Map<String, Value> =
        ADDED.iter().enumerate().map(|(id, content)| ((*content).to_owned(), json!(id))).collect();
    all.extend(vocab);
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": all, "merges": []
        }
    })
}

pub(crate) fn tokenizer_config() -> Value {
    json!({ "bos_token": "<s>", "eos_token": {"content": "</s>"}, "model_max_length": 1e30, "chat_template": TEMPLATE })
}

pub(crate) fn write(folder: &Path, name: &str, content: &Value) {
    std::fs::write(folder.join(name), content.to_string()).unwrap();
}

/// The fixture's folder with some files replaced; a null removes one.
pub(crate) fn folder_with(files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "tokenizer.json", &tokenizer_json());
    write(folder.path(), "tokenizer_config.json", &tokenizer_config());
    write(folder.path(), "config.json", &json!({ "eos_token_id": 1 }));
    for (name, content) in files {
        if content.is_null() {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        } else {
            write(folder.path(), name, content);
        }
    }
    folder
}

pub(crate) fn text_model() -> TextModel {
    TextModel::load(folder_with(&[]).path(), None).unwrap()
}

/// The fixture with another chat template.
pub(crate) fn with_template(template: &str) -> TextModel {
    let mut config = tokenizer_config();
    config["chat_template"] = json!(template);
    TextModel::load(folder_with(&[("tokenizer_config.json", config)]).path(), None).unwrap()
}

/// The id of one byte.
pub(crate) fn byte(byte: u8) -> u32 {
    let text = char::from(byte).to_string();
    text_model().tokenizer().encode_fast(text.as_str(), false).unwrap().get_ids()[0]
}
