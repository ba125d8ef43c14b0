//! Whole answers of the original's routes.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::harness::{Server, finished, speak, token};
use crate::engine::api::{Event, FinishReason, Finished, Prefilled};
use crate::request::ValidRequest;

#[expect(clippy::needless_pass_by_value, reason = "written at the call")]
fn ask(parameters: Value) -> Value {
    json!({ "inputs": "Hi", "parameters": parameters })
}

#[tokio::test]
async fn the_plain_answer_is_the_text_and_nothing_else() {
    let server = Server::start();
    let answer = server.post("/generate", ask(json!({ "max_new_tokens": 3 }))).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({ "generated_text": " t1 t2 t3" })));
    let full = server.post("/generate", ask(json!({ "max_new_tokens": 1, "return_full_text": true }))).await;
    assert_eq!(full.json(), json!({ "generated_text": "Hi t1" }));
}

#[tokio::test]
async fn details_have_the_originals_keys() {
    let server = Server::start();
    let answer = server.post("/generate", ask(json!({ "max_new_tokens": 2, "details": true }))).await;
    let details = json!({
        "finish_reason": "length",
        "generated_tokens": 2,
        "seed": null,
        "prefill": [],
        "tokens": [
            { "id": 101, "text": " t1", "logprob": -1.0, "special": false },
            { "id": 102, "text": " t2", "logprob": -1.0, "special": false },
        ],
    });
    assert_eq!(answer.json(), json!({ "generated_text": " t1 t2", "details": details }));
}

#[tokio::test]
async fn prefill_and_top_tokens_come_when_asked_for() {
    let server = Server::start();
    let parameters = json!({ "max_new_tokens": 1, "decoder_input_details": true, "top_n_tokens": 2 });
    let details = server.post("/generate", ask(parameters)).await.json()["details"].take();
    assert_eq!(
        details["prefill"],
        json!([
            { "id": 0, "text": "<s>", "logprob": null },
            { "id": server.last_request().prompt[1], "text": "H", "logprob": -1.0 },
            { "id": server.last_request().prompt[2], "text": "i", "logprob": -2.0 },
        ])
    );
    let top = |rank| json!({ "id": 10 + rank, "text": format!(" top{rank}"), "logprob": -0.5, "special": false });
    assert_eq!(details["top_tokens"], json!([[top(0), top(1)]]));

    let one = json!({ "max_new_tokens": 1, "decoder_input_details": true, "truncate": 1 });
    let details = server.post("/generate", ask(one)).await.json()["details"].take();
    let id = server.last_request().prompt[0];
    assert_eq!(details["prefill"], json!([{ "id": id, "text": "i", "logprob": null }]));
}

#[tokio::test]
async fn the_best_of_several_is_the_one_with_the_highest_mean_logprob() {
    /// The second sequence is better than the first.
    fn second_wins(request: &ValidRequest) -> Vec<Vec<Event>> {
        let mut batches = speak(request);
        for event in batches.iter_mut().flatten() {
            match event {
                Event::Token { sequence, token } => token.logprob = [-2.0, -0.5][*sequence],
                Event::Finished { sequence, finished } => finished.generated_text = format!("text {sequence}"),
                _ => {}
            }
        }
        batches
    }
    let server = Server::playing(second_wins);
    let parameters = json!({ "max_new_tokens": 2, "best_of": 2, "do_sample": true, "details": true });
    let answer = server.post("/generate", ask(parameters)).await;
    let body = answer.json();
    assert_eq!(body["generated_text"], "text 1");
    let sampling = server.last_request().sampling;
    assert_eq!(body["details"]["seed"], sampling[1].seed);
    let loser = &body["details"]["best_of_sequences"][0];
    assert_eq!((&loser["generated_text"], &loser["seed"]), (&json!("text 0"), &json!(sampling[0].seed)));
    assert_eq!(loser["tokens"][0]["logprob"], -2.0);
    let keys: Vec<&String> = loser.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"]);
    assert_eq!(server.metric("tgi_request_success"), Some(1.0));
}

#[tokio::test]
async fn a_logprob_that_is_not_finite_is_null() {
    let server = Server::playing(|_| {
        let token = token(1, f32::NEG_INFINITY, 0);
        let finished = finished(1, FinishReason::EosToken, None);
        vec![vec![Event::Token { sequence: 0, token }, Event::Finished { sequence: 0, finished }]]
    });
    let body = server.post("/generate", ask(json!({ "details": true }))).await.json();
    assert_eq!(body["details"]["tokens"][0]["logprob"], Value::Null);
    assert_eq!(body["details"]["finish_reason"], "eos_token");
}

#[tokio::test]
async fn a_found_stop_string_is_named_and_stays_in_the_text() {
    let server = Server::playing(|_| {
        let end = Finished { generated_text: "a STOP".to_owned(), ..finished(1, FinishReason::StopSequence, None) };
        vec![vec![
            Event::Prefilled(Prefilled::default()),
            Event::Token { sequence: 0, token: token(1, -1.0, 0) },
            Event::Finished { sequence: 0, finished: end },
        ]]
    });
    let body = server.post("/generate", ask(json!({ "details": true, "stop": ["STOP"] }))).await.json();
    assert_eq!(
        (&body["generated_text"], &body["details"]["finish_reason"]),
        (&json!("a STOP"), &json!("stop_sequence"))
    );
    assert_eq!(server.last_request().stopping.stop, ["STOP"]);
}

