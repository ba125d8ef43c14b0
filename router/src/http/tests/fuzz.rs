//! Bodies that are nearly requests, to every route that reads one, and a model that says what nobody expects: there is an
//! answer in the route's own form, no handler and no thread panics, and every event of a stream is JSON.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::Value;

use super::harness::{Answer, Server, finished, token};
use crate::engine::api::{Event, Failed, FinishReason, Finished, Prefilled, Token};
use crate::mutate::{Dice, cases};
use crate::request::ValidRequest;

const CORPUS: &str = include_str!("../../../tests/fuzz/bodies.jsonl");

/// What a model's output is put together of.
const PIECES: [&str; 30] = [
    " a",
    "",
    "\n\n",
    "data: ",
    "data: [DONE]\n\n",
    "\r",
    "\u{0}",
    "\u{2028}",
    "\"",
    "\\",
    "}",
    "{\"name\": \"get\", ",
    "\"arguments\": {\"a\": 1}}",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<think>",
    "</think>",
    "<|channel|>analysis<|message|>",
    "<|end|>",
    "\u{1F600}",
    "\u{FFFD}",
    "é",
    "null",
    "[",
    "]",
    "<function=get>",
    "</function>",
    "event: x\n",
];

/// Nonsense, the same for the same request.
fn babble(request: &ValidRequest) -> Vec<Vec<Event>> {
    let seed = request.prompt.iter().fold(7, |sum: u64, id| sum.wrapping_mul(31).wrapping_add(u64::from(*id)));
    let mut dice = Dice::new(seed);
    let prompt_logprobs = if request.prompt_logprobs { vec![None; request.prompt.len().min(3)] } else { Vec::new() };
    let mut batches = vec![vec![Event::Prefilled(Prefilled { prompt_logprobs, ..Prefilled::default() })]];
    if dice.roll(8) == 0 {
        batches.push(vec![Event::Failed(Failed::Generation(format!("no \"memory\"\n\n{}", dice.pick(&PIECES))))]);
        return batches;
    }
    for sequence in 0..request.sampling.len() {
        let length = 1 + dice.roll(request.stopping.max_new_tokens.min(6) as usize) as u32;
        for index in 1..=length {
            let mut events = vec![Event::Token { sequence, token: odd_token(&mut dice, index) }];
            if index == length {
                events.push(Event::Finished { sequence, finished: odd_end(&mut dice, length) });
            }
            batches.push(events);
        }
    }
    batches
}

fn odd_token(dice: &mut Dice, index: u32) -> Token {
    let logprob = *dice.pick(&[-1.0, 0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY, f32::MIN_POSITIVE]);
    let (text, delta) = (*dice.pick(&PIECES), *dice.pick(&PIECES));
    let id = *dice.pick(&[0, 1, 5, 100, u32::MAX]);
    Token { id, text: text.to_owned(), delta: delta.to_owned(), special: dice.roll(3) == 0, ..token(index, logprob, 2) }
}

fn odd_end(dice: &mut Dice, length: u32) -> Finished {
    let reason = *dice.pick(&[FinishReason::Length, FinishReason::EosToken, FinishReason::StopSequence]);
    let (generated_text, delta) = (dice.pick(&PIECES).repeat(3), (*dice.pick(&PIECES)).to_owned());
    Finished { generated_text, delta, ..finished(length, reason, Some(u64::MAX)) }
}

fn check(path: &str, answer: &Answer) -> Result<(), String> {
    let known = [200, 400, 413, 422, 424, 429];
    if !known.contains(&answer.status.as_u16()) {
        return Err(format!("status {}", answer.status));
    }
    if answer.body.contains("the tokenizer failed") {
        return Err("a thread panicked".to_owned());
    }
    let kind = answer.header(header::CONTENT_TYPE.as_str()).unwrap_or_default();
    if !kind.starts_with("text/event-stream") {
        let json: Value = serde_json::from_str(&answer.body).map_err(|error| format!("no JSON: {error}"))?;
        let is_error = json.get("error").is_some();
        return if is_error == (answer.status != StatusCode::OK) {
            Ok(())
        } else {
            Err("status and body differ".to_owned())
        };
    }
    for event in answer.body.split_terminator("\n\n").filter(|event| !event.starts_with(':')) {
        let lines: Vec<&str> = event.lines().filter(|line| !line.starts_with("event: ")).collect();
        let [line] = lines[..] else { return Err(format!("{path}: {event:?} is not one line")) };
        let data = line.strip_prefix("data:").ok_or("no data")?.trim_start();
        if data != "[DONE]" {
            serde_json::from_str::<Value>(data).map_err(|error| format!("{data:?} is no JSON: {error}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn whatever_is_sent_there_is_an_answer_and_nothing_panics() {
    let corpus: Vec<(String, Vec<u8>)> = CORPUS
        .lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            (entry["path"].as_str().unwrap().to_owned(), entry["body"].to_string().into_bytes())
        })
        .collect();
    let server = Server::with(&["--kserve", "--validation-workers", "1"], &[], babble);
    let (mut dice, mut answered) = (Dice::new(1), 0);
    for case in 0..cases(2_000) {
        let (path, body) = dice.pick(&corpus).clone();
        let path = if dice.roll(10) == 0 { dice.pick(&corpus).0.clone() } else { path };
        let other = &dice.pick(&corpus).1.clone();
        let body = dice.mutate(&body, other);
        let request = Request::post(&path).header(header::CONTENT_TYPE, "application/json");
        let answer = server.send(request.body(Body::from(body.clone())).unwrap()).await;
        answered += usize::from(answer.status == StatusCode::OK);
        if let Err(wrong) = check(&path, &answer) {
            let body = String::from_utf8_lossy(&body);
            panic!("case {case}, {path}: {wrong}\nasked: {body}\nanswered: {}", answer.body);
        }
        if case % 64 == 0 {
            server.requests.lock().unwrap().clear();
        }
    }
    assert!(answered * 10 > cases(2_000), "{answered} were answered: most inputs should get past the parser");
}
