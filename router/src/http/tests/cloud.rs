//! The routes that clouds know: the same answers by other ways in.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::harness::Server;
use crate::tokenizer::fixture;

fn messages() -> Value {
    json!([{ "role": "user", "content": "Hi" }])
}

#[tokio::test]
async fn an_invocation_is_the_route_that_its_form_means() {
    let server = Server::start();
    let generate = json!({ "inputs": "Hi", "parameters": { "max_new_tokens": 2 } });
    let chat = json!({ "messages": messages(), "max_tokens": 2 });
    let completion = json!({ "prompt": "Hi", "max_tokens": 2 });
    let both = json!({ "inputs": 5, "messages": messages(), "max_tokens": 2 });
    let text = async |body: &Value| server.post("/invocations", body.clone()).await.json();
    assert_eq!(text(&generate).await, server.post("/", generate).await.json());
    assert_eq!(text(&chat).await["object"], "chat.completion");
    assert_eq!(text(&both).await["object"], "chat.completion", "inputs that are none do not count");
    assert_eq!(text(&completion).await["object"], "text_completion");
    let mut streamed = chat.clone();
    streamed["stream"] = json!(true);
    assert_eq!(server.post("/invocations", streamed).await.events().last(), Some(&json!("[DONE]")));
    for (body, field) in [
        (json!({ "foo": 1 }), "inputs"),
        (json!({ "inputs": "x", "parameters": { "max_new_tokens": "a" } }), "max_new_tokens"),
        (json!({ "messages": 5 }), "messages"),
        (json!({ "inputs": "x", "parameters": { "max_new_tokens": 0 } }), "max_new_tokens"),
    ] {
        let answer = server.post("/invocations", body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert!(answer.body.contains(field), "{body}: {}", answer.body);
    }
    assert_eq!(server.post("/invocations", json!({ "messages": [] })).await.json()["error"]["param"], "messages");
}

#[tokio::test]
async fn vertex_answers_each_instance_in_its_place() {
    let server = Server::start();
    let body = json!({ "instances": [
        { "inputs": "a", "parameters": { "max_new_tokens": 2, "seed": 3 } },
        { "messages": messages(), "max_tokens": 3, "temperature": 0.0, "stream": true },
        { "inputs": "b", "parameters": { "max_new_tokens": 1, "do_sample": false } },
    ] });
    let answer = server.post("/vertex", body).await;
    assert_eq!(answer.json(), json!({ "predictions": [" t1 t2", " t1 t2 t3", " t1"] }), "{}", answer.body);
    let sampled: Vec<bool> = server.requests.lock().unwrap().iter().map(|one| one.sampling[0].do_sample).collect();
    assert_eq!(sampled, [true, false, false]);
    for (instances, status) in [
        (json!([]), 422),
        (json!([{ "inputs": "a", "parameters": { "max_new_tokens": 0 } }]), 422),
        (json!([{ "inputs": "a" }, { "foo": 1 }]), 422),
        (json!([{ "messages": [{ "role": "nobody", "content": "x" }] }]), 422),
    ] {
        let answer = server.post("/vertex", json!({ "instances": instances })).await;
        assert_eq!(answer.status.as_u16(), status, "{instances}");
    }
    let bad = server.post("/vertex", json!({ "instances": [{ "inputs": "a", "parameters": { "top_k": "x" } }] })).await;
    assert!(bad.body.contains("`instances[0].parameters.top_k`"), "{}", bad.body);
    assert_eq!(server.num_requests(), 3, "one bad instance costs no work");
    let places = server.post("/vertex", json!({ "instances": vec![json!({ "inputs": "a" }); 1000] })).await;
    assert!(places.body.contains("max_concurrent_requests"), "{}", places.body);
}

#[tokio::test]
async fn a_conversation_is_shown_token_by_token() {
    let server = Server::start();
    let answer = server.post("/chat_tokenize", json!({ "messages": messages(), "temperature": -3 })).await.json();
    assert_eq!(answer["templated_text"], "<s><|user|>Hi<|end|><|assistant|>");
    let tokens = answer["tokenize_response"].as_array().unwrap();
    let h = json!({ "id": fixture::byte(b'H'), "text": "H", "start": 11, "stop": 12 });
    assert_eq!(tokens[..3], [token(0, "<s>", 0), token(2, "<|user|>", 3), h]);
    assert_eq!(tokens[4..], [token(5, "<|end|>", 13), token(3, "<|assistant|>", 20)]);
    assert_eq!(server.post("/chat_tokenize", json!({ "messages": [] })).await.status, StatusCode::OK);
    let refused = server.post("/chat_tokenize", json!({ "messages": [{ "role": "nobody", "content": "x" }] })).await;
    assert_eq!(refused.json()["error_type"], "template_error");
}

fn token(id: u32, text: &str, start: usize) -> Value {
    json!({ "id": id, "text": text, "start": start, "stop": start + text.len() })
}
