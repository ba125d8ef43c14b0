//! Bodies, media types, methods, keys, origins and request ids.

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use serde_json::json;

use super::harness::{Server, post, speak};
use crate::tokenizer::fixture;

fn ask() -> String {
    json!({ "inputs": "Hi", "parameters": { "max_new_tokens": 1 } }).to_string()
}

#[tokio::test]
async fn bodies_that_are_no_json_are_400_with_a_json_answer() {
    let server = Server::start();
    let invalid_utf8 = [br#"{"inputs":"caf"#.as_slice(), b"\xe9", br#""}"#].concat();
    let bodies: [&[u8]; 8] = [
        b"",
        b"hello",
        br#"{"inputs":"Hello"#,
        br#"{"inputs":"\ud800"}"#,
        b"{\"inputs\":\"a\nb\"}",
        br#"{"inputs":"a","parameters":{"temperature":1e400}}"#,
        br#"{"inputs":"a"} trailing"#,
        &invalid_utf8,
    ];
    for path in ["/generate", "/generate_stream", "/", "/tokenize"] {
        for body in bodies {
            let answer = server.send(post(path, body.to_vec())).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {}", String::from_utf8_lossy(body));
            assert_eq!(answer.json()["error_type"], "invalid_json");
        }
    }
    let answer = server.send(post("/v1/chat/completions", "{")).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_json")));
}

#[tokio::test]
async fn json_that_is_no_request_is_422() {
    let server = Server::start();
    let bodies =
        ["null", "5", "\"Hello\"", "true", "{}", "[]", r#"["a"]"#, r#"["a", {}]"#, r#"{"inputs":"a","inputs":"b"}"#];
    for body in bodies {
        let answer = server.send(post("/generate", body)).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(answer.json()["error_type"], "validation");
    }
    let duplicate = r#"{"inputs":"a","parameters":{"max_new_tokens":2,"max_new_tokens":3}}"#;
    assert_eq!(server.send(post("/generate", duplicate)).await.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn unknown_keys_and_null_characters_are_fine() {
    let server = Server::start();
    for body in [
        r#"{"inputs":"a","options":{"use_cache":false},"parameters":{"foo":[1],"max_new_tokens":1}}"#,
        r#"{"inputs":"a\u0000b","parameters":{"max_new_tokens":1}}"#,
    ] {
        assert_eq!(server.send(post("/generate", body)).await.status, StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn the_media_type_must_be_json() {
    let server = Server::start();
    let with = |media_type: Option<&'static str>| {
        let mut request = post("/generate", ask());
        let headers = request.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        headers.extend(media_type.map(|value| (header::CONTENT_TYPE, HeaderValue::from_static(value))));
        server.send(request)
    };
    for other in [None, Some("text/plain"), Some("json"), Some("application/x-www-form-urlencoded")] {
        let answer = with(other).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{other:?}");
        assert_eq!(answer.json()["error_type"], "unsupported_media_type");
    }
    assert_eq!(with(Some("APPLICATION/JSON; charset=utf-8")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_may_be_as_long_as_the_limit_and_no_longer() {
    let limit = ask().len();
    let server = Server::flags(&["--payload-limit", &limit.to_string()]);
    assert_eq!(server.send(post("/generate", ask())).await.status, StatusCode::OK);
    for path in ["/generate", "/generate_stream", "/", "/tokenize"] {
        let answer = server.send(post(path, ask() + " ")).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        assert_eq!(answer.json()["error_type"], "payload_too_large");
    }
    let answer = server.send(post("/v1/chat/completions", ask() + " ")).await;
    assert_eq!(answer.json()["error"]["code"], "payload_too_large");
}

#[tokio::test]
async fn other_methods_are_405_and_other_paths_404_with_empty_bodies() {
    let server = Server::start();
    let send = |method: &str, path: &str| {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        server.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap())
    };
    for (method, path, allow) in [
        ("GET", "/generate", "POST"),
        ("HEAD", "/generate", "POST"),
        ("PUT", "/generate", "POST"),
        ("BREW", "/generate", "POST"),
        ("POST", "/health", "GET,HEAD"),
        ("DELETE", "/", "POST,GET,HEAD"),
    ] {
        let answer = send(method, path).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::METHOD_NOT_ALLOWED, ""), "{method} {path}");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    for path in ["/nope", "/generate/", "/health/"] {
        let answer = send("POST", path).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NOT_FOUND, ""), "{path}");
    }
    let answer = send("GET", "/v1/nope").await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_url")));
    let answer = send("GET", "/v1/chat/completions").await;
    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some("POST")));
    assert_eq!(answer.json()["error"]["code"], "method_not_allowed");
    for path in ["/info", "/"] {
        let answer = send("HEAD", path).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, ""), "{path}");
    }
}

#[tokio::test]
async fn the_key_is_asked_on_every_route_that_does_work() {
    let server = Server::with(&[], &[("API_KEY", "secret")], speak);
    let with = |path: &str, authorization: Option<&str>| {
        let mut request = post(path, ask());
        let value = authorization.map(|value| HeaderValue::from_bytes(value.as_bytes()).unwrap());
        request.headers_mut().extend(value.map(|value| (header::AUTHORIZATION, value)));
        server.send(request)
    };
    let wrong = [
        None,
        Some("secret"),
        Some("Basic c2VjcmV0"),
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer Secret"),
        Some("Bearer  secret"),
        Some("Bearer secret "),
        Some("Bearer secrets"),
        Some("Bearer é"),
    ];
    for path in ["/", "/generate", "/generate_stream", "/tokenize", "/v1/completions", "/v1/chat/completions"] {
        for authorization in wrong {
            let answer = with(path, authorization).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} {authorization:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert_eq!(answer.body.is_empty(), !path.starts_with("/v1"));
        }
        for right in ["Bearer secret", "bearer secret"] {
            assert_ne!(with(path, Some(right)).await.status, StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    for path in ["/", "/health", "/ping", "/info", "/metrics", "/v1/models"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn the_key_is_checked_before_the_body_is_read() {
    let server = Server::with(&["--payload-limit", "10"], &[("API_KEY", "secret")], speak);
    assert_eq!(server.send(post("/generate", "x".repeat(100))).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn any_origin_may_ask_unless_the_operator_names_some() {
    let preflight = |origin: &str| {
        Request::options("/generate")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty())
            .unwrap()
    };
    let server = Server::start();
    let answer = server.send(preflight("http://a.example")).await;
    assert_eq!(answer.status, StatusCode::OK);
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET,POST"),
        ("access-control-allow-headers", "content-type,authorization"),
        ("vary", "origin, access-control-request-method, access-control-request-headers"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(server.get("/nope").await.header("access-control-allow-origin"), Some("*"));

    let server = Server::with(&["--cors-allow-origin", "http://a.example"], &[("API_KEY", "k")], speak);
    let allowed = server.send(preflight("http://a.example")).await;
    assert_eq!(allowed.header("access-control-allow-origin"), Some("http://a.example"));
    assert_eq!(server.send(preflight("http://b.example")).await.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn a_request_id_is_taken_or_made_and_always_answered() {
    let server = Server::start();
    let with = |id: Option<&str>| {
        let mut request = post("/generate", ask());
        request
            .headers_mut()
            .extend(id.map(|id| (header::HeaderName::from_static("x-request-id"), id.parse().unwrap())));
        server.send(request)
    };
    assert_eq!(with(Some("abc")).await.header("x-request-id"), Some("abc"));
    assert_eq!(&*server.last_request().request_id, "abc");
    let made = with(None).await.header("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 36);
    assert_eq!(&*server.last_request().request_id, made);
    assert_ne!(with(None).await.header("x-request-id"), Some(made.as_str()));
    let long = "x".repeat(129);
    assert_ne!(with(Some(&long)).await.header("x-request-id"), Some(long.as_str()));
    assert!(server.get("/nope").await.header("x-request-id").is_some());
}

#[tokio::test]
async fn a_panic_is_a_500_and_leaves_the_server_working() {
    let server = Server::start();
    let router = crate::http::netted(
        axum::Router::new()
            .route("/panic", axum::routing::get(async || -> &'static str { panic!("caused by the test") }))
            .route("/v1/panic", axum::routing::get(async || -> &'static str { panic!("caused by {}", "the test") }))
            .route("/fine", axum::routing::get(async || "fine")),
    );
    let server = Server { router, ..server };
    let answer = server.get("/panic").await;
    assert_eq!((answer.status, &answer.json()["error_type"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("internal")));
    assert!(answer.header("x-request-id").is_some());
    assert!(!answer.body.contains("caused by the test"));
    let answer = server.get("/v1/panic").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((&answer.json()["error"]["code"], &answer.json()["error"]["param"]), (&json!("internal"), &json!(null)));
    assert_eq!(server.get("/fine").await.body, "fine");
}

#[tokio::test]
async fn special_tokens_in_prompts_written_by_hand_are_parsed() {
    let server = Server::start();
    server.send(post("/generate", json!({ "inputs": "<s>a</s>" }).to_string())).await;
    assert_eq!(server.last_request().prompt, [0, 0, fixture::byte(b'a'), 1]);
}

/// A body of which nothing more comes after these pieces, sent one second apart.
fn stalling(pieces: usize) -> Body {
    let pieces = futures::stream::unfold(0, move |sent| async move {
        if sent == pieces {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        Some((Ok::<_, std::convert::Infallible>("[".to_owned()), sent + 1))
    });
    Body::from_stream(pieces)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_408_and_gives_its_place_back() {
    let server = Server::flags(&["--max-concurrent-requests", "1"]);
    for pieces in [0, 1, usize::MAX] {
        for path in ["/generate", "/generate_stream", "/", "/tokenize"] {
            let answer = server.send(post(path, stalling(pieces))).await;
            assert_eq!((answer.status, &answer.json()["error_type"]), (StatusCode::REQUEST_TIMEOUT, &json!("timeout")));
        }
        let answer = server.send(post("/v1/chat/completions", stalling(pieces))).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (StatusCode::REQUEST_TIMEOUT, &json!("timeout")));
    }
}

#[tokio::test]
async fn a_full_server_refuses_before_it_has_read_anything_and_a_body_under_way_holds_a_place() {
    let server = Server::flags(&["--max-concurrent-requests", "1"]);
    let mut slow = Box::pin(server.send(post("/tokenize", stalling(0))));
    assert!(futures::poll!(slow.as_mut()).is_pending());
    for path in ["/generate", "/generate_stream", "/", "/tokenize", "/v1/completions", "/v1/chat/completions"] {
        let answer = server.send(post(path, stalling(0))).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    server.health.drain();
    assert_eq!(slow.await.status, StatusCode::SERVICE_UNAVAILABLE);
}
