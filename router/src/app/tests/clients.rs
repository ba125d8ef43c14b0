//! Clients that send or take too little, too much or too late, or what they may not.

use super::*;

#[tokio::test]
async fn answers_that_come_before_the_body_was_read_leave_a_connection_that_works() {
    let router = start_with("--await-model", &[("API_KEY", "secret")]).await;
    let ready = start("--payload-limit 1000").await;
    let _served = ready.serve_worker(options());
    ready.wait_until_healthy().await;
    let key = "authorization: Bearer secret\r\n";
    for (router, key, length, status) in
        [(&router, "", 1_000_000, "401"), (&router, key, 1_000_000, "503"), (&ready, "", 1_002, "413")]
    {
        let mut connection = TcpStream::connect(router.address).await.unwrap();
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{key}\r\n"
        );
        connection.write_all((head + &"a".repeat(length)).as_bytes()).await.unwrap();
        connection.write_all(b"GET /livez HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.unwrap();
        let answers = rest(connection).await;
        assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{answers}");
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 1, "{answers}");
    }
}

#[tokio::test]
async fn connections_that_bring_no_request_in_time_are_closed() {
    let router = start("--head-timeout-seconds 1").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    // A stream that takes longer is not meant.
    let stream = router.open_stream("abc", 1500).await;
    for sent in ["", "GET /health HTTP/1.1\r\nhost:", "PRI * HT", "GET /health HTTP/1.1\r\nhost: test\r\n\r\n"] {
        let mut slow = TcpStream::connect(router.address).await.unwrap();
        slow.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // What was not read may make the end a reset.
        let closed = tokio::time::timeout(Duration::from_secs(20), slow.read_to_string(&mut answer)).await;
        assert!(closed.is_ok(), "{sent:?} holds its connection");
        assert_eq!(answer.starts_with("HTTP/1.1 200"), sent.ends_with("\r\n\r\n"), "{sent:?}: {answer:?}");
    }
    check_stream(&rest(stream).await, served.worker(), "abc", 1500);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    tune(&connection, Duration::from_millis(100));
    let chunk = vec![0_u8; 1 << 20];
    let error = loop {
        if let Err(error) = connection.write_all(&chunk).await {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn heads_and_paths_that_are_too_long_are_refused() {
    let router = start("").await;
    let path = format!("/{}", "a".repeat(100_000));
    let headers = (0..200).map(|number| format!("x-{number}: a\r\n")).collect::<Vec<_>>().concat();
    for (request, status) in [
        (format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n"), "414"),
        (format!("GET /health?{path} HTTP/1.1\r\nhost: t\r\n\r\n"), "414"),
        (format!("GET /health HTTP/1.1\r\nhost: t\r\nx: {path}\r\n\r\n"), "431"),
        (format!("GET /health HTTP/1.1\r\nhost: t\r\n{headers}\r\n"), "431"),
    ] {
        let answer = raw(router.address, request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{status}: {answer}");
        assert!(!answer.contains("HTTP/1.1 2"), "{answer}");
    }
    let fine = format!("GET /livez HTTP/1.1\r\nhost: t\r\nx: {}\r\nconnection: close\r\n\r\n", "a".repeat(30_000));
    assert!(raw(router.address, fine.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_that_ask_for_nothing_keep_nobody_out() {
    let router = start("--max-connections 4").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let stream = router.open_stream("abc", 800).await;
    let mut idle = Vec::new();
    for sent in ["", "GET /health HTTP/1.1\r\nhost:", "PRI * HT", ""].into_iter().cycle().take(40) {
        let mut connection = TcpStream::connect(router.address).await.unwrap();
        connection.write_all(sent.as_bytes()).await.unwrap();
        idle.push(connection);
    }
    assert!(get(router.address, "/livez").await.starts_with("HTTP/1.1 200"));
    // The first of them have been closed; the stream has not.
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(20), idle[0].read(&mut byte)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    check_stream(&rest(stream).await, served.worker(), "abc", 800);
}

/// The frames of HTTP/2 that open a connection and ask nothing.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn http2_connections_are_held_to_their_time_too() {
    let router = start("--head-timeout-seconds 1").await;
    let mut connection = TcpStream::connect(router.address).await.unwrap();
    connection.write_all(HTTP2).await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut answer)).await;
    assert!(closed.is_ok() && !answer.is_empty(), "it holds its connection");
}

#[tokio::test]
async fn no_way_of_writing_a_request_leads_around_the_key() {
    let router = start_with("", &[("API_KEY", "secret")]).await;
    let _served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let body = r#"{"inputs":"abc","parameters":{"max_new_tokens":3}}"#;
    let rest =
        format!("host: t\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for line in [
        "POST /generate HTTP/1.1",
        "POST /generate HTTP/1.0",
        "POST http://127.0.0.1/generate HTTP/1.1",
        "POST http://x:y@127.0.0.1//generate HTTP/1.1",
        "POST /generate# HTTP/1.1",
        "POST //generate HTTP/1.1",
        "POST /health/../generate HTTP/1.1",
        "POST /%67enerate HTTP/1.1",
        "POST /generate\t HTTP/1.1",
        "post /generate HTTP/1.1",
        "CONNECT /generate HTTP/1.1",
    ] {
        for more in
            ["", "authorization: Bearer secret\r\nauthorization: Bearer x\r\n", "authorization: \r\n Bearer secret\r\n"]
        {
            let answer = raw(router.address, format!("{line}\r\n{rest}{more}\r\n{body}").as_bytes()).await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
                "{line} {more}: {answer}"
            );
        }
    }
    let upgrade =
        format!("POST /generate HTTP/1.1\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n{rest}\r\n{body}");
    assert!(raw(router.address, upgrade.as_bytes()).await.starts_with("HTTP/1.1 401"));
    let smuggled = format!(
        "GET /health HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nPOST /generate HTTP/1.1\r\n{rest}\r\n{body}"
    );
    assert!(!raw(router.address, smuggled.as_bytes()).await.contains("generated_text"));
    let right = format!("POST /generate HTTP/1.1\r\n{rest}authorization: Bearer secret\r\n\r\n{body}");
    assert!(raw(router.address, right.as_bytes()).await.contains("generated_text"));
}
