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
    let hung =
        Hung { rank: 1, generation: 2, reason: "why".to_owned(), report: "what".to_owned(), every_step_fails: false };
    server.health.hang(hung.clone());
    assert_eq!(standing().await, [503, 503, 200, 503]);
    let answer = server.get("/livez").await;
    let expected = json!({ "rank": 1, "generation": 2, "reason": "why", "report": "what" });
    assert_eq!((answer.header("retry-after"), &answer.json()["hung"]), (Some("1"), &expected));
    server.health.hang(Hung { every_step_fails: true, ..hung });
    assert_eq!(server.get("/livez").await.json()["hung"]["every_step_fails"], json!(true));
    server.health.serve(LIMITS);
    assert_eq!(standing().await, [200, 200, 200, 200]);
    server.health.drain();
    assert_eq!(standing().await, [200, 503, 200, 503]);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_stands_still_is_neither_alive_nor_ready() {
    let server = Server::start();
    for (silence, status) in [(0, 200), (3, 200), (2, 503), (1, 503)] {
        if silence == 0 {
            server.health.beat();
        }
        tokio::time::advance(std::time::Duration::from_secs(silence)).await;
        for path in ["/livez", "/readyz", "/health"] {
            assert_eq!(server.get(path).await.status.as_u16(), status, "{path} {silence}");
        }
    }
    assert_eq!(server.get("/livez").await.json()["standstill_seconds"], json!(6.0));
    server.health.beat();
    assert_eq!(server.get("/livez").await.json(), json!({ "ok": true, "phase": "serving" }));
}

#[tokio::test]
async fn a_server_that_leaves_gives_connections_up() {
    let server = Server::start();
    let told = async |path: &str| server.get(path).await.header("connection").map(str::to_owned);
    assert_eq!(told("/info").await, None);
    server.health.recover();
    assert_eq!(told("/info").await, None, "workers that are replaced are no reason to go elsewhere");
    server.health.lame_duck();
    assert_eq!(told("/info").await.as_deref(), Some("close"));
    server.health.drain();
    assert_eq!(told("/health").await.as_deref(), Some("close"));
    let refused = server.post("/generate", json!({ "inputs": "a" })).await;
    assert_eq!((refused.status, refused.header("connection")), (StatusCode::SERVICE_UNAVAILABLE, Some("close")));
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
async fn each_tenant_has_its_key_and_only_admins_command_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let (chief, guest) = ("sk-chief-0123456789", "sk-guest-0123456789");
    let tenant = |name: &str, key: &str, more: &str| format!("[[tenant]]\nname = {name:?}\nkey = {key:?}\n{more}\n");
    std::fs::write(&file, tenant("chief", chief, "admin = true") + &tenant("guest", guest, "")).unwrap();
    let flags = ["--admin-routes", "--api-key-file", file.to_str().unwrap()];
    let server = Server::with(&flags, &[], super::harness::speak);
    let post = async |path: &str, key: &str| {
        let mut request = super::harness::post(path, json!({ "inputs": "a" }).to_string());
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        server.send(request).await.status
    };
    for (key, status) in
        [(chief, StatusCode::OK), (guest, StatusCode::OK), ("sk-other-0123456789", StatusCode::UNAUTHORIZED)]
    {
        assert_eq!(post("/generate", key).await, status, "{key}");
    }
    assert_eq!(&*server.last_request().tenant.name, "guest");
    for (key, status) in [("", StatusCode::UNAUTHORIZED), (guest, StatusCode::FORBIDDEN), (chief, StatusCode::ACCEPTED)]
    {
        assert_eq!(post("/admin/drain", key).await, status, "{key}");
    }
    assert_eq!(server.metric("millrace_tenant_requests_total{tenant=\"guest\"}"), Some(1.0));
    assert!(!server.metrics.render().contains("sk-"));
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
async fn the_document_names_that_header_where_it_is_obeyed() {
    let server = Server::flags(&["--kserve"]);
    let document = server.get("/api-doc/openapi.json").await.json();
    let mut obeying = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(operation) = item.get("post") else { continue };
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let is_named = parameters.filter(|parameter| parameter["name"] == "x-request-timeout").count() == 1;
        let mut request = super::harness::post(&path.replace(['{', '}'], ""), "{}");
        request.headers_mut().insert("x-request-timeout", "soon".parse().unwrap());
        let answer = server.send(request).await;
        assert_eq!(answer.body.contains("x-request-timeout"), is_named, "{path}: {}", answer.body);
        obeying += usize::from(is_named);
    }
    assert_eq!(obeying, 8);
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
    let config = crate::config::Config::read(arguments, |_| None).unwrap();
    let backlog = crate::overload::Backlog::new(&config);
    let context = crate::http::Context {
        config: config.into(),
        backlog: backlog.clone(),
        health: Health::default(),
        engine,
        detokenizer: super::harness::detokenizer().into(),
        text: crate::tokenizer::fixture::text_model().into(),
        metrics: metrics.clone(),
        unwritten: tokio::sync::Semaphore::new(1).into(),
        places: tokio::sync::Semaphore::new(1).into(),
        tenants: crate::tenants::Tenants::default(),
    };
    let health = context.health.clone();
    let router = metrics::with_local_recorder(&recorder, || crate::http::router(context.clone()));
    let (requests, cancelled) = (std::sync::Arc::default(), std::sync::Arc::default());
    let server = Server { router, context, health, metrics, backlog, requests, cancelled };
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
        assert!(text.as_str().unwrap().contains("not ready yet"), "{body}");
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
