//! Calls and thoughts in a chat's answers, whole and streamed.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::harness::{LIMITS, Script, Server, finished};
use crate::engine::api::{Event, FinishReason, Finished, Prefilled, Token};
use crate::health::Limits;
use crate::request::ValidRequest;

pub(super) const CHAT: &str = "/v1/chat/completions";

const HERMES: [&str; 4] = ["--tool-call-parser", "hermes", "--reasoning-parser", "think"];

pub(super) fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
    json!({ "type": "function", "function": { "name": "get_weather", "description": "Weather", "parameters": parameters } })
}

pub(super) fn body(fields: &Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "tools": [weather()], "max_tokens": 50 });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// A server with room for schemas in its prompts.
pub(super) fn roomy(flags: &[&str], script: Script) -> Server {
    let server = Server::with(flags, &[], script);
    server.health.serve(Limits { max_input_tokens: 5000, max_total_tokens: 6000, ..LIMITS });
    server
}

/// The output a character at a time, each a token with a logprob; several of them in a batch now and then.
fn say(request: &ValidRequest, output: &str, reason: FinishReason) -> Vec<Vec<Event>> {
    let mut events = vec![vec![Event::Prefilled(Prefilled::default())]];
    let characters: Vec<char> = output.chars().collect();
    let length = u32::try_from(characters.len()).unwrap();
    for (index, c) in characters.iter().enumerate() {
        let mut batch = Vec::new();
        for sequence in 0..request.sampling.len() {
            let token = Token {
                id: 7 + index as u32,
                text: c.to_string(),
                logprob: -0.5,
                special: false,
                delta: c.to_string(),
                top_tokens: Vec::new(),
            };
            batch.push(Event::Token { sequence, token });
            if index + 1 == characters.len() {
                let finished = Finished { generated_text: output.to_owned(), ..finished(length, reason, None) };
                batch.push(Event::Finished { sequence, finished });
            }
        }
        match events.last_mut() {
            Some(last) if index % 3 == 1 => last.extend(batch),
            _ => events.push(batch),
        }
    }
    events
}

const TWO_CALLS: &str = "<think>\nBoth.\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>";
const ONE_CALL: &str = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
const HALF: &str = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par";
const WORDS: &str = "It is <b>20</b> degrees. ";

fn two_calls(request: &ValidRequest) -> Vec<Vec<Event>> {
    say(request, TWO_CALLS, FinishReason::EosToken)
}

fn one_call(request: &ValidRequest) -> Vec<Vec<Event>> {
    say(request, ONE_CALL, FinishReason::EosToken)
}

fn cut_off(request: &ValidRequest) -> Vec<Vec<Event>> {
    say(request, HALF, FinishReason::Length)
}

fn broken_off(request: &ValidRequest) -> Vec<Vec<Event>> {
    say(request, HALF, FinishReason::StopSequence)
}

fn words(request: &ValidRequest) -> Vec<Vec<Event>> {
    say(request, WORDS, FinishReason::EosToken)
}

/// The choices of a stream, put together as clients do it. Checks what every stream has to keep to.
fn assembled(events: &[Value]) -> Vec<Value> {
    let mut choices: Vec<Value> = Vec::new();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        if choices.len() <= index {
            assert_eq!(choice["delta"]["role"], "assistant", "the first chunk says who speaks");
            choices.resize(index + 1, Value::Null);
            choices[index] = json!({ "index": index, "message": {}, "logprobs": null, "finish_reason": null });
        } else {
            assert_eq!(choice["delta"].get("role"), None);
        }
        let whole = &mut choices[index];
        assert_eq!(whole["finish_reason"], Value::Null, "nothing comes after the end");
        whole["finish_reason"] = choice["finish_reason"].clone();
        add(&mut whole["message"], &choice["delta"]);
        add_logprobs(&mut whole["logprobs"], &choice["logprobs"]);
    }
    choices
}

fn add(message: &mut Value, delta: &Value) {
    for (key, value) in delta.as_object().unwrap() {
        match (key.as_str(), &mut message[key]) {
            ("tool_calls", calls) => value.as_array().unwrap().iter().for_each(|call| add_call(calls, call)),
            (_, Value::String(so_far)) => so_far.push_str(value.as_str().unwrap()),
            (_, missing) => *missing = value.clone(),
        }
    }
}

fn add_call(calls: &mut Value, call: &Value) {
    if calls.is_null() {
        *calls = json!([]);
    }
    let calls = calls.as_array_mut().unwrap();
    let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
    if index == calls.len() {
        assert_eq!((&call["type"], &call["function"]["arguments"]), (&json!("function"), &json!("")));
        calls.push(json!({ "id": call["id"], "type": "function", "function": call["function"] }));
        return;
    }
    assert_eq!((call.get("id"), call["function"].get("name")), (None, None), "only the first names the call");
    let so_far = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
    calls[index]["function"]["arguments"] = json!(so_far + call["function"]["arguments"].as_str().unwrap());
}

fn add_logprobs(so_far: &mut Value, more: &Value) {
    match (so_far.is_null(), more.is_null()) {
        (_, true) => {}
        (true, false) => *so_far = more.clone(),
        (false, false) => {
            let more = more["content"].as_array().unwrap().clone();
            so_far["content"].as_array_mut().unwrap().extend(more);
        }
    }
}

