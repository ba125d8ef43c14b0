//! Ranks that hang, steps that fail, requests that are late.

use super::*;

#[tokio::test]
async fn a_step_that_fails_costs_no_request_of_many() {
    let server = start(&options(), "");
    for step in [5, 9] {
        server.workers.rank(0).inject(step, Fault::FailStep);
    }
    check_all(&server, mixed_load(8)).await;
    assert_eq!(server.workers.rank(0).streams(), 1, "the stream lives on");
    server.end().await;
}

#[tokio::test]
async fn a_request_that_is_late_ends_wherever_it_is_and_the_others_go_on() {
    let server = start(&FakeOptions { delay: Duration::from_millis(5), ..options() }, "--max-batch-size 1");
    let by = |deadline, request| ValidRequest { deadline: Some(Instant::now() + deadline), ..request };
    let runs = request(prompt(1, 20), 300);
    let expected = server.expected(&runs, 0);
    let running = server.handle.generate(by(Duration::from_secs(600), runs));
    let queued = server.handle.generate(by(Duration::from_millis(100), request(prompt(2, 20), 5)));
    let outcome = collect(queued, 1).await;
    assert_eq!((outcome.failed, outcome.tokens.len()), (Some(Failed::TimedOut), 0));
    assert_eq!(collect(running, 1).await.ids(0), expected);
    let cut = collect(server.handle.generate(by(Duration::from_millis(300), request(prompt(3, 20), 4000))), 1).await;
    assert!(cut.failed == Some(Failed::TimedOut) && cut.ids(0).len() > 1, "{cut:?}");
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_hangs_is_reported_until_it_is_replaced_and_costs_no_token() {
    let options = FakeOptions { delay: Duration::from_millis(1), ..options() };
    let server = start_with(FakeGroup::new(&options, 2), "--hung-step-seconds 20", READER_PATIENCE);
    let stopped = |server: &Server| server.workers.rank(1).stop(true);
    let stuck = |server: &Server| server.workers.rank(1).inject(80, Fault::Hang);
    for (round, hang) in [&stopped as &dyn Fn(&Server), &stuck].into_iter().enumerate() {
        let request = request(prompt(7, 30), 60);
        let expected = server.expected(&request, 0);
        let mut generation = server.handle.generate(request);
        let mut outcome = Outcome::default();
        read_tokens(&mut generation, &mut outcome, 5).await;
        assert_eq!((server.health.phase(), server.health.hung()), (Phase::Serving, None));
        hang(&server);
        // Such a process accepts connections and gets no further.
        server.workers.rank(1).set_reachable(false);
        while server.health.hung().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let hung = server.health.hung().unwrap();
        assert_eq!((hung.rank, hung.generation), (1, round as u32 + 1), "{hung:?}");
        assert!(hung.report.contains("running: 1") && !hung.report.contains(&text_of(&expected[..5])), "{hung:?}");
        assert_eq!(server.health.phase(), Phase::Recovering);
        // What a launcher does: the whole group is replaced.
        for rank in [0, 1] {
            server.workers.rank(rank).die();
            server.workers.rank(rank).stop(false);
        }
        server.workers.rank(1).set_reachable(true);
        if round == 1 {
            server.workers.rank(1).release();
        }
        read_tokens(&mut generation, &mut outcome, 60).await;
        assert_eq!(outcome.ids(0), expected);
        assert_eq!((server.health.phase(), server.health.hung()), (Phase::Serving, None));
    }
    server.end().await;
}
