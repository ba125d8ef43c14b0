//! Who gets in with a key set: every route of the table, under every spelling of its path that a proxy might let through.

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use serde_json::{Value, json};

use super::harness::{Answer, Server, post, speak};
use crate::http::openapi::DOCUMENT;

/// Answered without a key: what says whether and how the server runs, and nothing that computes. All are asked with GET.
const OPEN: [&str; 18] = [
    "/",
    "/aip/health",
    "/api-doc/openapi.json",
    "/docs",
    "/health",
    "/info",
    "/livez",
    "/metrics",
    "/ping",
    "/readyz",
    "/startupz",
    "/v1/models",
    "/v1/models/{name}",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/ready",
];

/// With every route that flags and environment can switch on.
fn server() -> Server {
    let environment =
        [("API_KEY", "secret"), ("AIP_PREDICT_ROUTE", "/aip/predict"), ("AIP_HEALTH_ROUTE", "/aip/health")];
    Server::with(&["--kserve", "--admin-routes"], &environment, speak)
}

async fn ask(server: &Server, method: &str, path: &str, keys: &[&str]) -> Answer {
    let mut request = post(path, json!({ "inputs": "Hi" }).to_string());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    for key in keys {
        request.headers_mut().append(header::AUTHORIZATION, HeaderValue::from_str(key).unwrap());
    }
    server.send(request).await
}

/// Paths with their methods, from the document that no route can be left out of.
async fn routes(server: &Server) -> Vec<(String, String)> {
    let document = server.get(DOCUMENT).await.json();
    let paths = document["paths"].as_object().unwrap();
    let methods = |operations: &Value| operations.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let all = paths.iter().flat_map(|(path, operations)| {
        methods(operations).into_iter().map(|method| (method.to_uppercase(), path.clone()))
    });
    all.collect()
}

#[tokio::test]
async fn every_route_that_is_not_meant_to_be_open_asks_for_the_key() {
    let server = server();
    let routes = routes(&server).await;
    assert!(routes.len() > 25, "{routes:?}");
    for (method, path) in &routes {
        let is_listed = OPEN.contains(&path.as_str());
        let path = path.replace(['{', '}'], "");
        for method in [method.as_str(), "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "QUERY"] {
            let answer = ask(&server, method, &path, &[]).await;
            let is_refused = answer.status == StatusCode::UNAUTHORIZED;
            // A method that a route does not take reaches nothing; a preflight is answered before any route.
            let is_harmless =
                matches!(answer.status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_FOUND) || method == "OPTIONS";
            let is_open = is_listed && ["GET", "HEAD"].contains(&method);
            assert!(is_open || is_refused || is_harmless, "{method} {path}: {}", answer.status);
            assert!(!(is_open && is_refused), "{method} {path} is meant to be open");
        }
    }
    assert_eq!(server.num_requests(), 0, "the engine has seen nothing");
}

#[tokio::test]
async fn no_other_spelling_of_a_path_leads_around_the_key() {
    let server = server();
    let guarded: Vec<String> =
        routes(&server).await.into_iter().filter(|(method, _)| method == "POST").map(|(_, path)| path).collect();
    assert!(guarded.len() > 8, "{guarded:?}");
    for path in guarded {
        let rest = path.trim_start_matches('/').replace(['{', '}'], "");
        let encoded = rest.bytes().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
        for spelling in [
            format!("/{rest}/"),
            format!("//{rest}"),
            format!("/./{rest}"),
            format!("/health/../{rest}"),
            format!("/health/..;/{rest}"),
            format!("/%2f{rest}"),
            format!("/%2e/{rest}"),
            format!("/{encoded}"),
            format!("/{}", rest.to_uppercase()),
            format!("/{rest}?key=secret"),
            format!("/{rest}%00"),
            format!("/{rest};/health"),
            format!("/{rest}%3f/health"),
            format!("/health%0d%0a/{rest}"),
            format!("http://localhost/{rest}"),
            format!("http://localhost:3000//{rest}"),
        ] {
            let Ok(uri) = spelling.parse::<Uri>() else { continue };
            for method in ["POST", "GET"] {
                let request = Request::builder().method(method).uri(uri.clone());
                let request = request.header(header::CONTENT_TYPE, "application/json");
                let answer = server.send(request.body(Body::from(r#"{"inputs":"Hi"}"#)).unwrap()).await;
                let is_open = method == "GET" && answer.status == StatusCode::OK;
                assert!(is_open || answer.status.is_client_error(), "{method} {spelling}: {}", answer.status);
            }
        }
    }
    assert_eq!(server.num_requests(), 0, "the engine has seen nothing");
}

#[tokio::test]
async fn a_key_among_several_counts_for_nothing() {
    let server = server();
    let right = "Bearer secret";
    assert_eq!(ask(&server, "POST", "/generate", &[right]).await.status, StatusCode::OK);
    for keys in [&[right, "Bearer wrong"][..], &["Bearer wrong", right], &[right, right], &["Basic c2VjcmV0", right]] {
        assert_eq!(ask(&server, "POST", "/generate", keys).await.status, StatusCode::UNAUTHORIZED, "{keys:?}");
    }
    for other in ["x-api-key", "proxy-authorization", "x-forwarded-authorization", "cookie"] {
        let mut request = post("/generate", json!({ "inputs": "Hi" }).to_string());
        request.headers_mut().insert(other, HeaderValue::from_static("Bearer secret"));
        assert_eq!(server.send(request).await.status, StatusCode::UNAUTHORIZED, "{other}");
    }
    for header in ["x-original-url", "x-rewrite-url", "x-http-method-override", "x-forwarded-prefix"] {
        let mut request = post("/generate", json!({ "inputs": "Hi" }).to_string());
        request.headers_mut().insert(header, HeaderValue::from_static("/health"));
        assert_eq!(server.send(request).await.status, StatusCode::UNAUTHORIZED, "{header}");
    }
}

#[tokio::test]
async fn clients_add_no_series_to_the_metrics() {
    let server = Server::start();
    let series = |server: &Server| server.metrics.render().lines().filter(|line| !line.starts_with('#')).count();
    let each = |number: usize| {
        [
            (format!("/nope{number}"), json!({})),
            (format!("/v1/models/model{number}"), json!({})),
            (
                "/v1/chat/completions".to_owned(),
                json!({ "model": format!("m{number}"), "user": format!("u{number}"), "max_tokens": 1,
                "messages": [{ "role": format!("r{number}"), "content": "a" }] }),
            ),
            ("/v1/completions".to_owned(), json!({ "model": format!("m{number}"), "prompt": "a", "max_tokens": 1 })),
            (
                "/generate".to_owned(),
                json!({ "inputs": "a", "parameters": { format!("p{number}"): 1, "max_new_tokens": 1 } }),
            ),
        ]
    };
    for (path, body) in each(0) {
        server.post(&path, body).await;
    }
    let before = series(&server);
    for number in 1..20 {
        for (path, body) in each(number) {
            server.post(&path, body).await;
        }
    }
    assert_eq!(series(&server), before);
    assert!(before > 10);
}