#[tokio::test]
async fn headers_say_what_the_request_cost() {
    let server = Server::start();
    let answer = server.post("/generate", ask(json!({ "max_new_tokens": 3 }))).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-compute-type"), Some("gpu+optimized"));
    assert_eq!(answer.header("x-compute-characters"), Some("2"));
    assert_eq!(answer.header("x-prompt-tokens"), Some("3"));
    assert_eq!(answer.header("x-generated-tokens"), Some("3"));
    for milliseconds in ["x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"] {
        assert!(answer.header(milliseconds).unwrap().parse::<u64>().is_ok(), "{milliseconds}");
    }
    assert!(answer.header("x-compute-time").unwrap().parse::<f64>().is_ok());
    let other = Server::with(&[], &[("COMPUTE_TYPE", "1-nvidia-h200")], speak);
    let answer = other.post("/generate", ask(json!({ "max_new_tokens": 1 }))).await;
    assert_eq!(answer.header("x-compute-type"), Some("1-nvidia-h200"));
}

#[tokio::test]
async fn a_compute_type_that_no_header_can_hold_is_unknown() {
    for (said, answered) in [("cpu", "cpu"), ("two\nlines", "unknown")] {
        let server = Server::with(&[], &[("COMPUTE_TYPE", said)], speak);
        let answer = server.post("/generate", ask(json!({ "max_new_tokens": 1 }))).await;
        assert_eq!(answer.header("x-compute-type"), Some(answered));
    }
}

#[tokio::test]
async fn characters_are_counted_not_bytes() {
    let server = Server::start();
    let answer = server.post("/generate", json!({ "inputs": "日本語", "parameters": { "max_new_tokens": 1 } })).await;
    assert_eq!(answer.header("x-compute-characters"), Some("3"));
    assert_eq!(answer.header("x-prompt-tokens"), Some("10"));
}

#[tokio::test]
async fn without_parameters_tokens_are_sampled_and_with_an_empty_object_they_are_not() {
    let server = Server::start();
    server.post("/generate", json!({ "inputs": "a" })).await;
    assert!(server.last_request().sampling[0].do_sample);
    assert_eq!(server.last_request().stopping.max_new_tokens, 98);
    server.post("/generate", json!({ "inputs": "a", "parameters": {} })).await;
    assert!(!server.last_request().sampling[0].do_sample);
}

#[tokio::test]
async fn every_parameter_reaches_the_engine() {
    let server = Server::start();
    let parameters = json!({
        "temperature": 0.5, "repetition_penalty": 1.1, "frequency_penalty": 0.25, "top_k": 10, "top_p": 0.75,
        "typical_p": 0.5, "do_sample": true, "max_new_tokens": 4, "stop": ["x"], "truncate": 2, "watermark": true,
        "decoder_input_details": true, "seed": 7, "top_n_tokens": 3,
    });
    server.post("/generate", ask(parameters)).await;
    let request = server.last_request();
    let expected = millrace_scheduler::Sampling {
        do_sample: true,
        seed: 7,
        temperature: 0.5,
        top_k: 10,
        top_p: 0.75,
        typical_p: 0.5,
        min_p: 0.0,
        repetition_penalty: 1.1,
        frequency_penalty: 0.25,
        presence_penalty: 0.0,
        count_penalty: 0.0,
        watermark: true,
        top_n_tokens: 3,
        ..millrace_scheduler::Sampling::default()
    };
    assert_eq!(*request.sampling[0], expected);
    assert_eq!((request.stopping.max_new_tokens, request.stopping.stop.as_slice()), (4, &["x".to_owned()][..]));
    assert_eq!((request.prompt.len(), request.prompt_logprobs), (2, true));
}

#[tokio::test]
async fn the_root_route_answers_a_list_with_the_prompt_in_front() {
    let server = Server::start();
    let answer = server.post("/", ask(json!({ "max_new_tokens": 1 }))).await;
    assert_eq!(answer.json(), json!([{ "generated_text": "Hi t1" }]));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let answer = server.post("/", ask(json!({ "max_new_tokens": 1, "return_full_text": false }))).await;
    assert_eq!(answer.json(), json!([{ "generated_text": " t1" }]));
}

#[tokio::test]
async fn tokenize_answers_ids_and_bytes_and_minds_no_parameter() {
    let server = Server::start();
    let body = json!({ "inputs": "é</s>", "parameters": { "truncate": 1, "temperature": -1 } });
    let answer = server.post("/tokenize", body).await.json();
    let of = |entry: &Value| (entry["text"].clone(), entry["start"].clone(), entry["stop"].clone());
    let entries: Vec<_> = answer.as_array().unwrap().iter().map(of).collect();
    let entry = |text: &str, start: usize, stop: usize| (json!(text), json!(start), json!(stop));
    assert_eq!(entries, [entry("", 0, 0), entry("é", 0, 2), entry("é", 0, 2), entry("</s>", 2, 6)]);
    assert_eq!(answer[0]["id"], 0);
    let empty = server.post("/tokenize", json!({ "inputs": "" })).await.json();
    assert_eq!(empty, json!([{ "id": 0, "text": "", "start": 0, "stop": 0 }]));
}

#[tokio::test]
async fn metrics_account_for_each_request() {
    let server = Server::start();
    for length in [1, 2] {
        server.post("/generate", ask(json!({ "max_new_tokens": length }))).await;
    }
    assert_eq!(server.metric("tgi_request_count"), Some(2.0));
    assert_eq!(server.metric("tgi_request_success"), Some(2.0));
    for (histogram, sum) in
        [("tgi_request_generated_tokens", 3.0), ("tgi_request_input_length", 6.0), ("tgi_request_max_new_tokens", 3.0)]
    {
        assert_eq!(server.metric(&format!("{histogram}_sum")), Some(sum), "{histogram}");
    }
    for histogram in ["", "validation_", "queue_", "inference_", "mean_time_per_token_"] {
        assert_eq!(server.metric(&format!("tgi_request_{histogram}duration_count")), Some(2.0), "{histogram}");
    }
}
