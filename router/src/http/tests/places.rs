//! A request's place, which is its own until its answer has been sent.

use std::collections::HashSet;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::harness::{Server, post};

/// A body for every route that takes a place, streamed where it can be and not.
fn bodies() -> Vec<(&'static str, Value)> {
    let parameters = json!({ "max_new_tokens": 3 });
    let generate = json!({ "inputs": "a", "parameters": parameters, "stream": false });
    let generate_stream = json!({ "inputs": "a", "parameters": parameters, "stream": true });
    let message = json!([{ "role": "user", "content": "a" }]);
    let chat = |stream| json!({ "messages": message, "max_tokens": 3, "n": 2, "stream": stream });
    let completions = |stream| json!({ "prompt": ["a", "b"], "max_tokens": 3, "stream": stream });
    let kserve = json!({ "id": "0", "inputs": [{ "name": "a", "shape": [1], "datatype": "BYTES", "data": [97] }],
                         "outputs": [{ "name": "b" }], "parameters": parameters });
    vec![
        ("/tokenize", generate.clone()),
        ("/chat_tokenize", json!({ "messages": message })),
        ("/generate", generate.clone()),
        ("/generate_stream", generate.clone()),
        ("/", generate.clone()),
        ("/", generate_stream),
        ("/invocations", generate.clone()),
        ("/invocations", chat(false)),
        ("/vertex", json!({ "instances": [generate, { "messages": message, "max_tokens": 3 }] })),
        ("/v2/models/m/versions/1/infer", kserve),
        ("/v1/completions", completions(false)),
        ("/v1/completions", completions(true)),
        ("/v1/chat/completions", chat(false)),
        ("/v1/chat/completions", chat(true)),
    ]
}

#[tokio::test]
async fn a_place_is_held_to_the_end_of_the_answer_and_comes_back_however_it_ends() {
    let server = Server::flags(&["--max-concurrent-requests", "2", "--kserve"]);
    let free = || server.context.places.available_permits();
    let all = free();
    let ask = async |path: &str, body: &Value| -> Body {
        let response = server.router.clone().oneshot(post(path, body.to_string())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path} {body}");
        response.into_body()
    };
    for (path, body) in bodies() {
        let mut unread = ask(path, &body).await;
        let num_taken = all - free();
        assert!(num_taken > 0, "{path} {body}");
        while let Some(frame) = unread.frame().await {
            assert!(frame.is_ok());
        }
        // Bytes of it can be on their way as long as somebody has it.
        assert_eq!(all - free(), num_taken, "{path} {body}");
        drop(unread);
        assert_eq!(free(), all, "{path} {body}");
        // Whoever leaves in between.
        let _first = ask(path, &body).await.frame().await;
        assert_eq!(free(), all, "{path} {body}");
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_count_among_the_requests_inside() {
    let server = Server::flags(&["--max-concurrent-requests", "1"]);
    let ask = || server.router.clone().oneshot(post("/tokenize", json!({ "inputs": "a" }).to_string()));
    let unread = ask().await.unwrap();
    let refused = ask().await.unwrap();
    assert_eq!((unread.status(), refused.status()), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
    assert!(refused.headers().contains_key("retry-after"));
    drop(unread);
    assert_eq!(ask().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn pages_of_metrics_that_nobody_reads_are_few_and_who_reads_gets_what_is_true_now() {
    let server = Server::start();
    let ask = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        server.router.clone().oneshot(request).await.unwrap().into_body()
    };
    let count = async || {
        let text = ask("/metrics").await.collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&text).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("tgi_request_success ")?.parse::<u32>().ok());
        count.unwrap()
    };
    for expected in 1..=40 {
        server.post("/generate", json!({ "inputs": "a", "parameters": { "max_new_tokens": 1 } })).await;
        assert_eq!(count().await, expected);
    }
    let mut unread = Vec::new();
    for _ in 0..400 {
        unread.push(ask("/metrics").await.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    // A machine that stands still for a while makes some more of them.
    let texts: HashSet<*const u8> = unread.iter().map(|text| text.as_ptr()).collect();
    assert!(texts.len() < 100, "{}", texts.len());
}

#[tokio::test]
async fn no_answer_without_a_place_is_as_long_as_its_request() {
    let server = Server::flags(&["--kserve"]);
    let long = "é".repeat(15_000);
    let deep = format!(r#"{{"{long}":"#).repeat(3) + &"}".repeat(3);
    for (path, body) in [
        ("/generate", json!({ "inputs": "a", "parameters": { "max_new_tokens": long } }).to_string()),
        ("/generate", json!({ "inputs": "a", "parameters": { "grammar": { "type": "regex", "value": format!("{long}(") } } }).to_string()),
        ("/generate", json!({ "inputs": "a", "parameters": { "grammar": { "type": long, "value": "a" } } }).to_string()),
        ("/v1/chat/completions", json!({ "messages": [{ "role": long, "content": 1 }] }).to_string()),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "a" }], "model": long }).to_string()),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "a" }], "tool_choice": long }).to_string()),
        ("/v1/completions", json!({ "prompt": "a", "model": long }).to_string()),
        ("/v1/completions", json!({ "prompt": "a", "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": long } } } }).to_string()),
        ("/vertex", json!({ "instances": [{ "inputs": "a", "parameters": { "seed": long } }] }).to_string()),
        ("/generate", deep),
    ] {
        let answer = server.send(post(path, body.clone())).await;
        assert!(answer.status.is_client_error() && answer.body.len() < 4000, "{path} {} {}", answer.status, answer.body);
    }
    let long = "a".repeat(15_000);
    for path in [format!("/v1/{long}"), format!("/v1/models/{long}"), format!("/v2/models/{long}/versions/1")] {
        let answer = server.get(&path).await;
        assert!(answer.status == StatusCode::NOT_FOUND && answer.body.len() < 4000, "{}", answer.body);
    }
}
