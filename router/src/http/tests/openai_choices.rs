//! Several choices, logprobs, the prompt itself: what an answer shows beside one text.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::harness::{LIMITS, Server, finished};
use crate::engine::api::{Event, FinishReason, Prefilled, Token, TopToken};
use crate::request::ValidRequest;
use crate::tokenizer::fixture;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn of(path: &str, fields: &Value) -> Value {
    let mut body = if path == CHAT {
        json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 3 })
    } else {
        json!({ "prompt": "Hi", "max_tokens": 3 })
    };
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The two bytes of "é" and a "!", the text of each byte as it completes; the stop-string search holds the last one
/// back until the end. Every sequence says it, one logprob point worse than the one before.
fn speak(request: &ValidRequest) -> Vec<Vec<Event>> {
    let prompt_logprobs = if request.prompt_logprobs {
        std::iter::once(None).chain((1..request.prompt.len()).map(|at| Some(-(at as f32)))).collect()
    } else {
        Vec::new()
    };
    let b = |at| TopToken { id: fixture::byte(b'b'), text: "b".into(), logprob: -0.25 * at as f32, special: false };
    let prompt_top_tokens = match request.sampling[0].prompt_top_tokens {
        0 => Vec::new(),
        _ => std::iter::once(Vec::new()).chain((1..request.prompt.len()).map(|at| vec![b(at)])).collect(),
    };
    let model = fixture::text_model();
    let encoded = model.tokenizer().encode_fast("é!", false).unwrap();
    let said: Vec<(u32, &str)> = encoded.get_ids().iter().copied().zip(["", "é", ""]).collect();
    let length = said.len().min(request.stopping.max_new_tokens as usize);
    let mut batches = vec![vec![Event::Prefilled(Prefilled { cached_tokens: 2, prompt_logprobs, prompt_top_tokens })]];
    for (at, (id, delta)) in said.into_iter().take(length).enumerate() {
        let mut batch = Vec::new();
        for (sequence, sampling) in request.sampling.iter().enumerate() {
            let top = |rank: u8| TopToken {
                id: fixture::byte(b'a' + rank),
                text: String::new(),
                logprob: -0.5,
                special: false,
            };
            // A tie: one more than asked.
            let top_tokens = if sampling.top_n_tokens > 0 {
                (0..=sampling.top_n_tokens as u8).map(top).collect()
            } else {
                Vec::new()
            };
            let logprob = if at == 2 { f32::NEG_INFINITY } else { -1.0 - sequence as f32 };
            let token = Token { id, text: delta.into(), delta: delta.into(), logprob, special: false, top_tokens };
            batch.push(Event::Token { sequence, token });
            if at + 1 == length {
                let end = finished(at as u32 + 1, FinishReason::Length, None);
                let finished = crate::engine::api::Finished { delta: "!".repeat(usize::from(at == 2)), ..end };
                batch.push(Event::Finished { sequence, finished });
            }
        }
        batches.push(batch);
    }
    batches
}

/// The choices of a streamed answer as a whole answer would have them, and its chunks.
async fn streamed(server: &Server, path: &str, fields: &Value) -> (Vec<Value>, Vec<Value>) {
    let mut body = of(path, fields);
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let mut events = server.post(path, body).await.events();
    assert_eq!(events.pop(), Some(json!("[DONE]")));
    let mut choices: Vec<Value> = Vec::new();
    for chunk in &events {
        for new in chunk["choices"].as_array().unwrap() {
            let index = new["index"].as_u64().unwrap() as usize;
            while choices.len() <= index {
                choices.push(json!({ "text": "", "logprobs": {}, "finish_reason": null }));
            }
            let whole = &mut choices[index];
            assert!(whole["finish_reason"].is_null(), "nothing comes after the end");
            let text = new["text"].as_str().or(new["delta"]["content"].as_str()).unwrap_or_default();
            whole["text"] = json!(format!("{}{text}", whole["text"].as_str().unwrap()));
            whole["finish_reason"] = new["finish_reason"].clone();
            for (column, values) in new["logprobs"].as_object().into_iter().flatten() {
                let Some(values) = values.as_array() else { continue };
                let all = &mut whole["logprobs"][column];
                let joined = all.as_array().into_iter().flatten().chain(values).cloned().collect::<Vec<_>>();
                *all = json!(joined);
            }
        }
    }
    (choices, events)
}

