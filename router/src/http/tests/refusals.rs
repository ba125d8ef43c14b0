//! Every refusal: the body's shape, the parameters' rules, lengths, load, and what the routes do not do yet.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::harness::{LIMITS, Server, speak};
use crate::engine::api::{Event, Failed};
use crate::request::ValidRequest;

/// Parameters that break one rule, and the field that the error names.
fn broken_rules() -> Vec<(Value, &'static str)> {
    vec![
        (json!({ "best_of": 3, "do_sample": true }), "best_of"),
        (json!({ "best_of": 2 }), "best_of"),
        (json!({ "best_of": 2, "do_sample": false, "repetition_penalty": 2.0 }), "best_of"),
        (json!({ "best_of": 2, "do_sample": true, "seed": 1 }), "seed"),
        (json!({ "temperature": 0.0 }), "temperature"),
        (json!({ "temperature": -1.0 }), "temperature"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (json!({ "repetition_penalty": -0.5 }), "repetition_penalty"),
        (json!({ "frequency_penalty": -2.1 }), "frequency_penalty"),
        (json!({ "frequency_penalty": 2.1 }), "frequency_penalty"),
        (json!({ "top_p": 0 }), "top_p"),
        (json!({ "top_p": 1.0 }), "top_p"),
        (json!({ "top_p": 0.999_999_99 }), "top_p"),
        (json!({ "top_p": -0.1 }), "top_p"),
        (json!({ "typical_p": 0.0 }), "typical_p"),
        (json!({ "typical_p": 1 }), "typical_p"),
        (json!({ "top_k": 0 }), "top_k"),
        (json!({ "top_k": -1 }), "top_k"),
        (json!({ "max_new_tokens": 0 }), "max_new_tokens"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop"),
        (json!({ "top_n_tokens": 6 }), "top_n_tokens"),
        (json!({ "truncate": 0 }), "truncate"),
        (json!({ "truncate": 65 }), "truncate"),
        (json!({ "max_new_tokens": 100 }), "inputs"),
        (json!({ "grammar": { "type": "regex", "value": "[0-9" } }), "grammar"),
        (json!({ "grammar": { "type": "json", "value": { "type": "objekt" } } }), "grammar"),
        // The first rule that is broken is named, whatever the order of the keys.
        (json!({ "top_p": 2, "temperature": -1 }), "temperature"),
        (
            json!({ "grammar": { "type": "regex", "value": "[" }, "top_n_tokens": 9, "stop": ["a", "b", "c", "d", "e"] }),
            "stop",
        ),
        (json!({ "truncate": 0, "max_new_tokens": 0 }), "max_new_tokens"),
        (json!({ "grammar": { "type": "regex", "value": "[" }, "max_new_tokens": 100 }), "inputs"),
        (json!({ "best_of": 2, "temperature": -1, "seed": 1 }), "temperature"),
    ]
}

fn assert_validation(body: &Value, field: &str) {
    let error = body["error"].as_str().unwrap();
    assert!(error.starts_with(&format!("Input validation error: `{field}` ")), "{field}: {error}");
    assert_eq!(body["error_type"], "validation");
    assert_eq!(body.as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn each_rule_of_the_parameters_is_refused_by_name_on_each_route() {
    let server = Server::start();
    for (parameters, field) in broken_rules() {
        let body = json!({ "inputs": "Hi", "parameters": parameters });
        for path in ["/generate", "/"] {
            let answer = server.post(path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path} {body}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_validation(&answer.json(), field);
        }
        // Streams are refused with a status too, before they open.
        let answer = server.post("/generate_stream", body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        let field = if body["parameters"].get("best_of").is_some() { "best_of" } else { field };
        assert_validation(&answer.json(), field);
    }
    assert_eq!(server.num_requests(), 0);
}

#[tokio::test]
async fn what_is_known_only_at_the_end_is_refused_when_streaming() {
    let server = Server::start();
    for (parameters, field) in [
        (json!({ "best_of": 2, "do_sample": true }), "best_of"),
        (json!({ "best_of": 0 }), "best_of"),
        (json!({ "decoder_input_details": true }), "decoder_input_details"),
    ] {
        let body = json!({ "inputs": "Hi", "parameters": parameters });
        let answer = server.post("/generate_stream", body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_validation(&answer.json(), field);
        assert_eq!(server.post("/generate", body).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn prompts_are_refused_by_length() {
    let server = Server::start();
    let ask = async |length: usize, parameters: Value| {
        server.post("/generate", json!({ "inputs": "x".repeat(length), "parameters": parameters })).await
    };
    for (length, parameters) in [(0, json!({})), (64, json!({})), (200, json!({})), (63, json!({"max_new_tokens": 37}))]
    {
        let answer = ask(length, parameters).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{length}");
        assert_validation(&answer.json(), "inputs");
    }
    // One token of the prompt is the tokenizer's own.
    for (length, parameters) in
        [(63, json!({})), (63, json!({ "max_new_tokens": 36 })), (200, json!({ "truncate": 64 }))]
    {
        assert_eq!(ask(length, parameters).await.status, StatusCode::OK, "{length}");
    }
    assert!(server.last_request().prompt.len() == LIMITS.max_input_tokens as usize);
}

#[tokio::test]
async fn wrong_types_are_422_and_name_their_place() {
    let server = Server::start();
    let cases = [
        (json!({}), "inputs"),
        (json!({ "inputs": null }), "inputs"),
        (json!({ "inputs": 5 }), "inputs"),
        (json!({ "inputs": ["a"] }), "inputs"),
        (json!({ "inputs": "a", "parameters": "x" }), "parameters"),
        (json!({ "inputs": "a", "parameters": [] }), "parameters"),
        (json!({ "inputs": "a", "parameters": [null, 0.5] }), "parameters"),
        (json!({ "inputs": "a", "parameters": { "max_new_tokens": "5" } }), "parameters.max_new_tokens"),
        (json!({ "inputs": "a", "parameters": { "max_new_tokens": -1 } }), "parameters.max_new_tokens"),
        (json!({ "inputs": "a", "parameters": { "max_new_tokens": 1.5 } }), "parameters.max_new_tokens"),
        (json!({ "inputs": "a", "parameters": { "max_new_tokens": 4_294_967_296_u64 } }), "parameters.max_new_tokens"),
        (json!({ "inputs": "a", "parameters": { "temperature": "0.5" } }), "parameters.temperature"),
        (json!({ "inputs": "a", "parameters": { "do_sample": 1 } }), "parameters.do_sample"),
        (json!({ "inputs": "a", "parameters": { "seed": -1 } }), "parameters.seed"),
        (json!({ "inputs": "a", "parameters": { "stop": "x" } }), "parameters.stop"),
        (json!({ "inputs": "a", "parameters": { "stop": ["x", null] } }), "parameters.stop[1]"),
        (json!({ "inputs": "a", "parameters": { "top_k": 2_147_483_648_u64 } }), "parameters.top_k"),
    ];
    for (body, place) in cases {
        for path in ["/generate", "/generate_stream", "/", "/tokenize"] {
            let answer = server.post(path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path} {body}");
            let error = answer.json();
            assert_eq!(error["error_type"], "validation");
            assert!(error["error"].as_str().unwrap().contains(&format!("`{place}`")), "{place}: {error}");
        }
    }
    let answer = server.post("/", json!({ "inputs": "a", "stream": "true" })).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn null_means_absent_everywhere() {
    let server = Server::start();
    let names = [
        "best_of",
        "temperature",
        "repetition_penalty",
        "frequency_penalty",
        "top_k",
        "top_p",
        "typical_p",
        "do_sample",
        "max_new_tokens",
        "return_full_text",
        "stop",
        "truncate",
        "watermark",
        "details",
        "decoder_input_details",
        "seed",
        "top_n_tokens",
        "grammar",
        "adapter_id",
    ];
    let nulls: serde_json::Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    let answer = server.post("/generate", json!({ "inputs": "a", "parameters": nulls })).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert!(!server.last_request().sampling[0].do_sample);
    let answer = server.post("/", json!({ "inputs": "a", "parameters": null, "stream": null })).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(server.last_request().sampling[0].do_sample);
}

#[tokio::test]
async fn the_operators_bounds_are_the_flags() {
    let flags = ["--max-best-of", "1", "--max-stop-sequences", "1", "--max-top-n-tokens", "0"];
    let server = Server::flags(&[&flags[..], &["--disable-grammar-support"]].concat());
    for (parameters, field, says) in [
        (json!({ "best_of": 2, "do_sample": true }), "best_of", "disabled"),
        (json!({ "stop": ["a", "b"] }), "stop", "at most 1"),
        (json!({ "top_n_tokens": 1 }), "top_n_tokens", "at most 0"),
        (json!({ "grammar": { "type": "regex", "value": "a" } }), "grammar", "not supported: grammars are disabled"),
    ] {
        let answer = server.post("/generate", json!({ "inputs": "a", "parameters": parameters })).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_validation(&answer.json(), field);
        assert!(answer.body.contains(says), "{}", answer.body);
    }
    let fine = json!({ "inputs": "a", "parameters": { "best_of": 1, "stop": ["a"], "top_n_tokens": 0 } });
    assert_eq!(server.post("/generate", fine).await.status, StatusCode::OK);
}

/// Accepts the request and says nothing.
fn hang(_: &ValidRequest) -> Vec<Vec<Event>> {
    Vec::new()
}

#[tokio::test]
async fn a_full_server_refuses_at_once_and_takes_requests_again_when_a_client_leaves() {
    let server = Server::with(&["--max-concurrent-requests", "1"], &[], hang);
    let mut held = Box::pin(server.post("/generate", json!({ "inputs": "a" })));
    while server.num_requests() == 0 {
        assert!(futures::poll!(held.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    for path in ["/generate", "/generate_stream", "/"] {
        let answer = server.post(path, json!({ "inputs": "a" })).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.json()["error_type"], "overloaded");
        assert!(answer.json()["error"].as_str().unwrap().starts_with("Model is overloaded"));
        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let answer = server.post(path, json!({ "prompt": "a", "messages": [], "stream": true })).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.json()["error"]["code"], "rate_limit_exceeded");
    }
    drop(held);
    let mut next = Box::pin(server.post("/generate", json!({ "inputs": "a" })));
    while server.num_requests() == 1 {
        assert!(futures::poll!(next.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(server.metric(r#"tgi_request_failure{err="overloaded"}"#), Some(5.0));
    assert_eq!(server.metric(r#"tgi_request_failure{err="dropped"}"#), Some(1.0));
    assert_eq!(*server.cancelled.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_failure_on_the_models_side_is_424_and_an_answer_without_end_is_500() {
    let failing: super::harness::Script = |_| vec![vec![Event::Failed(Failed::Generation("no memory".to_owned()))]];
    let ending: super::harness::Script = |_| vec![vec![Event::Failed(Failed::Incomplete)]];
    let cases = [
        (failing, StatusCode::FAILED_DEPENDENCY, "generation", "Request failed during generation: no memory"),
        (ending, StatusCode::INTERNAL_SERVER_ERROR, "incomplete_generation", "Incomplete generation"),
    ];
    for (script, status, kind, text) in cases {
        let server = Server::playing(script);
        let answer = server.post("/generate", json!({ "inputs": "a" })).await;
        assert_eq!((answer.status, answer.json()), (status, json!({ "error": text, "error_type": kind })));
        let answer = server.post("/v1/completions", json!({ "prompt": "a" })).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &json!(kind)));
        let label = if kind == "generation" { "generation" } else { "incomplete" };
        assert_eq!(server.metric(&format!("tgi_request_failure{{err=\"{label}\"}}")), Some(2.0));
        assert_eq!(*server.cancelled.lock().unwrap(), 0);
    }
}

#[tokio::test]
async fn chat_errors_have_the_templates_own_type() {
    let server = Server::start();
    let body = json!({ "messages": [{ "role": "nobody", "content": "x" }] });
    let answer = server.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let error = &answer.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("template_error"), &json!("messages")));
    assert!(error["message"].as_str().unwrap().starts_with("Template error: "), "{error}");
    assert_eq!(server.metric(r#"tgi_request_failure{err="template"}"#), Some(1.0));
}

#[tokio::test]
async fn what_does_not_exist_yet_is_refused_by_name() {
    let server = Server::start();
    let chat = json!({ "messages": [{ "role": "user", "content": "x" }] });
    let completion = json!({ "prompt": "x" });
    let asks = [
        ("logit_bias", json!({ "50": 101 })),
        ("logit_bias", json!({ "x": 1 })),
        ("logit_bias", json!({ "4000000": 1 })),
        ("logit_bias", json!([1.0, "x"])),
        ("logit_bias", json!(5)),
        ("functions", json!([{ "name": "f" }])),
        ("function_call", json!({ "name": "f" })),
        ("response_format", json!({ "type": "xml" })),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({ "voice": "x" })),
        ("prediction", json!({ "type": "content", "content": "x" })),
        ("web_search_options", json!({})),
        ("reasoning_effort", json!("low")),
        ("suffix", json!("x")),
        ("temperature", json!(-1)),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("presence_penalty", json!(-2.5)),
        ("frequency_penalty", json!(3)),
        ("repetition_penalty", json!(0)),
        ("max_tokens", json!(0)),
        ("stop", json!(["a", "b", "c", "d", "e"])),
    ];
    for (path, base) in [("/v1/chat/completions", &chat), ("/v1/completions", &completion)] {
        for (field, value) in &asks {
            let mut body = base.clone();
            body[*field] = value.clone();
            let answer = server.post(path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
            let error = &answer.json()["error"];
            assert_eq!((&error["param"], &error["type"]), (&json!(field), &json!("invalid_request_error")), "{error}");
        }
    }
    assert_eq!(server.num_requests(), 0);
}

#[tokio::test]
async fn messages_and_prompts_of_other_kinds_are_refused() {
    let server = Server::flags(&["--max-client-batch-size", "2"]);
    let message = |message: Value| json!({ "messages": [message] });
    let parts = |part: Value| message(json!({ "role": "user", "content": [part] }));
    let cases = [
        ("/v1/chat/completions", json!({}), "messages"),
        ("/v1/chat/completions", json!({ "messages": null }), "messages"),
        ("/v1/chat/completions", message(json!({ "role": "user" })), "messages[0].content"),
        ("/v1/chat/completions", message(json!({ "role": "user", "content": null })), "messages[0].content"),
        ("/v1/chat/completions", message(json!({ "role": 1, "content": "a" })), "messages[0].role"),
        ("/v1/chat/completions", json!({ "messages": "hi" }), "messages"),
        ("/v1/chat/completions", parts(json!({ "type": "text" })), "messages[0].content[0]"),
        ("/v1/chat/completions", parts(json!({ "type": "input_audio", "input_audio": {} })), "messages[0].content[0]"),
        (
            "/v1/chat/completions",
            message(json!({ "role": "a", "tool_calls": [{}] })),
            "messages[0].tool_calls[0].function.name",
        ),
        ("/v1/completions", json!({}), "prompt"),
        ("/v1/completions", json!({ "prompt": [] }), "prompt"),
        ("/v1/completions", json!({ "prompt": "" }), "prompt"),
        ("/v1/completions", json!({ "prompt": ["a", ""] }), "prompt"),
        ("/v1/completions", json!({ "prompt": ["a", "b", "c"] }), "prompt"),
        (
            "/v1/completions",
            json!({ "prompt": "a", "max_tokens": 2, "max_completion_tokens": 3 }),
            "max_completion_tokens",
        ),
    ];
    for (path, body, field) in cases {
        let answer = server.post(path, body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer.json()["error"]["param"], field, "{body}: {}", answer.body);
    }
    for (body, place) in [
        (json!({ "prompt": [1, "a"] }), json!("prompt")),
        (json!({ "prompt": 5 }), json!("prompt")),
        (json!([]), json!(null)),
    ] {
        let answer = server.post("/v1/completions", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!((&answer.json()["error"]["param"], &answer.json()["error_type"]), (&place, &json!("validation")));
    }
    assert_eq!(server.num_requests(), 0, "one bad prompt costs no work");
}

#[tokio::test]
async fn refusals_of_the_request_are_counted_as_validation() {
    let server = Server::with(&[], &[], speak);
    server.post("/generate", json!({ "inputs": "" })).await;
    server.post("/generate_stream", json!({ "inputs": "a", "parameters": { "top_p": 1.0 } })).await;
    assert_eq!(server.metric(r#"tgi_request_failure{err="validation"}"#), Some(2.0));
    assert_eq!(server.metric("tgi_request_count"), Some(2.0));
    assert_eq!(server.metric("tgi_request_success"), Some(0.0));
}

#[tokio::test]
async fn the_codes_that_openais_clients_look_for() {
    let server = Server::start();
    let chat = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let picture = json!([{ "type": "text", "text": "a" }, { "type": "image_url", "image_url": { "url": "x" } }]);
    let cases = [
        (chat(json!("x".repeat(500))), "context_length_exceeded", "messages"),
        (chat(picture), "unsupported_parameter", "messages[0].content[1]"),
        (json!({ "messages": [], "max_tokens": "5" }), "invalid_type", "max_tokens"),
        (json!({ "messages": [], "audio": {} }), "invalid_value", "messages"),
    ];
    for (body, code, param) in cases {
        let answer = server.post("/v1/chat/completions", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{error}");
        assert_eq!(
            (&error["type"], &answer.json()["error_type"]),
            (&json!("invalid_request_error"), &json!("validation"))
        );
    }
    // The original's routes have the original's status.
    let too_long = server.post("/generate", json!({ "inputs": "x".repeat(500) })).await;
    assert_eq!(
        (too_long.status, &too_long.json()["error_type"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("validation"))
    );
}

#[tokio::test]
async fn strict_names_are_404_for_what_is_not_served() {
    let server = Server::flags(&["--strict-model-names", "--served-model-name", "other"]);
    let ask = async |path: &str, model: Value| {
        let body =
            json!({ "model": model, "prompt": "a", "messages": [{ "role": "user", "content": "a" }], "max_tokens": 1 });
        server.post(path, body).await
    };
    for path in ["/v1/completions", "/v1/chat/completions"] {
        for served in [json!("test/model"), json!("other"), json!("tgi"), json!(""), json!(null)] {
            assert_eq!(ask(path, served).await.status, StatusCode::OK);
        }
        let answer = ask(path, json!("gpt-4o")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    }
    assert_eq!(
        Server::start().post("/v1/completions", json!({ "model": "gpt-4o", "prompt": "a" })).await.status,
        StatusCode::OK
    );
}
