//! The engine's own beginning and end.

use super::*;

#[tokio::test]
async fn running_requests_finish_when_every_handle_is_dropped() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let request = request(prompt(1, 20), 40);
    let expected = server.expected(&request, 0);
    let generation = server.generate(request);
    drop(server.handle);
    assert_eq!(collect(generation, 1).await.ids(0), expected);
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_engine_that_ends_leaves_nobody_waiting() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let mut generation = server.generate(request(prompt(1, 20), 2000));
    let mut outcome = Outcome::default();
    read_tokens(&mut generation, &mut outcome, 1).await;
    server.task.abort();
    while outcome.failed.is_none() {
        let events = generation.next().await;
        assert!(!events.is_empty());
        outcome.note_all(events);
    }
    assert_eq!(outcome.failed, Some(Failed::Incomplete));
    assert!(server.generate(request(prompt(1, 20), 1)).next().await.is_empty());
}

#[tokio::test]
async fn requests_that_come_before_the_workers_are_served() {
    let server = start(&FakeOptions { load_time: Duration::from_millis(30), ..options() }, "--max-total-tokens 100");
    assert_eq!((server.health.phase(), server.health.limits()), (Phase::Starting, None));
    check_all(&server, mixed_load(2)).await;
    let limits = server.health.limits().unwrap();
    assert_eq!((limits.max_input_tokens, limits.max_total_tokens, limits.vocab_size), (99, 100, 1000));
    server.end().await;
}

#[tokio::test]
async fn workers_that_refuse_at_the_start_end_the_engine() {
    let workers = FakeGroup::single(&options());
    workers.rank(0).refuse_prepare(Some("out of memory"));
    let server = start_with(workers, "", READER_PATIENCE);
    let error = server.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
}

#[tokio::test]
async fn limits_that_the_workers_cannot_hold_end_the_engine() {
    let server = start(&options(), "--max-total-tokens 5000");
    assert!(matches!(server.task.await.unwrap(), Err(EngineError::Limits(BadLimits::TotalAbovePositions { .. }))));
}

#[tokio::test]
async fn draining_outlives_a_restart_of_the_workers() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let request = request(prompt(1, 20), 30);
    let expected = server.expected(&request, 0);
    server.workers.rank(0).inject(10, Fault::Die);
    let generation = server.generate(request);
    server.health.drain();
    assert_eq!(collect(generation, 1).await.ids(0), expected);
    assert_eq!(server.health.phase(), Phase::Draining);
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_nobody_needs_ends_also_while_it_waits_for_workers() {
    let workers = FakeGroup::single(&options());
    workers.rank(0).set_reachable(false);
    let server = start_with(workers, "", READER_PATIENCE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.health.phase(), Phase::Starting);
    server.end().await;

    let server = start(&options(), "");
    check_all(&server, mixed_load(1)).await;
    server.workers.rank(0).set_reachable(false);
    server.workers.rank(0).die();
    while server.health.phase() != Phase::Recovering {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.end().await;
}