#[tokio::test]
async fn streamed_choices_are_what_whole_ones_are() {
    let server = Server::playing(speak);
    for (path, fields) in [
        (CHAT, json!({})),
        (CHAT, json!({ "n": 3 })),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 2, "n": 2 })),
        (CHAT, json!({ "logprobs": true })),
        (COMPLETIONS, json!({ "n": 2, "prompt": ["Hi", "a"] })),
        (COMPLETIONS, json!({ "logprobs": 2, "echo": true, "n": 2 })),
        (COMPLETIONS, json!({ "logprobs": 0, "echo": true, "max_tokens": 0 })),
        (COMPLETIONS, json!({ "logprobs": 1 })),
        (COMPLETIONS, json!({ "echo": true })),
        (COMPLETIONS, json!({ "prompt": [[10, 11], [12]] })),
    ] {
        let whole = server.post(path, of(path, &fields)).await;
        assert_eq!(whole.status, StatusCode::OK, "{}", whole.body);
        let whole = whole.json();
        let (choices, chunks) = streamed(&server, path, &fields).await;
        assert_eq!(whole["usage"], chunks.last().unwrap()["usage"], "{fields}");
        assert_eq!(whole["choices"].as_array().unwrap().len(), choices.len(), "{fields}");
        for (index, (whole, streamed)) in whole["choices"].as_array().unwrap().iter().zip(&choices).enumerate() {
            let text = if path == CHAT { &whole["message"]["content"] } else { &whole["text"] };
            assert_eq!((&whole["index"], text), (&json!(index), &streamed["text"]), "{fields}");
            assert_eq!(whole["finish_reason"], streamed["finish_reason"], "{fields}");
            for (column, values) in whole["logprobs"].as_object().into_iter().flatten() {
                let is_absent = values.is_null() || values == &json!([]);
                assert!(is_absent || values == &streamed["logprobs"][column], "{fields}: {column}");
            }
        }
    }
}

