//! A prompt from memory has the ids that the tokenizer gives to the whole text, whatever the tokenizer does.

use std::str::FromStr;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::fixture::tokenizer_json;
use super::whole::Prompts;

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The fixture with parts exchanged, by pointer.
fn with(parts: &[(&str, Value)]) -> Value {
    let mut tokenizer = tokenizer_json();
    for (pointer, part) in parts {
        *tokenizer.pointer_mut(pointer).unwrap() = part.clone();
    }
    tokenizer
}

fn byte_level(prefix: bool, regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex })
}

fn split_by(pattern: &str) -> Value {
    let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false, false)] })
}

/// Byte-level, with merges inside of words, before them, and over the space behind an "a".
fn merging(pre_tokenizer: Value) -> Value {
    let mut json = with(&[("/pre_tokenizer", pre_tokenizer)]);
    let merges =
        [("a", "b"), ("\u{120}", "a"), ("\u{120}", "ab"), ("a", "\u{120}"), ("1", "2"), ("\u{120}", "\u{120}")];
    for (id, (left, right)) in (1000..).zip(merges) {
        json["model"]["vocab"][format!("{left}{right}")] = json!(id);
    }
    json["model"]["merges"] = merges.iter().map(|(left, right)| json!([left, right])).collect();
    json
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split })
}

/// As Llama 2 has it; the merges never reach over a space, unless `over` does.
fn sentencepiece(normalizer: &Value, pre_tokenizer: &Value, over: Option<(&str, &str)>) -> Value {
    let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
    let mut vocab = serde_json::Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.entry(token).or_insert(json!(id));
    };
    ["<s>", "<unk>", "\u{2581}"].into_iter().map(str::to_owned).chain(bytes).for_each(&mut add);
    ('a'..='z').chain('0'..='9').map(String::from).for_each(&mut add);
    let merges = [("\u{2581}", "\u{2581}"), ("\u{2581}", "a"), ("a", "b"), ("\u{2581}a", "b"), ("b", "c")];
    let merges: Vec<(&str, &str)> = merges.into_iter().chain(over).collect();
    merges.iter().map(|(left, right)| format!("{left}{right}")).for_each(&mut add);
    let added = json!({ "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added], "decoder": null,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": tokenizer_json()["post_processor"],
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                   "continuing_subword_prefix": null, "end_of_word_suffix": null, "ignore_merges": false, "vocab": vocab,
                   "merges": merges.iter().map(|(left, right)| json!([left, right])).collect::<Vec<_>>() },
    })
}

fn llama_2(over: Option<(&str, &str)>) -> Value {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    let prepend = json!({ "type": "Prepend", "prepend": "\u{2581}" });
    sentencepiece(&json!({ "type": "Sequence", "normalizers": [prepend, replace] }), &Value::Null, over)
}

fn gemma() -> Value {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    let split =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    sentencepiece(&replace, &split, None)
}

