//! A prompt that is encoded in pieces has the ids of the whole, whatever the tokenizer does at the ends of a text.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixture::{folder_with, tokenizer_json};
use super::{Conversation, TextModel};

/// The fixture with parts exchanged, by pointer.
fn with(parts: &[(&str, Value)]) -> TextModel {
    let mut tokenizer = tokenizer_json();
    for (pointer, part) in parts {
        *tokenizer.pointer_mut(pointer).unwrap() = part.clone();
    }
    TextModel::load(folder_with(&[("tokenizer.json", tokenizer)]).path(), None).unwrap()
}

fn kinds() -> Vec<TextModel> {
    let metaspace =
        |scheme: &str| json!({ "type": "Metaspace", "replacement": "_", "prepend_scheme": scheme, "split": false });
    let byte_level = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true });
    let spaced = json!({ "type": "Sequence", "pretokenizers": [metaspace("first"), byte_level(false)] });
    let always = json!({ "type": "Sequence", "pretokenizers": [metaspace("always"), byte_level(false)] });
    vec![
        with(&[]),
        with(&[("/pre_tokenizer", byte_level(true))]),
        with(&[("/pre_tokenizer", spaced)]),
        with(&[("/pre_tokenizer", always)]),
        with(&[("/normalizer", json!({ "type": "Prepend", "prepend": "_" }))]),
        with(&[("/normalizer", json!({ "type": "NFC" }))]),
        with(&[("/added_tokens/5/lstrip", json!(true)), ("/added_tokens/3/single_word", json!(true))]),
        with(&[("/added_tokens/2/rstrip", json!(true)), ("/added_tokens/6/rstrip", json!(true))]),
    ]
}

fn conversation(contents: &[String]) -> Conversation {
    let roles = ["user", "assistant", "tool", "system"].into_iter().cycle();
    let messages = roles.zip(contents).map(|(role, content)| json!({ "role": role, "content": content }));
    Conversation { messages: messages.collect(), ..Conversation::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn pieces_have_the_ids_of_the_whole_also_when_they_are_remembered(
        contents in proptest::collection::vec(
            "( {0,2}(<think>|<\\|end\\|>|<s>|<\\|user\\|>|e\\x{301}|_|word|\\n|[^x]){0,12} {0,2}|[a-z ]{60,90})",
            1..6,
        ),
    ) {
        for text in kinds() {
            for length in 1..=contents.len() {
                let conversation = conversation(&contents[..length]);
                let whole: Vec<u32> = text.chat_spans(&conversation).unwrap().spans.iter().map(|span| span.id).collect();
                for _ in 0..2 {
                    let pieces = text.render(&conversation).unwrap().encode().unwrap();
                    prop_assert_eq!(&pieces.ids, &whole);
                }
            }
        }
    }
}
