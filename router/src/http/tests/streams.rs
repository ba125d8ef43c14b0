//! Streams of the original's routes.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use super::harness::{Server, finished, post, token};
use crate::engine::api::{Event, Failed, FinishReason, Prefilled};

#[tokio::test]
async fn a_stream_is_one_line_of_json_per_token_and_ends_with_the_text() {
    let server = Server::start();
    let answer =
        server.post("/generate_stream", json!({ "inputs": "Hi", "parameters": { "max_new_tokens": 2 } })).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        answer.body,
        concat!(
            r#"data: {"index":1,"token":{"id":101,"text":" t1","logprob":-1.0,"special":false},"#,
            r#""generated_text":null,"details":null}"#,
            "\n\n",
            r#"data: {"index":2,"token":{"id":102,"text":" t2","logprob":-1.0,"special":false},"#,
            r#""generated_text":" t1 t2","details":null}"#,
            "\n\n",
        )
    );
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
        ("x-compute-type", "gpu+optimized"),
        ("x-compute-characters", "2"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(answer.header("x-total-time"), None);
    assert_eq!(server.metric("tgi_request_success"), Some(1.0));
    assert_eq!(*server.cancelled.lock().unwrap(), 0);
}

#[tokio::test]
async fn details_top_tokens_and_the_prompt_come_when_asked_for() {
    let server = Server::start();
    let parameters = json!({ "max_new_tokens": 2, "details": true, "top_n_tokens": 1, "return_full_text": true,
                             "do_sample": true, "seed": 9 });
    let events = server.post("/generate_stream", json!({ "inputs": "Hi", "parameters": parameters })).await.events();
    assert_eq!(events[0]["details"], json!(null));
    assert_eq!(events[0]["top_tokens"][0], json!({ "id": 10, "text": " top0", "logprob": -0.5, "special": false }));
    let details = json!({ "finish_reason": "length", "generated_tokens": 2, "seed": 9, "input_length": 3 });
    assert_eq!((&events[1]["details"], &events[1]["generated_text"]), (&details, &json!("Hi t1 t2")));
}

#[tokio::test]
async fn the_root_route_streams_by_its_field() {
    let server = Server::start();
    let body = json!({ "inputs": "Hi", "stream": true, "parameters": { "max_new_tokens": 1 } });
    let answer = server.post("/", body.clone()).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.events()[0]["generated_text"], "Hi t1");
    let ignored = server.post("/generate", body).await;
    assert_eq!(ignored.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn all_events_that_wait_leave_in_one_chunk() {
    let server = Server::playing(|_| {
        let say = |index| Event::Token { sequence: 0, token: token(index, -1.0, 0) };
        let end = Event::Finished { sequence: 0, finished: finished(4, FinishReason::Length, None) };
        vec![vec![Event::Prefilled(Prefilled::default())], vec![say(1), say(2), say(3)], vec![say(4), end]]
    });
    let chunks = server.chunks("/generate_stream", json!({ "inputs": "Hi" })).await;
    let events = |chunk: &String| chunk.matches("data: ").count();
    assert_eq!(chunks.iter().map(events).collect::<Vec<_>>(), [3, 1]);
}

#[tokio::test]
async fn a_failure_in_the_middle_is_the_last_event() {
    let failing: super::harness::Script = |_| {
        let say = Event::Token { sequence: 0, token: token(1, -1.0, 0) };
        vec![vec![say], vec![Event::Failed(Failed::Generation("lost".to_owned()))]]
    };
    let ending: super::harness::Script = |_| {
        let say = Event::Token { sequence: 0, token: token(1, -1.0, 0) };
        vec![vec![say], vec![Event::Failed(Failed::Incomplete)]]
    };
    for (script, error, kind) in [
        (failing, "Request failed during generation: lost", "generation"),
        (ending, "Incomplete generation stream", "incomplete_generation_stream"),
    ] {
        let server = Server::playing(script);
        let answer = server.post("/generate_stream", json!({ "inputs": "Hi" })).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.events()[1..], [json!({ "error": error, "error_type": kind })]);
        let label = if kind == "generation" { "generation" } else { "incomplete" };
        assert_eq!(server.metric(&format!("tgi_request_failure{{err=\"{label}\"}}")), Some(1.0));
    }
}

#[tokio::test]
async fn an_end_without_its_token_is_none() {
    let server = Server::playing(|_| {
        let say = Event::Token { sequence: 0, token: token(1, -1.0, 0) };
        vec![vec![say], vec![Event::Finished { sequence: 0, finished: finished(1, FinishReason::Length, None) }]]
    });
    let answer = server.post("/generate_stream", json!({ "inputs": "Hi" })).await;
    assert_eq!(answer.events()[1]["error_type"], "incomplete_generation_stream");
    assert_eq!(server.metric(r#"tgi_request_failure{err="incomplete"}"#), Some(1.0));
}

#[tokio::test]
async fn an_engine_that_is_gone_ends_every_answer_with_an_error() {
    let server = Server::start();
    let (engine, commands) = crate::engine::api::EngineHandle::new();
    drop(commands);
    let context = crate::http::Context {
        unwritten: tokio::sync::Semaphore::new(1).into(),
        places: tokio::sync::Semaphore::new(1).into(),
        tenants: crate::tenants::Tenants::default(),
        config: crate::config::Config::read(["millrace-router", "--model-id", "m"], |_| None).unwrap().into(),
        health: server.health.clone(),
        engine,
        detokenizer: super::harness::detokenizer().into(),
        text: crate::tokenizer::fixture::text_model().into(),
        metrics: server.metrics.clone(),
        backlog: server.backlog.clone(),
    };
    let router = crate::http::router(context);
    let whole = router.clone().oneshot(post("/generate", json!({ "inputs": "Hi" }).to_string())).await.unwrap();
    assert_eq!(whole.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = whole.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], br#"{"error":"Incomplete generation","error_type":"incomplete_generation"}"#);
    let response = router.oneshot(post("/generate_stream", json!({ "inputs": "Hi" }).to_string())).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        &body[..],
        br#"data: {"error":"Incomplete generation stream","error_type":"incomplete_generation_stream"}

"#
    );
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let server = Server::playing(|_| vec![vec![Event::Token { sequence: 0, token: token(1, -1.0, 0) }]]);
    let request: Request<Body> = post("/generate_stream", json!({ "inputs": "Hi" }).to_string());
    let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"data: {\"index\":1"));
    drop(body);
    while *server.cancelled.lock().unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.metric(r#"tgi_request_failure{err="dropped"}"#), Some(1.0));
}