#[tokio::test]
async fn chat_logprobs_have_bytes_and_as_many_top_tokens_as_asked() {
    let server = Server::playing(speak);
    let body = of(CHAT, &json!({ "logprobs": true, "top_logprobs": 1 }));
    let answer = server.post(CHAT, body).await.json();
    let top = json!([{ "token": "a", "logprob": -0.5, "bytes": [97] }]);
    let half = |byte: u8| json!({ "token": "\u{FFFD}", "logprob": -1.0, "bytes": [byte], "top_logprobs": top });
    let last = json!({ "token": "!", "logprob": -9999.0, "bytes": [33], "top_logprobs": top });
    let content = json!([half(0xC3), half(0xA9), last]);
    assert_eq!(answer["choices"][0]["logprobs"], json!({ "content": content, "refusal": null }));
    assert_eq!(answer["choices"][0]["message"]["content"], "é!");
    assert_eq!(answer["usage"]["prompt_tokens_details"], json!({ "cached_tokens": 2 }));
    // Without `logprobs`, their number asks for nothing.
    let answer = server.post(CHAT, of(CHAT, &json!({ "top_logprobs": 1 }))).await.json();
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test]
async fn completions_echo_the_prompt_with_its_logprobs() {
    let server = Server::playing(speak);
    let answer = server.post(COMPLETIONS, of(COMPLETIONS, &json!({ "echo": true, "logprobs": 1 }))).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "Hié!");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["<s>", "H", "i", "bytes:\\xc3", "bytes:\\xa9", "!"]));
    assert_eq!(logprobs["top_logprobs"][4], json!({ "a": -0.5, "bytes:\\xa9": -1.0 }));
    assert_eq!(logprobs["token_logprobs"], json!([null, -1.0, -2.0, -1.0, -1.0, -9999.0]));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][1], json!({ "b": -0.25, "H": -1.0 }));
    assert_eq!(logprobs["top_logprobs"][5], json!({ "a": -0.5, "!": -9999.0 }));
    // The tokenizer added the first one, and two make up one character.
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2, 2, 3]));

    let body = of(COMPLETIONS, &json!({ "echo": true, "logprobs": 0, "max_tokens": 0 }));
    let answer = server.post(COMPLETIONS, body).await.json();
    assert_eq!(answer["choices"][0]["text"], "Hi");
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["<s>", "H", "i"]));
    assert_eq!(answer["choices"][0]["logprobs"]["top_logprobs"], Value::Null);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn the_best_choices_come_first_when_more_were_made_than_are_shown() {
    let server = Server::with(&["--max-best-of", "4"], &[], speak);
    let answer = server.post(COMPLETIONS, of(COMPLETIONS, &json!({ "n": 2, "best_of": 4, "max_tokens": 2 }))).await;
    let answer = answer.json();
    assert_eq!(server.last_request().sampling.len(), 4);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(answer["usage"]["completion_tokens"], 8, "those that are not shown were made too");
    // OpenAI's form has no rule about these; the original's own route has.
    for more in [json!({ "seed": 7 }), json!({ "temperature": 0 })] {
        let mut body = of(COMPLETIONS, &json!({ "n": 2, "best_of": 3, "max_tokens": 2 }));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post(COMPLETIONS, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        assert_eq!(answer.json()["choices"].as_array().unwrap().len(), 2);
    }
    let seeds: std::collections::BTreeSet<u64> =
        server.last_request().sampling.iter().map(|sampling| sampling.seed).collect();
    assert_eq!(seeds.len(), 3);
    let body = json!({ "inputs": "a", "parameters": { "best_of": 2, "do_sample": true, "seed": 7 } });
    assert_eq!(server.post("/generate", body).await.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_conversation_shows_as_many_choices_as_were_asked_for_and_the_best_of_them() {
    let server = Server::playing(speak);
    let answer = server.post(CHAT, of(CHAT, &json!({ "best_of": 2, "max_tokens": 2 }))).await.json();
    assert_eq!(server.last_request().sampling.len(), 2);
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(1), "{answer}");
}

#[tokio::test]
async fn greedy_stays_greedy_whatever_else_would_shape_a_distribution() {
    let server = Server::playing(speak);
    for shape in [json!({ "top_k": 5 }), json!({ "min_p": 0.1 }), json!({ "typical_p": 0.5 }), json!({ "top_p": 0.5 })]
    {
        let mut fields = shape.clone();
        fields["temperature"] = json!(0);
        let answer = server.post(CHAT, of(CHAT, &fields)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        assert!(!server.last_request().sampling[0].do_sample, "{shape}");
    }
}

#[tokio::test]
async fn a_seed_gives_every_choice_its_own_and_the_first_the_seed_itself() {
    let server = Server::playing(speak);
    let seeds = async |fields: &Value| {
        server.post(CHAT, of(CHAT, fields)).await;
        server.last_request().sampling.iter().map(|sampling| sampling.seed).collect::<Vec<_>>()
    };
    let three = seeds(&json!({ "seed": 7, "n": 3 })).await;
    assert_eq!(three, seeds(&json!({ "seed": 7, "n": 3 })).await);
    assert_eq!(seeds(&json!({ "seed": 7 })).await, [7]);
    assert!(three[0] == 7 && three[1] != three[2] && three[1] != 7, "{three:?}");
}

#[tokio::test]
async fn prompts_of_ids_are_taken_as_they_are() {
    let server = Server::playing(speak);
    let body = of(COMPLETIONS, &json!({ "prompt": [fixture::byte(b'o'), fixture::byte(b'k')], "echo": true }));
    let answer = server.post(COMPLETIONS, body).await.json();
    assert_eq!(server.last_request().prompt, [fixture::byte(b'o'), fixture::byte(b'k')]);
    assert_eq!(answer["choices"][0]["text"], "oké!");
    for prompt in [json!([]), json!([[]]), json!([LIMITS.vocab_size]), json!([1, "a"]), json!([-1]), json!(7)] {
        let answer = server.post(COMPLETIONS, of(COMPLETIONS, &json!({ "prompt": prompt }))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
        assert!(answer.body.contains("prompt"), "{}", answer.body);
    }
}

#[tokio::test]
async fn what_cannot_be_shown_is_refused_by_name() {
    let server = Server::with(&["--max-concurrent-requests", "4"], &[], speak);
    for (path, fields, field) in [
        (CHAT, json!({ "n": 0 }), "n"),
        (CHAT, json!({ "n": 5 }), "n"),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 6 }), "top_logprobs"),
        (CHAT, json!({ "logprobs": 3 }), "logprobs"),
        (CHAT, json!({ "top_logprobs": 1 }), "top_logprobs"),
        (CHAT, json!({ "logprobs": false, "top_logprobs": 1, "stream": true }), "top_logprobs"),
        (CHAT, json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (COMPLETIONS, json!({ "stream_options": {}, "stream": false }), "stream_options"),
        (CHAT, json!({ "max_tokens": 0 }), "max_tokens"),
        (COMPLETIONS, json!({ "n": 3, "prompt": ["a", "b"] }), "prompt"),
        (COMPLETIONS, json!({ "logprobs": 6 }), "logprobs"),
        (COMPLETIONS, json!({ "logprobs": -1 }), "logprobs"),
        (COMPLETIONS, json!({ "logprobs": "2" }), "logprobs"),
        (COMPLETIONS, json!({ "n": 3, "best_of": 2 }), "best_of"),
        (COMPLETIONS, json!({ "best_of": 2, "stream": true }), "best_of"),
        (COMPLETIONS, json!({ "max_tokens": 0 }), "max_tokens"),
        (CHAT, json!({ "min_p": 1.5 }), "min_p"),
        (CHAT, json!({ "min_tokens": 4 }), "min_tokens"),
    ] {
        let answer = server.post(path, of(path, &fields)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{fields}: {}", answer.body);
        assert_eq!(answer.json()["error"]["param"], field, "{fields}");
    }
    assert_eq!(server.num_requests(), 0);
    for _ in 0..3 {
        let answer = server.post(CHAT, of(CHAT, &json!({ "n": 4 }))).await;
        assert_eq!(answer.json()["choices"].as_array().map(Vec::len), Some(4), "every place came back");
    }
}

#[tokio::test]
async fn too_many_prompt_logprobs_are_refused_by_the_field_that_asked_for_them() {
    // Each prompt of so large a batch may have ten.
    let server = Server::with(&["--max-client-batch-size", "100000"], &[], speak);
    let fields = json!({ "prompt": "some prompt", "echo": true, "logprobs": 2 });
    let answer = server.post(COMPLETIONS, of(COMPLETIONS, &fields)).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("echo")));
    let parameters = json!({ "decoder_input_details": true, "max_new_tokens": 1 });
    let answer = server.post("/generate", json!({ "inputs": "some prompt", "parameters": parameters })).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.body.contains("`decoder_input_details` asks for logprobs"), "{}", answer.body);
}

