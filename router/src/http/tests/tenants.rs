//! What a request's key and its own fields make of it.

use axum::http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::harness::{Answer, Script, Server, post, speak};

const SEARCH: &str = "sk-search-0123456789";
const BATCH: &str = "sk-batch-01234567890";

/// A server for two tenants: `search`, and `batch` with what `more` says.
fn server(flags: &[&str], more: &str) -> Server {
    playing(flags, more, speak)
}

fn playing(flags: &[&str], more: &str, script: Script) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let tenant = |name: &str, key: &str, more: &str| format!("[[tenant]]\nname = {name:?}\nkey = {key:?}\n{more}\n");
    std::fs::write(&file, tenant("search", SEARCH, "") + &tenant("batch", BATCH, more)).unwrap();
    let flags: Vec<&str> = flags.iter().copied().chain(["--api-key-file", file.to_str().unwrap()]).collect();
    Server::with(&flags, &[], script)
}

async fn ask(server: &Server, path: &str, key: &str, body: Value) -> Answer {
    let mut request = post(path, body.to_string());
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    server.send(request).await
}

fn of_tgi(field: &str, value: &Value) -> Value {
    json!({ "inputs": "a", "parameters": { "max_new_tokens": 2, field: value } })
}

fn of_openai(field: &str, value: &Value) -> Value {
    json!({ "prompt": "a", "messages": [{ "role": "user", "content": "a" }], "max_tokens": 2, field: value })
}

#[tokio::test]
async fn priority_is_bounded_and_reaches_the_engine() {
    let server = server(&[], "min_priority = -5");
    let routes = [
        ("/generate", of_tgi as fn(&str, &Value) -> Value, StatusCode::UNPROCESSABLE_ENTITY),
        ("/v1/completions", of_openai, StatusCode::BAD_REQUEST),
        ("/v1/chat/completions", of_openai, StatusCode::BAD_REQUEST),
    ];
    for (path, body, refused) in routes {
        for (key, priority, is_fine) in [
            (SEARCH, json!(-1000), true),
            (SEARCH, json!(1000), true),
            (SEARCH, json!(null), true),
            (SEARCH, json!(-1001), false),
            (SEARCH, json!(1_i64 << 40), false),
            (BATCH, json!(-5), true),
            (BATCH, json!(-6), false),
        ] {
            let answer = ask(&server, path, key, body("priority", &priority)).await;
            if is_fine {
                assert_eq!(answer.status, StatusCode::OK, "{path} {priority} {}", answer.body);
                assert_eq!(i64::from(server.last_request().priority), priority.as_i64().unwrap_or(0));
            } else {
                assert_eq!(answer.status, refused, "{path} {priority}");
                assert!(answer.body.contains("`priority` must be"), "{}", answer.body);
            }
        }
    }
}

#[tokio::test]
async fn without_keys_nobody_is_sooner_than_others() {
    let server = Server::start();
    for (priority, status) in [(1000, StatusCode::OK), (0, StatusCode::OK), (-1, StatusCode::UNPROCESSABLE_ENTITY)] {
        let answer = server.post("/generate", of_tgi("priority", &json!(priority))).await;
        assert_eq!(answer.status, status, "{priority} {}", answer.body);
    }
    let with_key = Server::with(&[], &[("API_KEY", SEARCH)], speak);
    assert_eq!(ask(&with_key, "/generate", SEARCH, of_tgi("priority", &json!(-1))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn prefixes_are_set_apart_by_tenant_and_by_salt() {
    let server = server(&[], "shared_cache = true");
    let mut seen = Vec::new();
    for (key, salt) in [(SEARCH, json!(null)), (BATCH, json!(null)), (SEARCH, json!("x"))] {
        for (path, body) in [("/generate", of_tgi as fn(&str, &Value) -> Value), ("/v1/completions", of_openai)] {
            let answer = ask(&server, path, key, body("cache_salt", &salt)).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            let request = server.last_request();
            seen.push((request.tenant.cache_group(), request.cache_salt.as_deref().map(str::to_owned)));
        }
    }
    let (own, shared) = (seen[0].0, seen[2].0);
    assert!(own != 0 && shared == 0);
    let salted = (own, Some("x".to_owned()));
    assert_eq!(seen, [(own, None), (own, None), (0, None), (0, None), salted.clone(), salted]);
    for salt in [json!(""), json!("x".repeat(257))] {
        let answer = ask(&server, "/generate", SEARCH, of_tgi("cache_salt", &salt)).await;
        assert!(answer.status == StatusCode::UNPROCESSABLE_ENTITY && answer.body.contains("`cache_salt` must have"));
    }
}

/// Sends so many requests that never end, and answers how each was refused.
async fn flood(server: &Server, key: &str, count: usize) -> Vec<String> {
    let mut refused = Vec::new();
    for _ in 0..count {
        let body = json!({ "inputs": "a" }).to_string();
        let mut request = post("/generate_stream", body);
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        let response = server.router.clone().oneshot(request).await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            assert!(response.headers().contains_key("retry-after"));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            refused.push(String::from_utf8(body.into()).unwrap());
        } else {
            assert_eq!(response.status(), StatusCode::OK);
            // Its client stays, for as long as the test does.
            std::mem::forget(response);
        }
    }
    refused
}

#[tokio::test]
async fn a_flood_leaves_places_to_others() {
    let server = playing(&["--max-concurrent-requests", "16"], "weight = 3", |_| Vec::new());
    let refused = flood(&server, SEARCH, 20).await;
    assert_eq!(refused.len(), 12, "it has as many as are left");
    assert!(refused.iter().all(|body| body.contains("are for others") && body.contains("overloaded")), "{refused:?}");
    assert_eq!(flood(&server, BATCH, 20).await.len(), 14, "three times what is left");
    assert!(server.metric("tgi_request_failure{err=\"overloaded\"}") > Some(0.0));
}

#[tokio::test]
async fn a_tenant_has_limits_of_its_own() {
    let server = playing(&[], "max_concurrent_requests = 3", |_| Vec::new());
    let refused = flood(&server, BATCH, 5).await;
    assert_eq!(refused.len(), 2);
    assert!(
        refused[0].contains("all 3 places of this API key's tenant") && refused[0].contains("max_concurrent_requests")
    );
    assert!(flood(&server, SEARCH, 5).await.is_empty());
    let several = json!({ "prompt": ["a", "b", "c", "d"], "max_tokens": 2 });
    let answer = ask(&server, "/v1/completions", BATCH, several).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{}", answer.body);
    // Places beside the first, which there was.
    let server = playing(&[], "max_concurrent_requests = 3", |_| Vec::new());
    assert!(flood(&server, BATCH, 1).await.is_empty());
    let answer = ask(&server, "/v1/completions", BATCH, json!({ "prompt": ["a", "b", "c"], "max_tokens": 2 })).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.body.contains("all 3 places of this API key's tenant"), "{}", answer.body);
    let few = playing(&[], "max_queued_tokens = 1", |_| Vec::new());
    assert_eq!(flood(&few, BATCH, 1).await.len(), 0);
}
