//! Every kind of decoder against the tokenizer's own word on the whole.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::*;

const WORDS: [&str; 6] = ["▁", "▁the", "lo", "▁中", "é", "."];

fn tokenizer(model: &Value, splitter: &Value, decoder: &Value, added: &[(u32, &str)]) -> Arc<Tokenizer> {
    let added: Vec<Value> = added
        .iter()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": splitter, "post_processor": null, "decoder": decoder, "model": model});
    Arc::new(whole.to_string().parse().unwrap())
}

/// Ids 0 and 1 are `<s>` and a special token with a space in it; then one id per byte, then merged ones.
pub(crate) fn byte_level() -> Arc<Tokenizer> {
    let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    alphabet.sort();
    let mut vocab = serde_json::Map::from_iter([("<s>".into(), json!(0)), ("<end of it>".into(), json!(1))]);
    for token in alphabet.into_iter().chain(["Ġt".into(), "ðŁ".into(), "he".into()]) {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    }
    let merges = json!([["Ġ", "t"], ["ð", "Ł"], ["h", "e"]]);
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges});
    let step = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    tokenizer(&model, &step, &step, &[(0, "<s>"), (1, "<end of it>")])
}

/// Llama 2's arrangement: `<s>`, 256 byte tokens, words.
fn byte_fallback() -> Arc<Tokenizer> {
    let mut vocab = serde_json::Map::from_iter([("<s>".into(), json!(0)), ("</s>".into(), json!(1))]);
    for token in (0..256).map(|byte| format!("<0x{byte:02X}>")).chain(WORDS.map(str::to_owned)) {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    }
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "<s>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []});
    let steps = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    tokenizer(&model, &Value::Null, &steps, &[(0, "<s>"), (1, "</s>")])
}

fn word_level(decoder: &Value, words: &[&str]) -> Arc<Tokenizer> {
    let mut vocab = serde_json::Map::from_iter([("<s>".into(), json!(0)), ("</s>".into(), json!(1))]);
    for word in words {
        let id = vocab.len();
        vocab.insert((*word).to_owned(), json!(id));
    }
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<s>"});
    tokenizer(&model, &Value::Null, decoder, &[(0, "<s>"), (1, "</s>")])
}

fn metaspace() -> Arc<Tokenizer> {
    word_level(&json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}), &WORDS)
}

fn word_piece() -> Arc<Tokenizer> {
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    word_level(&decoder, &["the", "##re", "do", "n't", ".", ",", "中", "##é"])
}

fn word_suffix() -> Arc<Tokenizer> {
    word_level(&json!({"type": "BPEDecoder", "suffix": "</w>"}), &["the</w>", "lo", "w</w>", "é</w>"])
}

fn no_decoder() -> Arc<Tokenizer> {
    word_level(&Value::Null, &["the", "cat", "中"])
}

/// Pushes the ids after the prompt: (text of all pieces, generated text, all deltas).
fn run(tokenizer: &Arc<Tokenizer>, prompt: &[u32], ids: &[u32], stop: &[String]) -> (String, String, String) {
    let detokenizer = Arc::new(Detokenizer::new(tokenizer));
    let mut text = SequenceText::new(detokenizer, prompt, StopStrings::new(stop));
    let (mut kept, mut deltas) = (String::new(), String::new());
    for id in ids {
        let piece = text.push(*id);
        assert!(!piece.special || piece.delta.is_empty() || !stop.is_empty(), "special tokens are not shown");
        kept.push_str(&piece.text);
        deltas.push_str(&piece.delta);
        if piece.stopped {
            break;
        }
    }
    let (generated, rest) = text.finish();
    deltas.push_str(&rest);
    (kept, generated, deltas)
}

/// What the tokenizer adds for these ids after the prompt.
fn continuation(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], skip_special: bool) -> String {
    let before = tokenizer.decode(prompt, skip_special).unwrap();
    let whole = tokenizer.decode(&[prompt, ids].concat(), skip_special).unwrap();
    whole[before.len()..].to_owned()
}

fn check_whole(tokenizer: &Arc<Tokenizer>, prompt: &[u32], ids: &[u32]) -> Result<(), TestCaseError> {
    let (kept, generated, deltas) = run(tokenizer, prompt, ids, &[]);
    let whole = continuation(tokenizer, prompt, ids, false);
    let unfinished = whole.strip_prefix(kept.as_str());
    prop_assert!(unfinished.is_some_and(|rest| rest.chars().all(|c| c == '\u{FFFD}')), "{kept:?} of {whole:?}");
    prop_assert_eq!(&generated, &continuation(tokenizer, prompt, ids, true));
    prop_assert_eq!(deltas, generated);
    Ok(())
}