#[tokio::test]
async fn further_ways_to_sample_reach_the_engine() {
    let server = Server::playing(speak);
    let sampling = async |fields: Value| {
        let answer = server.post(CHAT, of(CHAT, &fields)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        (*server.last_request().sampling[0]).clone()
    };
    let shaped = sampling(json!({ "top_k": 5, "min_p": 0.25, "typical_p": 0.5 })).await;
    assert_eq!((shaped.top_k, shaped.min_p, shaped.typical_p), (5, 0.25, 0.5));
    let neutral = sampling(json!({ "top_k": -1, "min_p": 0, "typical_p": 1.0 })).await;
    assert_eq!((neutral.top_k, neutral.min_p, neutral.typical_p), (0, 0.0, 1.0));
    assert!(neutral.end_tokens.is_empty() && neutral.logit_bias.is_empty());
    let edited = sampling(json!({ "logit_bias": { "7": -100, "9": 0.5 }, "min_tokens": 2 })).await;
    assert_eq!(edited.logit_bias, [(7, -100.0), (9, 0.5)]);
    assert_eq!((edited.end_tokens.as_ref(), edited.min_new_tokens), (&[1][..], 2));
    let listed = sampling(json!({ "logit_bias": [0, 2, 0.0, -1] })).await;
    assert_eq!(listed.logit_bias, [(1, 2.0), (3, -1.0)]);
}

#[tokio::test]
async fn what_the_template_is_told_comes_from_the_request() {
    let server = Server::playing(speak);
    let prompt = async |fields: Value| {
        let answer = server.post(CHAT, of(CHAT, &fields)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        server.last_request().prompt
    };
    let open = prompt(json!({})).await;
    let closed = prompt(json!({ "add_generation_prompt": false })).await;
    assert_eq!(open[..open.len() - 1], closed);
    let unknown = json!({ "chat_template_kwargs": { "enable_thinking": false }, "documents": [{ "text": "x" }] });
    assert_eq!(prompt(unknown).await, open, "this template knows neither");
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": {} } });
    assert_eq!(prompt(json!({ "tools": [tool], "tool_choice": "none" })).await, open);
    let call = json!({ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let history = json!({ "messages": [
        { "role": "user", "content": "Hi", "name": null },
        { "role": "assistant", "content": "calling", "tool_calls": [call], "refusal": null },
        { "role": "tool", "content": "42", "tool_call_id": "1" },
    ] });
    assert!(prompt(history).await.len() > open.len());
    let goes_on = [json!({ "role": "user", "content": "Hi" }), json!({ "role": "assistant", "content": "It is " })];
    let trimmed = prompt(json!({ "messages": goes_on })).await;
    let kept = prompt(json!({ "messages": goes_on, "continue_final_message": true })).await;
    assert_eq!([trimmed.as_slice(), &[fixture::byte(b' ')]].concat(), kept);
    for (fields, field) in [
        (json!({ "continue_final_message": true, "add_generation_prompt": true }), "continue_final_message"),
        (json!({ "chat_template_kwargs": { "messages": [] } }), "chat_template_kwargs.messages"),
        (json!({ "chat_template": "rag" }), "chat_template"),
        (json!({ "messages": [{ "role": "user", "content": "x", "name": 3 }] }), "messages[0].name"),
        (json!({ "messages": [{ "role": "user", "content": "x", "tool_calls": {} }] }), "messages[0].tool_calls"),
    ] {
        let answer = server.post(CHAT, of(CHAT, &fields)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{fields}");
        assert_eq!(answer.json()["error"]["param"], field, "{fields}: {}", answer.body);
    }
}
