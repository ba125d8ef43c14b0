//! Routes for operators, and what the server answers before, between and after its workers.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use super::harness::{LIMITS, Server};
use crate::health::{Health, Hung, ServedModel};

const POSTS: [&str; 9] = [
    "/",
    "/generate",
    "/generate_stream",
    "/tokenize",
    "/chat_tokenize",
    "/invocations",
    "/vertex",
    "/v1/completions",
    "/v1/chat/completions",
];

#[tokio::test]
async fn health_is_empty_while_the_server_serves() {
    let server = Server::start();
    for path in ["/health", "/ping", "/"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, ""), "{path}");
    }
}

#[tokio::test]
async fn probers_are_told_where_the_server_stands() {
    let server = Server::start();
    let standing = async || {
        let mut told = Vec::new();
        for path in ["/livez", "/readyz", "/startupz", "/health"] {
            told.push(server.get(path).await.status.as_u16());
        }
        told
    };
    assert_eq!(standing().await, [200, 200, 200, 200]);
    assert_eq!(server.get("/livez").await.json(), json!({ "ok": true, "phase": "serving" }));
    server.health.recover();
    assert_eq!(standing().await, [200, 503, 200, 503], "workers that are replaced are no reason to end the server");
    let hung = Hung { rank: 1, generation: 2, reason: "why".to_owned(), report: "what".to_owned() };
    server.health.hang(hung);
    assert_eq!(standing().await, [503, 503, 200, 503]);
    let answer = server.get("/livez").await;
    let expected = json!({ "rank": 1, "generation": 2, "reason": "why", "report": "what" });
    assert_eq!((answer.header("retry-after"), &answer.json()["hung"]), (Some("1"), &expected));
    server.health.serve(LIMITS);
    assert_eq!(standing().await, [200, 200, 200, 200]);
    server.health.drain();
    assert_eq!(standing().await, [200, 503, 200, 503]);
}

