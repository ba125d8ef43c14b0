//! Workers that are lost and come back, the same or others.

use super::*;

#[tokio::test]
async fn streams_go_on_where_they_were_when_the_worker_was_killed() {
    let router = start("").await;
    let mut served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut streams = Vec::new();
    for prompt in ["a", "bc", "def", "ghij"] {
        let mut stream = router.open_stream(prompt, 200).await;
        streams.push((prompt, read_some(&mut stream).await, stream));
    }
    served.kill();
    while router.is_healthy().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served.restart().unwrap();
    for (prompt, read, stream) in streams {
        check_stream(&(read + &rest(stream).await), served.worker(), prompt, 200);
    }
    router.wait_until_healthy().await;
}

#[tokio::test]
async fn a_server_that_cannot_go_on_ends_its_streams_and_says_why() {
    let router = start("").await;
    let mut served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut stream = router.open_stream("abc", 1000).await;
    read_some(&mut stream).await;
    served.kill();
    let _other = router.serve_worker(FakeOptions { page_size: 32, ..options() });
    let error = router.task.await.unwrap().unwrap_err();
    assert!(matches!(error, AppError::Engine(EngineError::PageSizeChanged { before: 16, now: 32 })), "{error}");
    let last = events(&rest(stream).await).pop().unwrap();
    assert_eq!(last["error_type"], "incomplete_generation_stream");
}

#[tokio::test]
async fn a_total_left_open_is_what_the_pool_holds_and_stays_so_when_workers_come_back_with_more() {
    let router = start("").await;
    let mut served = router.serve_worker(FakeOptions { num_pages: 10, ..options() });
    router.wait_until_healthy().await;
    let total = async || {
        let info = get(router.address, "/info").await;
        let (_, body) = info.split_once("\r\n\r\n").unwrap();
        body.parse::<Value>().unwrap()["max_total_tokens"].take()
    };
    assert_eq!(total().await, 160);
    served.kill();
    while router.is_healthy().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let other = router.serve_worker(options());
    router.wait_until_healthy().await;
    assert_eq!(total().await, 160);
    check_stream(&rest(router.open_stream("abc", 156).await).await, other.worker(), "abc", 156);
}

#[tokio::test]
async fn workers_that_come_back_with_too_little_room_for_the_limits_serve_what_fits() {
    let router = start("--max-total-tokens 500").await;
    let mut served = router.serve_worker(options());
    router.wait_until_healthy().await;
    served.kill();
    while router.is_healthy().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let other = router.serve_worker(FakeOptions { num_pages: 4, ..options() });
    router.wait_until_healthy().await;
    check_stream(&rest(router.open_stream("abc", 20).await).await, other.worker(), "abc", 20);
    let refused = rest(router.open_stream("abc", 300).await).await;
    assert!(refused.contains("KV pages"), "{refused}");
    check_stream(&rest(router.open_stream("abc", 20).await).await, other.worker(), "abc", 20);
}
