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
async fn a_body_that_does_not_come_is_408() {
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

const ROUTES: [&str; 6] =
    ["/generate", "/generate_stream", "/", "/tokenize", "/v1/completions", "/v1/chat/completions"];

#[tokio::test]
async fn a_full_server_refuses_before_it_has_read_anything() {
    let server = Server::with(&["--max-concurrent-requests", "1"], &[], |_| Vec::new());
    let mut running = Box::pin(server.send(post("/generate", ask())));
    while server.num_requests() == 0 {
        assert!(futures::poll!(running.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    for path in ROUTES {
        let answer = server.send(post(path, stalling(0))).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
}

#[tokio::test]
async fn bodies_that_drip_hold_no_place_and_end_when_the_server_stops() {
    for flags in [&["--max-concurrent-requests", "2"][..], &["--max-concurrent-requests", "2", "--refuse-in-stream"]] {
        let server = Server::flags(flags);
        let mut slow: Vec<_> = ROUTES.map(|path| Box::pin(server.send(post(path, stalling(usize::MAX))))).into();
        for one in &mut slow {
            assert!(futures::poll!(one.as_mut()).is_pending());
        }
        for path in ["/generate", "/generate_stream", "/", "/tokenize"] {
            assert_eq!(server.send(post(path, ask())).await.status, StatusCode::OK, "{path}");
        }
        server.health.drain();
        for one in slow {
            assert_eq!(one.await.status, StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}

#[tokio::test]
async fn a_body_that_ends_as_the_server_stops_is_refused_whether_places_are_left_or_not() {
    for num_taken in [0, 2] {
        for path in ["/generate", "/tokenize"] {
            let server = Server::flags(&["--max-concurrent-requests", "2"]);
            let (sender, pieces) = futures::channel::mpsc::unbounded();
            let mut answer = Box::pin(server.send(post(path, Body::from_stream(pieces))));
            assert!(futures::poll!(answer.as_mut()).is_pending());
            server.health.drain();
            let _taken = server.context.places.try_acquire_many(num_taken).unwrap();
            sender.unbounded_send(Ok::<_, std::convert::Infallible>(ask())).unwrap();
            drop(sender);
            assert_eq!(answer.await.status, StatusCode::SERVICE_UNAVAILABLE, "{path} {num_taken}");
        }
    }
}

/// A body of which so many bytes come at once, and no more.
fn cut_short(bytes: usize) -> Body {
    let piece = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(" ".repeat(bytes)) });
    Body::from_stream(futures::StreamExt::chain(piece, futures::stream::pending()))
}

#[tokio::test]
async fn a_body_that_does_not_say_how_long_it_is_may_be_no_longer() {
    let server = Server::flags(&["--payload-limit", "1000"]);
    for path in ["/generate", "/tokenize"] {
        let answer = server.send(post(path, cut_short(1001))).await;
        assert_eq!(
            (answer.status, &answer.json()["error_type"]),
            (StatusCode::PAYLOAD_TOO_LARGE, &json!("payload_too_large"))
        );
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400() {
    let server = Server::start();
    for path in ["/generate", "/tokenize"] {
        let pieces = [Ok(r#"{"inputs":"#), Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))];
        let answer = server.send(post(path, Body::from_stream(futures::stream::iter(pieces)))).await;
        assert_eq!((answer.status, &answer.json()["error_type"]), (StatusCode::BAD_REQUEST, &json!("unreadable_body")));
    }
}

#[tokio::test]
async fn a_body_that_had_to_make_room_is_408() {
    let server = Server::start();
    for path in ["/generate", "/tokenize"] {
        let pieces = [Ok(r#"{"inputs":"#), Err(crate::connections::CutShort)];
        let answer = server.send(post(path, Body::from_stream(futures::stream::iter(pieces)))).await;
        assert_eq!((answer.status, &answer.json()["error_type"]), (StatusCode::REQUEST_TIMEOUT, &json!("timeout")));
        assert!(answer.body.contains("others needed its connection"), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_body_of_too_many_values_is_413() {
    let server = Server::flags(&["--payload-limit", "100000"]);
    let body = format!(r#"{{"inputs":"a","x":[{}0]}}"#, "[1],".repeat(24_000));
    let answer = server.send(post("/generate", body)).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.body.contains("so many values"), "{}", answer.body);
}

#[tokio::test]
async fn bodies_under_way_are_bounded_and_the_slowest_make_room() {
    let server = Server::flags(&["--max-concurrent-requests", "2"]);
    let mut slow = [(); 2].map(|()| Box::pin(server.send(post("/generate", cut_short(2_000_000)))));
    for one in &mut slow {
        assert!(futures::poll!(one.as_mut()).is_pending());
    }
    let too_much = || server.send(post("/v1/completions", cut_short(500_000)));
    let answer = too_much().await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, Some("5")));
    assert!(answer.body.contains("send all of it at once"), "{}", answer.body);
    assert_eq!(server.send(post("/generate", ask())).await.status, StatusCode::OK);
    // From here on nothing waits for another thread, which a clock that stands would not see.
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(5)).await;
    let mut newcomer = Box::pin(too_much());
    assert!(futures::poll!(newcomer.as_mut()).is_pending());
    let mut slow = slow.into_iter();
    let answer = slow.next().unwrap().await;
    assert_eq!((answer.status, &answer.json()["error_type"]), (StatusCode::TOO_MANY_REQUESTS, &json!("overloaded")));
    for mut one in slow {
        assert!(futures::poll!(one.as_mut()).is_pending());
    }
    assert_eq!(server.metric(r#"millrace_refusals_total{reason="bodies"}"#), Some(2.0));
}