/// Ids differ from call to call; everything else is the answer.
fn without_ids(mut choices: Vec<Value>, ids: &mut Vec<String>) -> Vec<Value> {
    for choice in &mut choices {
        for call in choice["message"].get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            ids.push(call["id"].as_str().unwrap().to_owned());
            call["id"] = json!("id");
        }
    }
    choices
}

/// The choices of an answer, which are the same streamed and whole.
async fn choices(flags: &[&str], script: Script, fields: Value) -> Vec<Value> {
    let server = roomy(flags, script);
    let answer = server.post(CHAT, body(&fields)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let mut ids = Vec::new();
    let whole = without_ids(answer.json()["choices"].as_array().unwrap().clone(), &mut ids);
    let mut streamed = fields.clone();
    streamed.as_object_mut().unwrap().extend([("stream".to_owned(), json!(true))]);
    streamed["stream_options"] = json!({ "include_usage": true });
    let mut events = server.post(CHAT, body(&streamed)).await.events();
    let usage = events.remove(events.len() - 2);
    assert_eq!(usage["usage"], answer.json()["usage"]);
    assert_eq!(without_ids(assembled(&events), &mut ids), whole);
    let mut distinct = ids.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len(), "every call has an id of its own");
    assert!(ids.iter().all(|id| id.starts_with("call_")), "{ids:?}");
    whole
}

fn call(arguments: &str) -> Value {
    json!({ "id": "id", "type": "function", "function": { "name": "get_weather", "arguments": arguments } })
}

#[tokio::test]
async fn calls_and_thoughts_are_told_apart_from_words() {
    let choices = choices(&HERMES, two_calls, json!({})).await;
    let calls = [call("{\"city\": \"Paris\"}"), call("{\"city\": \"Köln\"}")];
    let message =
        json!({ "role": "assistant", "content": "I look.", "reasoning_content": "Both.", "tool_calls": calls });
    assert_eq!(choices[0]["message"], message);
    assert_eq!(choices[0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn one_call_is_told_where_no_more_are_wanted() {
    let choices = choices(&HERMES, two_calls, json!({ "parallel_tool_calls": false })).await;
    assert_eq!(choices[0]["message"]["tool_calls"], json!([call("{\"city\": \"Paris\"}")]));
    assert_eq!(
        (&choices[0]["finish_reason"], &choices[0]["message"]["content"]),
        (&json!("tool_calls"), &json!("I look."))
    );
}

#[tokio::test]
async fn an_answer_that_only_calls_has_no_content() {
    let choices = choices(&HERMES, one_call, json!({ "n": 3, "logprobs": true })).await;
    assert_eq!(choices.len(), 3);
    for choice in &choices {
        let message = json!({ "role": "assistant", "content": null, "tool_calls": [call("{\"city\": \"Paris\"}")] });
        assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("tool_calls")));
        assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), ONE_CALL.chars().count());
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
    for (script, reason) in [(cut_off as Script, "length"), (broken_off, "stop")] {
        let choices = choices(&HERMES, script, json!({})).await;
        assert_eq!(choices[0]["message"]["tool_calls"], json!([call("{\"city\": \"Par")]));
        assert_eq!(choices[0]["finish_reason"], reason);
    }
}

#[tokio::test]
async fn words_stay_words() {
    let choices = choices(&HERMES, words, json!({ "logprobs": true })).await;
    assert_eq!(choices[0]["message"], json!({ "role": "assistant", "content": WORDS }));
    assert_eq!(choices[0]["finish_reason"], "stop");
}

#[tokio::test]
async fn without_a_parser_and_without_tools_the_output_is_the_content() {
    let none = ["--tool-call-parser", "none", "--reasoning-parser", "none"];
    let choices = choices(&none, two_calls, json!({})).await;
    assert_eq!(choices[0]["message"], json!({ "role": "assistant", "content": TWO_CALLS }));
    for fields in [json!({ "tools": null }), json!({ "tools": [] }), json!({ "tool_choice": "none" })] {
        let choices = self::choices(&["--tool-call-parser", "hermes"], one_call, fields).await;
        assert_eq!(choices[0]["message"], json!({ "role": "assistant", "content": ONE_CALL }));
        assert_eq!(choices[0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn ids_are_such_as_the_models_template_takes() {
    fn mistral(request: &ValidRequest) -> Vec<Vec<Event>> {
        say(request, "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {}}]", FinishReason::EosToken)
    }
    let server = roomy(&["--tool-call-parser", "mistral"], mistral);
    let answer = server.post(CHAT, body(&json!({}))).await.json();
    let id = answer["choices"][0]["message"]["tool_calls"][0]["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
}

#[tokio::test]
async fn the_parsers_are_told_by_info() {
    let info = Server::flags(&HERMES).get("/info").await.json();
    assert_eq!((&info["tool_call_parser"], &info["reasoning_parser"]), (&json!("hermes"), &json!("think")));
    let info = Server::start().get("/info").await.json();
    assert_eq!((&info["tool_call_parser"], &info["reasoning_parser"]), (&json!("json"), &json!("none")));
}