fn ids_below(limit: u32, length: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..limit, 0..length)
}

#[test]
fn text_goes_on_behind_any_number_of_special_tokens() {
    for tokenizer in [metaspace(), word_piece()] {
        for num_special in 0..9 {
            let prompt = [vec![2], vec![0; num_special]].concat();
            check_whole(&tokenizer, &prompt, &[2]).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn byte_level_pieces_make_the_whole(ids in ids_below(270, 40)) {
        let tokenizer = byte_level();
        let prompt = [&[0], tokenizer.encode_fast("hey the", false).unwrap().get_ids()].concat();
        check_whole(&tokenizer, &prompt, &ids)?;
    }

    #[test]
    fn byte_level_text_survives(text in "\\PC{0,24}") {
        let tokenizer = byte_level();
        let ids = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        prop_assert_eq!(run(&tokenizer, &[0], &ids, &[]).1, continuation(&tokenizer, &[0], &ids, true));
    }

    #[test]
    fn byte_fallback_text_survives(text in "[▁.é中🎉👩‍🚀a-z]{0,24}", prompt in prop::sample::select(vec![vec![0], vec![0, 259]])) {
        let tokenizer = byte_fallback();
        let ids = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        check_whole(&tokenizer, &prompt, &ids)?;
    }

    #[test]
    fn byte_fallback_words_and_specials_make_the_whole(
        ids in prop::collection::vec(prop_oneof![0_u32..2, 258_u32..270], 0..24),
        prompt in prop::sample::select(vec![vec![0], vec![0, 259], vec![258, 260]]),
    ) {
        check_whole(&byte_fallback(), &prompt, &ids)?;
    }

    #[test]
    fn a_broken_byte_run_becomes_one_mark_per_byte(ids in prop::collection::vec(2_u32..258, 0..12)) {
        // The first byte cannot begin a character, so nothing of the run was sent before it broke.
        let ids = [&[2 + 0xFF], &ids[..], &[261]].concat();
        check_whole(&byte_fallback(), &[0, 259], &ids)?;
    }

    #[test]
    fn metaspace_pieces_make_the_whole(ids in ids_below(10, 24), prompt in ids_below(8, 9)) {
        check_whole(&metaspace(), &prompt, &ids)?;
    }

    #[test]
    fn word_piece_pieces_make_the_whole(ids in ids_below(12, 24), prompt in ids_below(10, 9)) {
        check_whole(&word_piece(), &prompt, &ids)?;
    }

    #[test]
    fn word_suffix_pieces_make_the_whole(ids in prop::collection::vec(2_u32..6, 0..24)) {
        check_whole(&word_suffix(), &[2], &ids)?;
    }

    #[test]
    fn tokens_without_a_decoder_are_joined_by_spaces(ids in prop::collection::vec(2_u32..5, 0..24)) {
        check_whole(&no_decoder(), &[2], &ids)?;
    }

    #[test]
    fn stop_strings_cut_the_same_text_however_it_is_cut_into_tokens(
        text in "[ab中 ]{0,24}",
        specials in prop::collection::vec(0_usize..24, 0..3),
        stops in prop::collection::vec("[ab中 ]{1,4}", 1..3),
    ) {
        let tokenizer = byte_level();
        let mut ids = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        // Before a space or at the ends, so that no character is torn; there a stop string cannot span it.
        for place in specials {
            if place == 0 || place >= ids.len() {
                ids.insert(place.min(ids.len()), 1);
            }
        }
        let (_, generated, deltas) = run(&tokenizer, &[0], &ids, &stops);
        let visible = continuation(&tokenizer, &[0], &ids, true);
        let kept = continuation(&tokenizer, &[0], &ids, false);
        // The first end of any stop string in the text with special tokens, which here have none of the letters.
        let end_in = |text: &str| {
            (0..=text.len()).filter(|end| text.is_char_boundary(*end)).find_map(|end| {
                stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max()
                    .map(|length| (end - length, end))
            })
        };
        prop_assume!(end_in(&visible).is_some() == end_in(&kept).is_some());
        prop_assume!(!stops.iter().any(|stop| "<end of it>".contains(stop.as_str())));
        let (start, end) = end_in(&visible).unwrap_or((visible.len(), visible.len()));
        prop_assert_eq!(generated, &visible[..end]);
        prop_assert_eq!(deltas, &visible[..start]);
    }
}

fn ids_of(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn no_piece_is_half_a_character() {
    let tokenizer = byte_level();
    let detokenizer = Arc::new(Detokenizer::new(&tokenizer));
    let mut text = SequenceText::new(detokenizer, &[0], StopStrings::new(&[]));
    let pieces: Vec<String> = ids_of(&tokenizer, "a🎉").into_iter().map(|id| text.push(id).text).collect();
    assert_eq!(pieces, ["a", "", "", "🎉"]);
}

#[test]
fn half_a_character_at_the_end_is_marked() {
    let tokenizer = byte_level();
    let ids = ids_of(&tokenizer, "a🎉");
    let (kept, generated, deltas) = run(&tokenizer, &[0], &ids[..3], &[]);
    assert_eq!((kept.as_str(), generated.as_str(), deltas.as_str()), ("a", "a\u{FFFD}", "a\u{FFFD}"));
}

#[test]
fn a_leading_space_is_kept_after_a_prompt_and_stripped_at_the_start() {
    let tokenizer = byte_fallback();
    assert_eq!(run(&tokenizer, &[0, 260], &[259, 260], &[]).1, " thelo");
    assert_eq!(run(&tokenizer, &[0], &[259, 260], &[]), (" thelo".into(), "thelo".into(), "thelo".into()));
}

#[test]
fn generated_text_ends_right_after_a_stop_string_inside_a_token() {
    let tokenizer = byte_level();
    // "he" is one token: the text of the token is whole, the generated text is cut.
    let ids = ids_of(&tokenizer, "xhey");
    let (kept, generated, deltas) = run(&tokenizer, &[0], &ids, &["xh".into()]);
    assert_eq!((kept.as_str(), generated.as_str(), deltas.as_str()), ("xhe", "xh", ""));
}

#[test]
fn a_stop_string_may_name_a_special_token() {
    let tokenizer = byte_level();
    let ids = [ids_of(&tokenizer, "ab"), vec![1], ids_of(&tokenizer, "c")].concat();
    let (kept, generated, deltas) = run(&tokenizer, &[0], &ids, &["b<end".into()]);
    assert_eq!((kept.as_str(), generated.as_str(), deltas.as_str()), ("ab<end of it>", "ab", "a"));
}

#[test]
fn only_the_control_tokens_that_are_named_are_shown() {
    let tokenizer = byte_level();
    let detokenizer = Arc::new(Detokenizer::new(&tokenizer));
    let ids = [ids_of(&tokenizer, "a"), vec![1], ids_of(&tokenizer, "b"), vec![0]].concat();
    let mut text = SequenceText::showing(detokenizer, &[0], StopStrings::new(&["</x".into()]), &Arc::from([1]));
    let deltas: String = ids.into_iter().map(|id| text.push(id).delta).collect();
    let (generated, rest) = text.finish();
    assert_eq!((deltas + &rest, generated), ("a<end of it>b".to_owned(), "a<end of it>b".to_owned()));
}

#[test]
fn text_is_held_back_only_while_it_may_become_a_stop_string() {
    let tokenizer = byte_level();
    let detokenizer = Arc::new(Detokenizer::new(&tokenizer));
    let mut text = SequenceText::new(detokenizer, &[0], StopStrings::new(&["\n\nUser".into()]));
    let deltas: Vec<String> = ids_of(&tokenizer, "a\n\nUx").into_iter().map(|id| text.push(id).delta).collect();
    assert_eq!(deltas, ["a", "", "", "", "\n\nUx"]);
}

#[test]
fn an_empty_stop_string_ends_after_one_token() {
    let tokenizer = byte_level();
    let (kept, generated, deltas) = run(&tokenizer, &[0], &ids_of(&tokenizer, "abc"), &[String::new()]);
    assert_eq!((kept.as_str(), generated.as_str(), deltas.as_str()), ("a", "a", "a"));
}

#[test]
fn single_tokens_are_decoded_on_their_own() {
    let tokenizer = byte_fallback();
    let detokenizer = Detokenizer::new(&tokenizer);
    for id in 0..264 {
        assert_eq!(detokenizer.token_text(id), tokenizer.decode(&[id], false).unwrap());
    }
    let detokenizer = Detokenizer::new(&byte_level());
    assert_eq!(detokenizer.token_text(1), "<end of it>");
    assert_eq!(detokenizer.token_text(10_000), "");
}