#[tokio::test]
async fn draining_by_request_is_off_by_default_and_needs_the_key() {
    let post = async |server: &Server, key: &str| {
        let request = Request::post("/admin/drain").header("authorization", key);
        server.send(request.body(Body::empty()).unwrap()).await.status
    };
    assert_eq!(post(&Server::start(), "").await, StatusCode::NOT_FOUND);
    let keyless = crate::config::Config::read(["millrace-router", "--model-id", "m", "--admin-routes"], |_| None);
    assert!(keyless.unwrap_err().to_string().contains("API_KEY"));
    let server = Server::with(&["--admin-routes"], &[("API_KEY", "right")], super::harness::speak);
    assert_eq!(post(&server, "Bearer wrong").await, StatusCode::UNAUTHORIZED);
    let asked = async |patience| tokio::time::timeout(patience, server.health.asked_to_drain()).await.is_ok();
    assert!(!asked(std::time::Duration::from_millis(1)).await);
    assert_eq!(post(&server, "Bearer right").await, StatusCode::ACCEPTED);
    assert!(asked(std::time::Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_client_says_by_a_header_how_long_it_will_wait() {
    let server = Server::start();
    let post = async |path: &str, timeout: &str| {
        let body =
            json!({ "inputs": "a", "prompt": "a", "messages": [{ "role": "user", "content": "a" }] }).to_string();
        let mut request = super::harness::post(path, body);
        request.headers_mut().insert("x-request-timeout", timeout.parse().unwrap());
        server.send(request).await
    };
    for path in ["/generate", "/v1/completions", "/v1/chat/completions"] {
        assert_eq!(post(path, "2.5").await.status, StatusCode::OK);
        let request = server.last_request();
        assert_eq!(request.deadline, Some(request.received + std::time::Duration::from_millis(2500)), "{path}");
        for wrong in ["0", "-1", "soon", "NaN", "1e300"] {
            let refused = post(path, wrong).await;
            assert!(refused.status.is_client_error() && refused.body.contains("x-request-timeout"), "{wrong}");
        }
    }
}

#[tokio::test]
async fn a_server_that_is_stopping_says_so_at_once_and_takes_nothing() {
    let server = Server::start();
    server.health.drain();
    for path in ["/health", "/ping", "/"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json(), json!({ "error": "unhealthy", "error_type": "healthcheck" }));
    }
    for path in POSTS {
        let answer = server.post(path, json!({ "inputs": "a" })).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(server.get("/info").await.status, StatusCode::OK);
    assert_eq!(server.num_requests(), 0);
}

#[tokio::test]
async fn while_workers_are_replaced_health_is_503_and_requests_are_taken() {
    let server = Server::start();
    server.health.recover();
    assert_eq!(server.get("/health").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.post("/generate", json!({ "inputs": "a" })).await.status, StatusCode::OK);
    server.health.serve(LIMITS);
    assert_eq!(server.get("/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn before_the_first_worker_requests_are_refused_with_a_time_to_retry() {
    let (engine, _commands) = crate::engine::api::EngineHandle::new();
    let arguments = ["millrace-router", "--model-id", "m", "--max-total-tokens", "77"];
    let (metrics, recorder) = crate::telemetry::Metrics::new();
    let context = crate::http::Context {
        config: crate::config::Config::read(arguments, |_| None).unwrap().into(),
        health: Health::default(),
        engine,
        detokenizer: super::harness::detokenizer().into(),
        text: crate::tokenizer::fixture::text_model().into(),
        metrics: metrics.clone(),
        places: tokio::sync::Semaphore::new(1).into(),
    };
    let health = context.health.clone();
    let router = metrics::with_local_recorder(&recorder, || crate::http::router(context));
    let server =
        Server { router, health, metrics, requests: std::sync::Arc::default(), cancelled: std::sync::Arc::default() };
    assert_eq!(server.get("/health").await.status, StatusCode::SERVICE_UNAVAILABLE);
    for path in POSTS {
        let answer = server.post(path, json!({ "inputs": "a" })).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (StatusCode::SERVICE_UNAVAILABLE, Some("1")),
            "{path}"
        );
        let body = answer.json();
        let text = if path.starts_with("/v1") { &body["error"]["message"] } else { &body["error"] };
        assert!(text.as_str().unwrap().contains("being loaded"), "{body}");
    }
    let info = server.get("/info").await.json();
    assert_eq!((&info["max_total_tokens"], &info["max_input_tokens"]), (&json!(77), &Value::Null));
}

#[tokio::test]
async fn info_has_the_originals_keys() {
    let server = Server::flags(&["--revision", "abc"]);
    assert_eq!(server.get("/info").await.json()["model"], Value::Null);
    server.health.describe(ServedModel {
        architecture: "A".to_owned(),
        implementation: "native".to_owned(),
        dtype: "float32".to_owned(),
        capabilities: vec!["seeds".to_owned()],
        missing: [("prefix_caching".to_owned(), "no pages".to_owned())].into(),
    });
    assert_eq!(
        server.get("/info").await.json(),
        json!({
            "model_id": "test/model", "model_sha": "abc", "model_pipeline_tag": null, "max_concurrent_requests": 128,
            "max_best_of": 2, "max_stop_sequences": 4, "max_input_tokens": 64, "max_total_tokens": 100,
            "validation_workers": 2, "max_client_batch_size": 4, "router": "text-generation-router",
            "version": env!("CARGO_PKG_VERSION"), "sha": null, "docker_label": null,
            "model": {
                "architecture": "A", "implementation": "native", "dtype": "float32", "capabilities": ["seeds"],
                "missing": {"prefix_caching": "no pages"},
            },
            "tool_call_parser": "json", "reasoning_parser": "none",
        })
    );
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let server = Server::start();
    server.post("/generate", json!({ "inputs": "a" })).await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(answer.body.contains("# TYPE tgi_request_count counter\ntgi_request_count 1\n"));
    assert!(answer.body.contains("tgi_request_failure{err=\"overloaded\"} 0"));
}