fn bert() -> Value {
    let words = ["[UNK]", "a", "ab", "##b", "##a", "1", "##2", ".", "##c"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().zip(7..).map(|(word, id)| ((*word).into(), json!(id))).collect();
    with(&[
        (
            "/normalizer",
            json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true }),
        ),
        ("/pre_tokenizer", json!({ "type": "BertPreTokenizer" })),
        ("/decoder", Value::Null),
        (
            "/model",
            json!({ "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab }),
        ),
    ])
}

fn unigram(pre_tokenizer: Value) -> Value {
    let pieces = ["<unk>", "\u{2581}", "a", "b", "\u{2581}a", "ab", "\u{2581}ab", "c"];
    let vocab: Vec<Value> = pieces
        .iter()
        .enumerate()
        .map(|(id, piece)| json!([piece, -f64::from(u8::try_from(id).unwrap()) - 1.0]))
        .collect();
    with(&[
        ("/pre_tokenizer", pre_tokenizer),
        ("/added_tokens", json!([])),
        ("/post_processor", Value::Null),
        ("/decoder", Value::Null),
        ("/model", json!({ "type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false })),
    ])
}

/// Tokenizers that are cut at spaces, and at control tokens.
fn cut() -> Vec<Value> {
    let metaspaces =
        ["always", "first", "never"].map(|scheme| sentencepiece(&Value::Null, &metaspace(scheme, false), None));
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let starcoder = json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(false, true)] });
    let mut rstrip = merging(byte_level(false, true));
    rstrip["added_tokens"][2]["rstrip"] = json!(true);
    rstrip["added_tokens"][3]["lstrip"] = json!(true);
    rstrip["added_tokens"][6]["single_word"] = json!(true);
    let mut normalized = merging(split_by(LLAMA_3));
    normalized["added_tokens"][6]["normalized"] = json!(true);
    normalized["normalizer"] = json!({ "type": "NFC" });
    let plain = [
        byte_level(false, true),
        byte_level(true, true),
        split_by(LLAMA_3),
        split_by(QWEN_2),
        split_by(O200K),
        starcoder,
    ];
    let plain = plain.into_iter().map(merging);
    let others = [
        rstrip,
        normalized,
        llama_2(None),
        gemma(),
        bert(),
        unigram(metaspace("always", true)),
        unigram(metaspace("first", true)),
    ];
    plain.chain(metaspaces).chain(others).collect()
}

/// Tokenizers of which nothing is known about spaces.
fn uncut() -> Vec<Value> {
    let mut phrase = merging(split_by(LLAMA_3));
    phrase["added_tokens"][6]["content"] = json!("a b");
    let mut lowered = merging(split_by(LLAMA_3));
    lowered["added_tokens"][6]["content"] = json!("word");
    lowered["added_tokens"][6]["rstrip"] = json!(true);
    let looking = split_by(r"(?<=a )b|[^\r\n\p{L}\p{N}]?\p{L}+|\s+");
    let mut by_chance = merging(split_by(LLAMA_3));
    by_chance["model"]["dropout"] = json!(0.1);
    vec![
        phrase,
        lowered,
        merging(looking),
        merging(byte_level(false, false)),
        merging(split_by(r"\s+(?!\S)")),
        llama_2(Some(("a", "\u{2581}"))),
        unigram(metaspace("always", false)),
        by_chance,
    ]
}

fn read(json: &Value) -> (Tokenizer, Prompts) {
    let tokenizer = Tokenizer::from_str(&json.to_string()).unwrap();
    let prompts = Prompts::new(json.to_string().as_bytes(), &tokenizer);
    (tokenizer, prompts)
}

fn long_text(parts: &[String]) -> String {
    let mut text = String::new();
    for part in parts.iter().cycle() {
        text.push_str(part);
        if text.len() > 6000 {
            return text;
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn ids_from_memory_are_those_of_the_whole(
        parts in proptest::collection::vec(
            "(a b|ab a|[abc12]{1,6} [abc12]{1,6}| {1,3}|<s>|<think>| <\\|user\\|> |<\\|assistant\\|>|'s |e\\x{301}|\\n|\\x{2581}|\\.|[^x])",
            2..60,
        ),
    ) {
        let text = format!("{} a", long_text(&parts));
        for json in cut().iter().chain(&uncut()).filter(|json| json["model"]["dropout"].is_null()) {
            let (tokenizer, prompts) = read(json);
            let whole = tokenizer.encode_fast(text.as_str(), true).unwrap();
            for _ in 0..2 {
                prop_assert_eq!(&prompts.encode(&tokenizer, &text).unwrap(), whole.get_ids(), "{}", json["pre_tokenizer"]);
            }
        }
    }
}

#[test]
fn texts_are_cut_where_that_is_known_to_change_nothing() {
    let words = "ab ba 12 c ".repeat(400);
    for json in cut() {
        assert!(read(&json).1.pieces(&words).len() >= 4, "{} {}", json["pre_tokenizer"], json["model"]["type"]);
    }
    for json in uncut() {
        assert_eq!(read(&json).1.pieces(&words).len(), 1, "{}", json["pre_tokenizer"]);
    }
    let (_, prompts) = read(&merging(byte_level(false, false)));
    assert_eq!(prompts.pieces("a<s>b<think>c"), ["a", "<s>b", "<think>c"], "control tokens part any text");
}

#[test]
fn what_was_seen_before_is_not_encoded_again() {
    let (tokenizer, prompts) = read(&merging(split_by(LLAMA_3)));
    let (other, _) = read(&tokenizer_json());
    let words = "ab ba 12 c ".repeat(400);
    let ids = prompts.encode(&tokenizer, &words).unwrap();
    assert_ne!(other.encode_fast(words.as_str(), true).unwrap().get_ids(), ids);
    let again = prompts.encode(&other, &format!("{words}and more")).unwrap();
    let same = ids.iter().zip(&again).take_while(|(before, now)| before == now).count();
    assert!(same * 10 > ids.len() * 7, "{same} of {} ids come from memory", ids.len());
}
