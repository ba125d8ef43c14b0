//! The end of a server: in order, in time, or because nothing can be computed any more.

use super::*;

#[tokio::test]
async fn a_server_that_was_never_told_of_a_model_stops_when_asked() {
    let router = start("--await-model").await;
    assert!(get(router.address, "/livez").await.starts_with("HTTP/1.1 200"));
    router.stop.send(()).unwrap();
    assert_eq!(router.task.await.unwrap().unwrap(), Ending::Drained);
}

#[tokio::test]
async fn running_streams_finish_when_the_server_is_told_to_stop() {
    let router = start("").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut streams = Vec::new();
    for prompt in ["a", "bc", "def", "ghij"] {
        let mut stream = router.open_stream(prompt, 120).await;
        streams.push((prompt, read_some(&mut stream).await, stream));
    }
    let Router { address, stop, task, folder: _folder, news: _ } = router;
    stop.send(()).unwrap();
    while !get(address, "/readyz").await.starts_with("HTTP/1.1 503") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Newcomers are told, not left before a closed door.
    let refused = rest(send(address, "POST", "/generate", r#"{"inputs":"a"}"#).await).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    for (prompt, read, stream) in streams {
        check_stream(&(read + &rest(stream).await), served.worker(), prompt, 120);
    }
    assert_eq!(task.await.unwrap().unwrap(), Ending::Drained);
}

#[tokio::test]
async fn requests_that_need_too_long_end_with_an_error_when_the_server_stops() {
    let router = start("--graceful-termination-timeout 1").await;
    let _served = router.serve_worker(FakeOptions { delay: Duration::from_millis(50), ..options() });
    router.wait_until_healthy().await;
    let mut stream = router.open_stream("abc", 4000).await;
    let read = read_some(&mut stream).await;
    router.stop.send(()).unwrap();
    let answer = read + &rest(stream).await;
    let last = events(&answer).pop().unwrap();
    assert_eq!(last["error_type"], "incomplete_generation_stream", "{answer}");
    assert_eq!(router.task.await.unwrap().unwrap(), Ending::Cut);
}

#[tokio::test]
async fn streams_get_an_end_when_there_will_be_no_workers_any_more() {
    let router = start("--lame-duck-seconds 600 --graceful-termination-timeout 600").await;
    let mut served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut stream = router.open_stream("abc", 2000).await;
    let read = read_some(&mut stream).await;
    served.kill();
    router.news.send(News::End(Cause { reason: "it died five times".to_owned() })).unwrap();
    let answer = read + &rest(stream).await;
    let last = events(&answer).pop().unwrap();
    assert_eq!(last["error_type"], "incomplete_generation_stream", "{answer}");
    assert_eq!(router.task.await.unwrap().unwrap(), Ending::Cut);
}

#[tokio::test]
async fn a_lame_duck_serves_newcomers_and_says_that_they_should_not_come() {
    let router = start("--lame-duck-seconds 1").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let Router { address, stop, task, folder: _folder, news: _ } = router;
    stop.send(()).unwrap();
    while !get(address, "/readyz").await.starts_with("HTTP/1.1 503") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 503"));
    let body = r#"{"inputs":"abc","parameters":{"max_new_tokens":5,"details":true}}"#;
    let answer = rest(send(address, "POST", "/generate_stream", body).await).await;
    check_stream(&answer, served.worker(), "abc", 5);
    assert_eq!(task.await.unwrap().unwrap(), Ending::Drained);
}

#[tokio::test]
async fn a_half_sent_request_is_refused_when_the_server_stops_and_does_not_keep_it() {
    let router = start("").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut stream = router.open_stream("abc", 60).await;
    let read = read_some(&mut stream).await;
    let mut half = TcpStream::connect(router.address).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n";
    half.write_all(head.as_bytes()).await.unwrap();
    // The server says that it reads the body now.
    let mut interim = [0; 25];
    half.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    half.write_all(b"{\"inputs\":").await.unwrap();
    router.stop.send(()).unwrap();
    let refused = rest(half).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("stopping"), "{refused}");
    check_stream(&(read + &rest(stream).await), served.worker(), "abc", 60);
    router.task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn connections_that_ask_for_nothing_do_not_keep_a_server_that_stops() {
    let (stop, inside) = (CancellationToken::new(), Inside::new(3));
    let running = Arc::clone(&inside.places).try_acquire_owned().unwrap();
    let unwritten = Arc::clone(&inside.unwritten).try_acquire_owned().unwrap();
    let (server, engine) = (tokio::spawn(std::future::pending()), tokio::spawn(std::future::pending()));
    let cut = AtomicBool::new(false);
    let ending = end(server, engine, emptied(&stop, &inside, &cut));
    tokio::pin!(ending);
    let later = Duration::from_secs(3600);
    assert!(tokio::time::timeout(later, &mut ending).await.is_err(), "nobody has told it to stop");
    stop.cancel();
    assert!(tokio::time::timeout(later, &mut ending).await.is_err(), "a request is inside");
    drop(running);
    assert!(tokio::time::timeout(later, &mut ending).await.is_err(), "an answer is on its way");
    drop(unwritten);
    ending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_has_failed_is_told_also_when_nobody_is_inside() {
    let failing = async {
        tokio::time::sleep(LAST_WORDS / 2).await;
        Err(EngineError::PageSizeChanged { before: 16, now: 32 })
    };
    let (server, engine) = (tokio::spawn(std::future::pending()), tokio::spawn(failing));
    let ended = end(server, engine, std::future::ready(())).await;
    assert!(matches!(ended, Err(AppError::Engine(_))), "{ended:?}");
}

#[tokio::test]
async fn a_server_that_never_had_workers_stops_too() {
    let router = start("").await;
    router.stop.send(()).unwrap();
    router.task.await.unwrap().unwrap();
}
