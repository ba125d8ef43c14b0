//! Before there are workers, or a model.

use super::*;
use crate::health::Progress;
use crate::launcher::Place;

#[tokio::test]
async fn the_port_is_open_before_there_are_workers() {
    let router = start("").await;
    assert!(get(router.address, "/health").await.starts_with("HTTP/1.1 503"));
    let refused = rest(router.open_stream("abc", 3).await).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.to_lowercase().contains("\r\nretry-after:"), "{refused}");
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    check_stream(&rest(router.open_stream("abc", 3).await).await, served.worker(), "abc", 3);
}

#[tokio::test]
async fn there_is_an_answer_to_everything_before_there_is_a_model() {
    let router = start("--await-model").await;
    let words = "downloading 3 of 12 files";
    router.news.send(News::Progress(Progress { words: words.to_owned(), done: 30, total: 120 })).unwrap();
    while !get(router.address, "/startupz").await.contains(words) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(get(router.address, "/livez").await.starts_with("HTTP/1.1 200"));
    for path in ["/startupz", "/readyz"] {
        let answer = get(router.address, path).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\r\nretry-after: 1"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let standing: Value = body.parse().unwrap();
        assert_eq!(standing["phase"], "starting");
        assert_eq!(standing["progress"], json!({"done_bytes": 30, "total_bytes": 120}));
    }
    for path in ["/health", "/ping", "/"] {
        let answer = get(router.address, path).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("unhealthy"), "{path}: {answer}");
    }
    for path in
        ["/generate", "/generate_stream", "/tokenize", "/v1/chat/completions", "/v1/completions", "/invocations"]
    {
        let answer = rest(send(router.address, "POST", path, r#"{"inputs":"a"}"#).await).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\r\nretry-after: 1"), "{path}: {answer}");
        assert!(answer.contains(words), "{path}: {answer}");
    }
    assert!(get(router.address, "/metrics").await.starts_with("HTTP/1.1 200"));
    assert!(get(router.address, "/info").await.starts_with("HTTP/1.1 503"));

    // A connection from before the model was there, and a request of its own after.
    let mut kept = TcpStream::connect(router.address).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    kept.read_exact(&mut first).await.unwrap();
    let place = Place { path: router.folder.path().to_owned(), revision: Some("abc".to_owned()) };
    router.news.send(News::Model(place)).unwrap();
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    kept.write_all(b"GET /info HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(rest(kept).await.contains(r#""model_sha":"abc""#));
    assert!(get(router.address, "/startupz").await.starts_with("HTTP/1.1 200"));
    check_stream(&rest(router.open_stream("abc", 3).await).await, served.worker(), "abc", 3);
}

#[tokio::test]
async fn the_key_is_asked_for_before_there_is_a_model() {
    let router = start_with("--await-model --kserve", &[("API_KEY", "secret")]).await;
    let status = async |request: String| {
        let request = request + "host: t\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
        raw(router.address, request.as_bytes()).await.split(' ').nth(1).map(str::to_owned).unwrap_or_default()
    };
    for path in ["/generate", "/", "/v1/chat/completions", "/tokenize", "/v2/models/m/versions/1/infer", "/x", "/info"]
    {
        let line = format!("POST {path} HTTP/1.1\r\n");
        assert_eq!(status(line.clone()).await, "401", "{path}");
        assert_eq!(status(line.clone() + "authorization: Bearer wrong\r\n").await, "401", "{path}");
        assert_eq!(status(line + "authorization: Bearer secret\r\n").await, "503", "{path}");
    }
    for path in ["/info", "/v1/models", "/v1/models/m", "/docs", "/docs/x", "/v2", "/v2/health/ready", "/health", "/"] {
        assert_eq!(status(format!("GET {path} HTTP/1.1\r\n")).await, "503", "{path}");
    }
    assert_eq!(status("GET /livez HTTP/1.1\r\n".to_owned()).await, "200");
    assert_eq!(status("GET /metrics HTTP/1.1\r\n".to_owned()).await, "200");
}

#[tokio::test]
async fn limits_that_cannot_hold_end_the_server() {
    let router = start("--max-total-tokens 5000").await;
    let _served = router.serve_worker(options());
    let error = router.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("`max_total_tokens` is 5000"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let arguments = ["millrace-router", "--model-id", "m", "--hostname", "127.0.0.1", "--port", &port];
    let error = listen(&Config::read(arguments, |_| None).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains(&port), "{error}");
}
