//! What a request reserved is given back, whichever way it ends.

use super::*;
use crate::overload::Outlook;

/// Until the engine has forgotten every request, and said so.
async fn until_nobody_waits(server: &Server) {
    while server.backlog.num_inside() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while server.backlog.outlook() != (Outlook { wait: Duration::ZERO, queued_tokens: 0 }) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn of_requests_that_finish_stop_fail_or_are_left_nothing_stays_behind() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "--max-batch-size 2");
    check_all(&server, mixed_load(12)).await;
    until_nobody_waits(&server).await;

    let too_long = request(prompt(1, 20), 1_000_000);
    assert!(collect(server.generate(too_long), 1).await.failed.is_some(), "the scheduler refuses it");
    until_nobody_waits(&server).await;

    let late = ValidRequest { deadline: Some(Instant::now()), ..request(prompt(1, 20), 2000) };
    assert_eq!(collect(server.generate(late), 1).await.failed, Some(Failed::TimedOut));
    until_nobody_waits(&server).await;

    let running: Vec<_> = (0..4).map(|n| server.generate(seeded(prompt(n, 30), 2000, &[1, 2]))).collect();
    while server.backlog.outlook().wait.is_zero() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.backlog.num_inside(), 4);
    drop(running);
    until_nobody_waits(&server).await;

    let cut = server.generate(request(prompt(1, 20), 2000));
    server.handle.end_all();
    assert_eq!(collect(cut, 1).await.failed, Some(Failed::Incomplete));
    until_nobody_waits(&server).await;
    server.end().await;
}

#[tokio::test]
async fn who_waits_for_workers_to_come_back_waits_for_that_and_then_no_more() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let mut running = server.generate(request(prompt(1, 20), 60));
    let mut outcome = Outcome::default();
    read_tokens(&mut running, &mut outcome, 3).await;
    server.workers.rank(0).set_reachable(false);
    server.workers.rank(0).die();
    while server.health.phase() != Phase::Recovering {
        tokio::task::yield_now().await;
    }
    let waiting = server.generate(request(prompt(2, 30), 5));
    while server.backlog.outlook().wait.is_zero() {
        tokio::task::yield_now().await;
    }
    let queued = server.backlog.outlook().queued_tokens;
    assert!(queued >= 50, "the new prompt, and what ran, which is computed again: {queued}");
    server.workers.rank(0).set_reachable(true);
    assert_eq!(collect(waiting, 1).await.ids(0).len(), 5);
    read_tokens(&mut running, &mut outcome, 60).await;
    drop(running);
    until_nobody_waits(&server).await;
    server.end().await;
}

#[tokio::test]
async fn time_may_be_over_in_the_queue_in_the_prompt_in_the_output_and_without_workers() {
    let slow = FakeOptions { delay: Duration::from_millis(20), ..options() };
    let server = start(&slow, "--max-batch-size 1 --max-batch-prefill-tokens 1 --max-total-tokens 600");
    let by = |milliseconds, request| {
        let deadline = Instant::now() + Duration::from_millis(milliseconds);
        ValidRequest { deadline: Some(deadline), ..request }
    };
    // A token in each step of 20 ms: it does not get through its prompt.
    let in_prompt = server.generate(by(300, request(prompt(1, 400), 5)));
    let in_queue = server.generate(by(200, request(prompt(2, 2), 5)));
    let outcome = collect(in_queue, 1).await;
    assert_eq!((outcome.failed, outcome.prefilled.len()), (Some(Failed::TimedOut), 0));
    let outcome = collect(in_prompt, 1).await;
    assert_eq!((outcome.failed, outcome.prefilled.len()), (Some(Failed::TimedOut), 0));
    let in_output = collect(server.generate(by(2000, request(prompt(3, 1), 500))), 1).await;
    assert!(in_output.failed == Some(Failed::TimedOut) && !in_output.ids(0).is_empty(), "{in_output:?}");
    server.workers.rank(0).set_reachable(false);
    server.workers.rank(0).die();
    while server.health.phase() != Phase::Recovering {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let without_workers = collect(server.generate(by(100, request(prompt(4, 2), 5))), 1).await;
    assert_eq!(without_workers.failed, Some(Failed::TimedOut));
    server.workers.rank(0).set_reachable(true);
    assert_eq!(collect(server.generate(request(prompt(5, 2), 2)), 1).await.ids(0).len(), 2);
    until_nobody_waits(&server).await;
    server.end().await;
}
