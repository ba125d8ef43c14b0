//! Grammars from the body to the engine, and every way in which they are refused.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::harness::Server;
use crate::health::ServedModel;

fn object() -> Value {
    json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] })
}

#[tokio::test]
async fn the_originals_route_hands_a_compiled_grammar_to_the_workers() {
    let server = Server::start();
    for (grammar, part) in [
        (json!({ "type": "json", "value": object() }), "json_schema"),
        (json!({ "type": "regex", "value": "[0-9]+" }), "/[0-9]+/"),
        (json!({ "type": "choice", "value": ["yes", "no"] }), "\"yes\" | \"no\""),
    ] {
        for path in ["/generate", "/generate_stream", "/"] {
            let parameters = json!({ "grammar": grammar, "max_new_tokens": 2, "do_sample": true });
            let answer = server.post(path, json!({ "inputs": "a", "parameters": parameters })).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            let request = server.last_request();
            let sampling = &request.sampling[0];
            assert!(sampling.grammar.as_deref().unwrap().contains(part), "{:?}", sampling.grammar);
            assert!(!sampling.end_tokens.is_empty());
        }
    }
}

#[tokio::test]
async fn every_choice_of_a_request_has_the_grammar() {
    let server = Server::start();
    let body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 2, "n": 3,
                       "response_format": { "type": "json_object" } });
    assert_eq!(server.post("/v1/chat/completions", body).await.status, StatusCode::OK);
    let request = server.last_request();
    assert_eq!(request.sampling.iter().filter(|sampling| sampling.grammar.is_some()).count(), 3);
    let body = json!({ "prompt": ["x", "y"], "max_tokens": 2, "response_format": { "type": "regex", "value": "a" } });
    assert_eq!(server.post("/v1/completions", body).await.status, StatusCode::OK);
    assert_eq!(server.last_request().sampling[0].grammar.as_deref(), Some("start: /a/"));
    let body = json!({ "prompt": "x", "max_tokens": 2, "response_format": { "type": "text" } });
    assert_eq!(server.post("/v1/completions", body).await.status, StatusCode::OK);
    assert_eq!(server.last_request().sampling[0].grammar, None);
}

#[tokio::test]
async fn openais_routes_name_the_field_of_a_bad_grammar() {
    let server = Server::start();
    let bad = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": { "type": "objekt" } } });
    for (format, says) in [
        (bad, "at `/type`"),
        (json!({ "type": "regex", "value": "a(" }), "column 2"),
        (json!({ "type": "xml" }), "`type`"),
    ] {
        let body = json!({ "messages": [{ "role": "user", "content": "x" }], "response_format": format });
        let answer = server.post("/v1/chat/completions", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["param"], "response_format");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    assert_eq!(server.num_requests(), 0);
}

#[tokio::test]
async fn a_model_without_grammars_says_why() {
    let server = Server::start();
    let body = || json!({ "inputs": "a", "parameters": { "grammar": { "type": "regex", "value": "a" }, "max_new_tokens": 1 } });
    let missing = [("grammar".to_owned(), "its tokenizer has no bytes".to_owned())].into();
    server.health.describe(ServedModel { missing, ..ServedModel::default() });
    let answer = server.post("/generate", body()).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.body.contains("`grammar` is not supported by this model: its tokenizer has no bytes"));
    server.health.describe(ServedModel { capabilities: vec!["grammar".to_owned()], ..ServedModel::default() });
    assert_eq!(server.post("/generate", body()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_contradicts_a_grammar_is_refused() {
    let server = Server::start();
    for (field, value) in [("ignore_eos", json!(true)), ("min_tokens", json!(3))] {
        let body = json!({ "prompt": "x", "response_format": { "type": "json_object" }, field: value });
        let answer = server.post("/v1/completions", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
        assert_eq!(answer.json()["error"]["param"], field);
    }
}
