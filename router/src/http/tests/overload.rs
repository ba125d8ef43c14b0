//! Refusals for overload: on every route that generates, before any stream opens.

use std::sync::Arc;

use axum::http::StatusCode;
use millrace_scheduler::TenantId;
use serde_json::{Value, json};

use super::harness::{Answer, Server, post};
use crate::engine::api::Event;
use crate::http::admission::prompt_logprobs;
use crate::http::body;
use crate::http::error::Dialect;
use crate::http::refused_streams::look;
use crate::http::state::AppState;
use crate::overload::Demand;
use crate::request::ValidRequest;
use crate::tenants::Tenant;

/// Accepts the request and says nothing.
fn hang(_: &ValidRequest) -> Vec<Vec<Event>> {
    Vec::new()
}

/// What refuses while another request has the only place, by route; each body asks for a stream where it can.
async fn refusals(flags: &[&str]) -> (Server, Vec<(&'static str, Answer)>) {
    let flags = [&["--max-concurrent-requests", "1", "--kserve"], flags].concat();
    let server = Server::with(&flags, &[], hang);
    let mut answers = Vec::new();
    {
        let mut held = Box::pin(server.post("/generate", json!({ "inputs": "a" })));
        while server.num_requests() == 0 {
            assert!(futures::poll!(held.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        for (path, body) in bodies() {
            answers.push((path, server.post(path, body).await));
        }
    }
    (server, answers)
}

fn bodies() -> [(&'static str, Value); 10] {
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "stream": true });
    let kserve = json!({ "id": "0", "inputs": [{ "name": "a", "shape": [1], "datatype": "BYTES", "data": [97] }],
                         "outputs": [{ "name": "b" }] });
    [
        ("/generate", json!({ "inputs": "a" })),
        ("/generate_stream", json!({ "inputs": "a" })),
        ("/", json!({ "inputs": "a" })),
        ("/", json!({ "inputs": "a", "stream": true })),
        ("/invocations", chat.clone()),
        ("/vertex", json!({ "instances": [{ "inputs": "a" }] })),
        ("/v2/models/m/versions/1/infer", kserve),
        ("/v1/completions", json!({ "prompt": "a" })),
        ("/v1/completions", json!({ "prompt": "a", "stream": true })),
        ("/v1/chat/completions", chat),
    ]
}

/// In the words of its family of routes.
fn check_error(path: &str, error: &Value) {
    let message = if path.starts_with("/v1") {
        let inner = &error["error"];
        assert_eq!((&inner["type"], &inner["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
        assert_eq!(inner["param"], Value::Null);
        &inner["message"]
    } else {
        &error["error"]
    };
    assert_eq!(error["error_type"], "overloaded", "{path}");
    assert!(message.as_str().is_some_and(|text| text.starts_with("Model is overloaded")), "{error}");
}

#[tokio::test]
async fn every_route_refuses_with_429_before_a_stream_opens() {
    let (server, answers) = refusals(&[]).await;
    let num_refused = answers.len() as f64;
    for (path, answer) in answers {
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1, "{path}");
        check_error(path, &answer.json());
    }
    assert_eq!(server.metric(r#"tgi_request_failure{err="overloaded"}"#), Some(num_refused));
    assert_eq!(server.metric(r#"millrace_refusals_total{reason="places"}"#), Some(num_refused));
    assert_eq!(server.metric(r#"millrace_refusals_total{reason="grammars"}"#), Some(0.0));
}

#[tokio::test]
async fn places_beside_the_first_are_refused_alike() {
    let server = Server::with(&["--max-concurrent-requests", "2"], &[], hang);
    let mut held = Box::pin(server.post("/generate", json!({ "inputs": "a" })));
    while server.num_requests() == 0 {
        assert!(futures::poll!(held.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    for stream in [true, false] {
        let answer = server.post("/v1/completions", json!({ "prompt": "a", "n": 2, "stream": stream })).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        check_error("/v1/completions", &answer.json());
    }
}

#[tokio::test]
async fn on_demand_streams_are_refused_as_the_original_did() {
    let (_server, answers) = refusals(&["--refuse-in-stream"]).await;
    for ((path, body), (_, answer)) in bodies().into_iter().zip(answers) {
        if path != "/generate_stream" && body["stream"] != true {
            assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
            continue;
        }
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{path}");
        let events = answer.events();
        check_error(path, &events[0]);
        let rest: &[Value] = if path.starts_with("/v1") { &[json!("[DONE]")] } else { &[] };
        assert_eq!(&events[1..], rest, "{path}");
    }
}

#[tokio::test]
async fn where_streams_may_be_refused_inside_bodies_are_read_as_ever() {
    let server = Server::flags(&["--refuse-in-stream", "--payload-limit", "200"]);
    let parameters = json!({ "max_new_tokens": 2 });
    for path in ["/generate", "/generate_stream", "/"] {
        let answer = server.post(path, json!({ "inputs": "a", "parameters": parameters })).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {}", answer.body);
        let answer = server.post(path, json!({ "inputs": "a".repeat(300) })).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        let answer = server.post(path, json!({ "inputs": 5 })).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path}");
    }
}

#[tokio::test]
async fn a_body_that_has_been_looked_at_is_held_and_counted_once_until_it_is_read() {
    let state = AppState::new(Server::start().context);
    let mut request = post("/generate", json!({ "inputs": "a", "stream": true }).to_string());
    request.extensions_mut().insert(Arc::<Tenant>::default());
    let (request, is_stream) = look(request, &state).await.unwrap();
    let taken = state.underway.taken();
    assert!(is_stream && taken > 0);
    let read = body::whole(request, &state).await.unwrap();
    assert_eq!((state.underway.taken(), read.parse::<Value>().unwrap()["stream"] == true), (taken, true));
    drop(read);
    assert_eq!(state.underway.taken(), 0);
}

#[tokio::test]
async fn prompt_logprobs_are_refused_for_now_while_others_have_all_that_there_is() {
    let server = Server::start();
    let parameters = json!({ "decoder_input_details": true, "max_new_tokens": 1 });
    assert_eq!(
        server.post("/generate", json!({ "inputs": "a", "parameters": parameters })).await.status,
        StatusCode::OK
    );
    let (state, request) = (AppState::new(server.context.clone()), server.last_request());
    let mut held: Vec<_> = std::iter::from_fn(|| state.prompt_logprobs.take(1 << 18, 0).ok()).collect();
    let refused = prompt_logprobs(&state, &request, "decoder_input_details").unwrap_err();
    assert_eq!(refused.status(Dialect::Tgi), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.to_string().contains("prompt logprobs of other requests"), "{refused}");
    held.pop();
    assert!(prompt_logprobs(&state, &request, "decoder_input_details").unwrap().is_some());
}

/// Two requests that run, each for 91 steps of a tenth of a second: there are no more rows.
async fn busy(flags: &[&str], work: impl AsyncFn(&Server)) {
    let server = Server::with(flags, &[], hang);
    server.step(0.1, 0);
    let body = json!({ "inputs": "a", "parameters": { "max_new_tokens": 90 } });
    let mut held = Box::pin(futures::future::join_all((0..2).map(|_| server.post("/generate", body.clone()))));
    while server.num_requests() < 2 {
        assert!(futures::poll!(held.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    work(&server).await;
    drop(held);
}

/// All alike on every route that generates.
async fn check_refusals(server: &Server, says: &str, pause: &str) {
    for (path, body) in bodies() {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(answer.header("retry-after"), Some(pause), "{path} {}", answer.body);
        assert!(answer.body.contains(says), "{path} {}", answer.body);
        check_error(path, &answer.json());
    }
    assert_eq!(server.num_requests(), 2);
}

#[tokio::test]
async fn who_would_wait_too_long_is_told_how_long_to_stay_away() {
    busy(&["--max-queue-seconds", "1.5", "--kserve"], async |server| {
        check_refusals(server, "would wait for 9.1 s, and 1.5 s is the most (max_queue_seconds)", "8").await;
        assert_eq!(server.metric(r#"millrace_refusals_total{reason="wait"}"#), Some(10.0));
        // Busy is not ill, and other work goes on.
        for path in ["/health", "/readyz", "/livez"] {
            assert_eq!(server.get(path).await.status, StatusCode::OK);
        }
        assert_eq!(server.post("/tokenize", json!({ "inputs": "a" })).await.status, StatusCode::OK);
        let text = server.get("/metrics").await.body;
        assert!(text.contains("millrace_queue_wait_seconds 9.1"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn who_is_sooner_is_let_past_those_who_wait() {
    let server = Server::with(&["--max-queue-seconds", "10"], &[], super::harness::speak);
    server.step(0.1, 0);
    let later = Demand {
        prompt_tokens: 1,
        num_sequences: 1,
        max_new_tokens: 100,
        tenant: TenantId(0),
        weight: 1,
        max_queued_tokens: None,
        priority: 5,
    };
    let mut waiting = Vec::new();
    while let Ok(one) = server.backlog.reserve(later, None) {
        waiting.push(one);
    }
    for (priority, status) in [(5, StatusCode::TOO_MANY_REQUESTS), (4, StatusCode::OK)] {
        let parameters = json!({ "priority": priority, "max_new_tokens": 1 });
        for (path, body) in [
            ("/generate", json!({ "inputs": "a", "parameters": parameters })),
            ("/v1/completions", json!({ "prompt": "a", "max_tokens": 1, "priority": priority })),
        ] {
            let answer = server.post(path, body).await;
            assert_eq!(answer.status, status, "{path} {priority} {}", answer.body);
        }
    }
}

#[tokio::test]
async fn prompts_that_wait_are_bounded_in_tokens() {
    busy(&["--max-queued-tokens", "500", "--kserve"], async |server| {
        server.step(0.1, 500);
        check_refusals(server, "500 prompt tokens wait to be computed, and 500 may (max_queued_tokens)", "1").await;
        assert_eq!(server.metric(r#"millrace_refusals_total{reason="queued_tokens"}"#), Some(10.0));
        assert!(server.get("/metrics").await.body.contains("millrace_queued_tokens 500"));
        // How many a request has is known when they have been counted.
        server.step(0.1, 480);
        let answer = server.post("/generate", json!({ "inputs": "a".repeat(40) })).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(answer.body.contains("480 prompt tokens wait"), "{}", answer.body);
    })
    .await;
}

#[tokio::test]
async fn who_would_be_too_late_is_refused_at_once() {
    busy(&[], async |server| {
        let late = json!({ "timeout": 5 });
        let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "timeout": 5 });
        for (path, body) in [
            ("/generate", json!({ "inputs": "a", "parameters": late })),
            ("/generate_stream", json!({ "inputs": "a", "parameters": late })),
            ("/vertex", json!({ "instances": [{ "inputs": "a", "parameters": late }] })),
            ("/v1/completions", json!({ "prompt": "a", "timeout": 5 })),
            ("/v1/chat/completions", chat),
        ] {
            let answer = server.post(path, body).await;
            assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path} {}", answer.body);
            assert!(answer.body.contains("its timeout is over in"), "{path} {}", answer.body);
            check_error(path, &answer.json());
        }
        // By its header alone it is refused before its body is read, whatever that is.
        let mut request = super::harness::post("/generate", "nonsense");
        request.headers_mut().insert("x-request-timeout", "5".parse().unwrap());
        assert_eq!(server.send(request).await.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(server.metric(r#"millrace_refusals_total{reason="deadline"}"#), Some(6.0));
        assert_eq!(server.num_requests(), 2);
    })
    .await;
}

#[tokio::test]
async fn the_body_may_say_how_long_a_client_waits_and_the_shorter_time_counts() {
    let server = Server::start();
    for (header, field, seconds) in [(None, 2.5, 2.5), (Some("9"), 2.5, 2.5), (Some("2"), 2.5, 2.0), (None, 3.0, 3.0)] {
        for (path, body) in [
            ("/generate", json!({ "inputs": "a", "parameters": { "timeout": field, "max_new_tokens": 1 } })),
            ("/v1/completions", json!({ "prompt": "a", "max_tokens": 1, "timeout": field })),
        ] {
            let mut request = super::harness::post(path, body.to_string());
            if let Some(header) = header {
                request.headers_mut().insert("x-request-timeout", header.parse().unwrap());
            }
            assert_eq!(server.send(request).await.status, StatusCode::OK);
            let request = server.last_request();
            let deadline = request.received + std::time::Duration::from_secs_f64(seconds);
            assert_eq!(request.deadline, Some(deadline), "{path} {header:?} {field}");
        }
    }
    for wrong in [json!(0), json!(-1), json!(1e300)] {
        let answer = server.post("/generate", json!({ "inputs": "a", "parameters": { "timeout": wrong } })).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.body);
        assert!(answer.body.contains("`timeout` must be a number of seconds above 0"), "{}", answer.body);
        let answer = server.post("/v1/completions", json!({ "prompt": "a", "timeout": wrong })).await;
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("timeout")));
    }
}

#[tokio::test]
async fn a_time_that_is_over_at_once_costs_no_generation() {
    let server = Server::start();
    let least = json!({ "timeout": 5e-324 });
    for (path, body) in [
        ("/", json!({ "inputs": "a", "parameters": least })),
        ("/generate", json!({ "inputs": "a", "parameters": least })),
        ("/generate_stream", json!({ "inputs": "a", "parameters": least })),
        ("/vertex", json!({ "instances": [{ "inputs": "a", "parameters": least }] })),
        ("/invocations", json!({ "prompt": "a", "timeout": 5e-324 })),
        ("/v1/completions", json!({ "prompt": "a", "timeout": 5e-324 })),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "a" }], "timeout": 5e-324 })),
    ] {
        assert_eq!(server.post(path, body).await.status, StatusCode::GATEWAY_TIMEOUT, "{path}");
    }
    assert_eq!(server.num_requests(), 0);
}

#[tokio::test]
async fn time_is_over_also_while_a_grammar_is_compiled() {
    let server = Server::start();
    // Takes tens of milliseconds.
    let words: Vec<String> = (0..2_000).map(|number| format!("a*{number}b+")).collect();
    let grammar = json!({ "type": "regex", "value": words.join("|") });
    let parameters = json!({ "grammar": grammar, "timeout": 0.001 });
    for path in ["/generate", "/generate_stream"] {
        let answer = server.post(path, json!({ "inputs": "a", "parameters": parameters })).await;
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{}", answer.body);
        assert_eq!(answer.json()["error_type"], "timeout");
    }
    assert_eq!(server.metric(r#"tgi_request_failure{err="timeout"}"#), Some(2.0));
    assert_eq!(server.num_requests(), 0);
}
