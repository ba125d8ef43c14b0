//! How much text one token can cover: what is surely too long need not be tokenized to be refused.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// By how much NFC can shorten a text in UTF-8, rounded up. Over all of Unicode the worst is U+1FBE U+0308 U+0301: seven
/// bytes become the two of U+0390.
const NFC_SHRINKS: usize = 4;

/// The parts of tokenizer.json that decide whether a bound is known.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

/// Bytes of text that a token covers at most. `None` where text can vanish or one token stand for any amount of it: unknown
/// words, stripped white space, normalizers and pre-tokenizers that drop or shorten in ways not known here.
pub(super) fn longest_token(json: &[u8], tokenizer: &Tokenizer) -> Option<usize> {
    let parts: Parts = serde_json::from_slice(json).ok()?;
    if parts.model.r#type != "BPE" || parts.added_tokens.iter().any(|added| added.lstrip || added.rstrip) {
        return None;
    }
    let shrinks = shrinks(&parts.normalizer)?;
    let is_byte_level = is_byte_level(&parts.pre_tokenizer)?;
    let has_every_byte = if is_byte_level {
        ByteLevel::alphabet().into_iter().all(|byte| tokenizer.token_to_id(byte.encode_utf8(&mut [0; 4])).is_some())
    } else {
        let has = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).is_some();
        parts.model.byte_fallback && (0..=u8::MAX).all(has)
    };
    if !has_every_byte {
        return None;
    }
    // Byte-level vocabularies write each byte as one character.
    let covers = |token: &String| if is_byte_level { token.chars().count() } else { token.len() };
    let added = parts.added_tokens.iter().map(|added| added.content.len());
    let longest = tokenizer.get_vocab(false).keys().map(covers).chain(added).max()?;
    Some(longest * shrinks)
}

/// By how much a normalizer can shorten a text; `None` if that is not known.
fn shrinks(normalizer: &Value) -> Option<usize> {
    if normalizer.is_null() {
        return Some(1);
    }
    match normalizer["type"].as_str()? {
        "Prepend" => Some(1),
        "NFC" => Some(NFC_SHRINKS),
        "Replace" => {
            let (pattern, content) = (normalizer["pattern"]["String"].as_str()?, normalizer["content"].as_str()?);
            (content.len() >= pattern.len()).then_some(1)
        }
        "Sequence" => {
            normalizer["normalizers"].as_array()?.iter().map(shrinks).try_fold(1, |all, one| Some(all * one?))
        }
        _ => None,
    }
}

/// Whether a pre-tokenizer writes bytes as characters; `None` if it may drop text.
fn is_byte_level(pre_tokenizer: &Value) -> Option<bool> {
    if pre_tokenizer.is_null() {
        return Some(false);
    }
    match pre_tokenizer["type"].as_str()? {
        "ByteLevel" => Some(true),
        "Digits" | "Metaspace" => Some(false),
        "Split" => (pre_tokenizer["behavior"].as_str()? != "Removed").then_some(false),
        "Sequence" => {
            let mut parts = pre_tokenizer["pretokenizers"].as_array()?.iter().map(is_byte_level);
            parts.try_fold(false, |any, one| Some(any | one?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::tokenizer::fixture::tokenizer_json;

    fn bound_of(json: &Value) -> Option<usize> {
        longest_token(json.to_string().as_bytes(), &tokenizer(json))
    }

    fn tokenizer(json: &Value) -> Tokenizer {
        Tokenizer::from_str(&json.to_string()).unwrap()
    }

    /// The fixture with one part exchanged.
    fn with(pointer: &str, part: Value) -> Value {
        let mut json = tokenizer_json();
        *json.pointer_mut(pointer).unwrap() = part;
        json
    }

    /// Byte-level with merges: "ab", "abab", and the two bytes of U+0390.
    fn merging(normalizer: Value) -> Value {
        let mut json = with("/normalizer", normalizer);
        for (id, token) in (1000..).zip(["ab", "abab", "\u{ce}\u{0132}"]) {
            json["model"]["vocab"][token] = json!(id);
        }
        json["model"]["merges"] = json!([["a", "b"], ["ab", "ab"], ["\u{ce}", "\u{0132}"]]);
        json
    }

    /// As Llama 2 has it: no pre-tokenizer, spaces become U+2581, unknown characters bytes.
    fn falling_back() -> Value {
        let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
        let all = ["<unk>", "\u{2581}", "a", "b", "\u{2581}a", "ab"].map(str::to_owned).into_iter().chain(bytes);
        let vocab: serde_json::Map<String, Value> = all.zip(0..).map(|(token, id)| (token, json!(id))).collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "decoder": null,
            "post_processor": null, "pre_tokenizer": null,
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "\u{2581}" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
            ] },
            "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                       "merges": [["\u{2581}", "a"], ["a", "b"]] },
        })
    }

    #[test]
    fn the_bound_is_the_longest_entry_of_the_vocabulary() {
        assert_eq!(bound_of(&tokenizer_json()), Some("<|assistant|>".len()));
        assert_eq!(
            bound_of(&with("/added_tokens", json!([]))).unwrap(),
            "<|assistant|>".len(),
            "still in the vocabulary"
        );
        assert_eq!(bound_of(&falling_back()), Some("<0x00>".len()));
        assert_eq!(bound_of(&merging(json!({ "type": "NFC" }))), Some(4 * "<|assistant|>".len()));
    }

    #[test]
    fn no_bound_is_claimed_where_text_can_vanish() {
        let stripping = json!([{ "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": true,
                                 "normalized": false, "special": true }]);
        let split = json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "Removed", "invert": false });
        let shorter = json!({ "type": "Replace", "pattern": { "String": "ab" }, "content": "" });
        for json in [
            with("/added_tokens", stripping),
            with("/normalizer", json!({ "type": "Strip", "strip_left": true, "strip_right": true })),
            with("/normalizer", json!({ "type": "NFKC" })),
            with("/normalizer", json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, shorter] })),
            with("/pre_tokenizer", json!({ "type": "Whitespace" })),
            with("/pre_tokenizer", json!({ "type": "Sequence", "pretokenizers": [split] })),
            // A byte without an entry is dropped, or all of them are one unknown token.
            with("/model/vocab", json!({ "a": 0 })),
        ] {
            assert_eq!(bound_of(&json), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn no_text_has_fewer_tokens_than_the_bound_says(
            text in "([ab ]{0,40}|(\\x{1FBE}\\x{308}\\x{301}|\\x{212A}|abab|<s>|<\\|assistant\\|>|[^x]| {9}){0,9}){1,3}",
        ) {
            for json in [tokenizer_json(), merging(Value::Null), merging(json!({ "type": "NFC" })), falling_back()] {
                let ids = tokenizer(&json).encode_fast(text.as_str(), false).unwrap().get_ids().len();
                let least = text.len().div_ceil(bound_of(&json).unwrap());
                prop_assert!(ids >= least, "{ids} tokens, at least {least} for {text:?}");
            }
        }
    }
}
