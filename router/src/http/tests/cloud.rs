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
        (json!([{ "messages": [{ "role": "user", "content": "x" }], "n": 2 }]), 422),
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

#[tokio::test]
async fn the_environment_names_vertex_routes() {
    let environment = [("AIP_PREDICT_ROUTE", "/predict"), ("AIP_HEALTH_ROUTE", "/alive"), ("API_KEY", "k")];
    let server = Server::with(&[], &environment, super::harness::speak);
    assert_eq!(server.get("/alive").await.status, StatusCode::OK);
    let body = json!({ "instances": [{ "inputs": "a", "parameters": { "max_new_tokens": 1 } }] });
    let mut request = super::harness::post("/predict", body.to_string());
    assert_eq!(server.post("/predict", body).await.status, StatusCode::UNAUTHORIZED);
    request.headers_mut().insert("authorization", "Bearer k".parse().unwrap());
    assert_eq!(server.send(request).await.json(), json!({ "predictions": [" t1"] }));
    // A path that is there anyway is no second one, and what is no path ends the start.
    for path in ["/vertex", "/generate", "/v1/chat/completions", "/", "/health", "/metrics", "/v1/models"] {
        let same = [("AIP_PREDICT_ROUTE", path), ("AIP_HEALTH_ROUTE", path)];
        assert_eq!(Server::with(&[], &same, super::harness::speak).get("/health").await.status, StatusCode::OK);
    }
    let arguments = ["millrace-router", "--model-id", "m"];
    let error = crate::config::Config::read(arguments, |name| (name == "AIP_HEALTH_ROUTE").then(|| "{x}".to_owned()));
    assert!(error.unwrap_err().to_string().contains("AIP_HEALTH_ROUTE"));
}

#[tokio::test]
async fn kserve_is_there_when_it_is_asked_for() {
    assert_eq!(Server::start().get("/v2/health/live").await.status, StatusCode::NOT_FOUND);
    let server = Server::flags(&["--kserve"]);
    assert_eq!(server.get("/v2").await.json()["name"], "text-generation-inference");
    assert_eq!(server.get("/v2/health/live").await.json(), json!({ "live": true }));
    let ready = "/v2/models/m/versions/1/ready";
    assert_eq!(server.get(ready).await.json(), json!({ "live": true, "ready": true }));
    let model = json!({ "name": "m", "version": "1", "extensions": ["infer", "ready"] });
    assert_eq!(server.get("/v2/models/m/versions/1").await.json(), model);
    let input = |data: &[u8]| json!({ "name": "x", "shape": [1], "datatype": "BYTES", "data": data });
    let infer = async |inputs: Value, num_outputs: usize| {
        let outputs: Vec<Value> = (0..num_outputs).map(|index| json!({ "name": format!("out{index}") })).collect();
        let body = json!({ "id": "7", "parameters": { "max_new_tokens": 1 }, "inputs": inputs, "outputs": outputs });
        server.post("/v2/models/m/versions/1/infer", body).await
    };
    let output = |name: &str| json!({ "name": name, "shape": [1, 3], "datatype": "BYTES", "data": b" t1" });
    let answer = infer(json!([input(b"a"), input(b"bc")]), 2).await.json();
    assert_eq!(answer, json!({ "id": "7", "outputs": [output("out0"), output("out1")] }));
    for (inputs, num_outputs, kind) in [
        (json!([input(b"a")]), 2, "length mismatch"),
        (json!([]), 0, "length mismatch"),
        (json!([input(&[0xFF])]), 1, "utf8"),
    ] {
        let answer = infer(inputs, num_outputs).await;
        assert_eq!((answer.status, &answer.json()["error_type"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(kind)));
    }
    server.health.drain();
    let answer = server.get("/v2/health/ready").await;
    assert_eq!(
        (answer.status, answer.json()),
        (StatusCode::SERVICE_UNAVAILABLE, json!({ "live": true, "ready": false }))
    );
}
