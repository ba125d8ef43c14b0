//! How long prompts take to make: `chat_prompts MODEL_FOLDER`. A conversation of a hundred messages, rendered and
//! tokenized; and one of about 65,536 tokens whose messages were seen before, against one seen for the first time; and the
//! same of a prompt written by hand.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace_router::tokenizer::{Conversation, TextModel};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("name a model's folder")?);
    let load = || Ok(TextModel::load(&folder, None)?);
    let hundred = conversation(100, 60, 0);
    let prompt = load()?.render(&hundred)?.encode()?;
    let (rendered, made) = (
        median(9, load, |text| Ok(text.render(&hundred)?.text().len()))?,
        median(9, load, |text| Ok(text.render(&hundred)?.encode()?.ids.len()))?,
    );
    say(&format!(
        "100 messages, {} tokens: {rendered:.2?} to render, {made:.2?} to render and tokenize",
        prompt.ids.len()
    ));

    let per_message = 65_536 / 64 * 60 * 100 / prompt.ids.len().max(1);
    let long = |turn| conversation(64, per_message, turn);
    let tokens = load()?.render(&long(0))?.encode()?.ids.len();
    let cold = median(5, load, |text| Ok(text.render(&long(1))?.encode()?.ids.len()))?;
    let seen = || {
        let text = load()?;
        text.render(&long(0))?.encode()?;
        Ok(text)
    };
    let warm = median(5, seen, |text| Ok(text.render(&long(1))?.encode()?.ids.len()))?;
    let times = cold.as_secs_f64() / warm.as_secs_f64();
    say(&format!(
        "64 messages, {tokens} tokens: {cold:.2?} cold, {warm:.2?} with all but the last seen before: {times:.1} times as fast"
    ));
    by_hand(tokens, &load)
}

/// A text without control tokens that differs in its last words.
fn by_hand(tokens: usize, load: &impl Fn() -> Result<TextModel, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let word = |place: usize| format!("w{} ", (place * 104_729) % 9973);
    let of = |words: usize, turn: usize| format!("{}turn {turn}", (0..words).map(word).collect::<String>());
    let per_thousand = load()?.encode(&of(1000, 0))?.len();
    let words = tokens * 1000 / per_thousand.max(1);
    let (first, next) = (of(words, 0), of(words, 1));
    let tokens = load()?.encode(&first)?.len();
    let cold = median(5, load, |text| Ok(text.encode(&next)?.len()))?;
    let seen = || {
        let text = load()?;
        text.encode(&first)?;
        Ok(text)
    };
    let warm = median(5, seen, |text| Ok(text.encode(&next)?.len()))?;
    let times = cold.as_secs_f64() / warm.as_secs_f64();
    say(&format!(
        "a prompt written by hand, {tokens} tokens: {cold:.2?} cold, {warm:.2?} with all but its end seen before: {times:.1} times as fast"
    ));
    Ok(())
}

/// Messages of so many words; another `turn` has another last message.
fn conversation(messages: usize, words: usize, turn: usize) -> Conversation {
    let message = |index: usize| {
        let role = if index.is_multiple_of(2) { "user" } else { "assistant" };
        let turn = if index + 1 == messages { turn } else { 0 };
        let word = |place: usize| format!("w{} ", (index * 7919 + place * 104_729 + turn) % 9973);
        json!({ "role": role, "content": (0..words).map(word).collect::<String>() })
    };
    let messages: Vec<Value> = (0..messages).map(message).collect();
    Conversation { messages, ..Conversation::default() }
}

/// Of `rounds`, each with a text model of its own, which is not timed.
fn median(
    rounds: usize,
    load: impl Fn() -> Result<TextModel, Box<dyn Error>>,
    work: impl Fn(&TextModel) -> Result<usize, Box<dyn Error>>,
) -> Result<Duration, Box<dyn Error>> {
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let text = load()?;
        let began = Instant::now();
        let made = work(&text)?;
        took.push(began.elapsed());
        assert!(made > 0, "an empty prompt takes no time");
    }
    took.sort_unstable();
    Ok(took[rounds / 2])
}

#[expect(clippy::print_stdout, reason = "this program's purpose is to print")]
fn say(line: &str) {
    println!("{line}");
}
