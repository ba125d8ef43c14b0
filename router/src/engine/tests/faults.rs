//! Ranks that hang, steps that fail, requests that are late.

use millrace_client::fake::FakeWorker;

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
    let running = server.generate(by(Duration::from_secs(600), runs));
    let queued = server.generate(by(Duration::from_millis(100), request(prompt(2, 20), 5)));
    let outcome = collect(queued, 1).await;
    assert_eq!((outcome.failed, outcome.tokens.len()), (Some(Failed::TimedOut), 0));
    assert_eq!(collect(running, 1).await.ids(0), expected);
    let cut = collect(server.generate(by(Duration::from_secs(2), request(prompt(3, 20), 4000))), 1).await;
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
        let mut generation = server.generate(request);
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
        assert!(!hung.every_step_fails);
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

#[tokio::test(start_paused = true)]
async fn a_rank_that_falls_silent_while_it_gets_ready_is_reported_until_it_is_replaced_and_costs_no_token() {
    let options = FakeOptions { delay: Duration::from_millis(1), ..options() };
    let server = start_with(FakeGroup::new(&options, 2), "", READER_PATIENCE);
    let request = request(prompt(7, 30), 60);
    let expected = server.expected(&request, 0);
    // The first time it is the first start.
    server.workers.rank(1).stop(true);
    let mut generation = server.generate(request);
    let mut outcome = Outcome::default();
    for (phase, number) in [(Phase::Starting, 1), (Phase::Recovering, 3)] {
        while server.health.hung().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let hung = server.health.hung().unwrap();
        assert!(hung.reason.contains("while it got ready"), "{hung:?}");
        assert_eq!((hung.rank, hung.generation), (1, number), "{hung:?}");
        assert_eq!((server.health.phase(), outcome.failed.is_none()), (phase, true));
        // What a launcher does.
        let group = [server.workers.rank(0), server.workers.rank(1)];
        group.into_iter().for_each(FakeWorker::die);
        server.workers.rank(1).stop(false);
        let num_tokens = if phase == Phase::Starting { 5 } else { 60 };
        read_tokens(&mut generation, &mut outcome, num_tokens).await;
        assert_eq!((server.health.phase(), server.health.hung()), (Phase::Serving, None));
        if phase == Phase::Starting {
            server.workers.rank(1).stop(true);
            group.into_iter().for_each(FakeWorker::die);
        }
    }
    assert_eq!(outcome.ids(0), expected);
    drop(generation);
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn workers_that_die_while_they_get_ready_are_waited_for() {
    let workers = FakeGroup::new(&options(), 2);
    workers.rank(1).inject(0, Fault::Die);
    let server = start_with(workers, "--num-shard 2", READER_PATIENCE);
    check_all(&server, mixed_load(3)).await;
    server.workers.rank(0).inject(0, Fault::Die);
    server.workers.rank(0).die();
    check_all(&server, mixed_load(3)).await;
    assert_eq!(server.workers.rank(0).streams(), 2);
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn workers_that_refuse_for_a_while_after_a_restart_are_asked_again() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let request = request(prompt(4, 20), 40);
    let expected = server.expected(&request, 0);
    let mut generation = server.generate(request);
    let mut outcome = Outcome::default();
    read_tokens(&mut generation, &mut outcome, 3).await;
    server.workers.rank(0).refuse_prepare(Some("the memory of the dead is not free yet"));
    server.workers.rank(0).die();
    while server.health.phase() != Phase::Recovering {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.health.phase(), Phase::Recovering);
    server.workers.rank(0).refuse_prepare(None);
    read_tokens(&mut generation, &mut outcome, 40).await;
    assert_eq!(outcome.ids(0), expected);
    drop(generation);
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn workers_that_go_on_refusing_after_a_restart_end_the_engine_and_nobody_waits() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let mut generation = server.generate(request(prompt(4, 20), 1000));
    let mut outcome = Outcome::default();
    read_tokens(&mut generation, &mut outcome, 3).await;
    server.workers.rank(0).refuse_prepare(Some("out of memory for good"));
    server.workers.rank(0).die();
    while outcome.failed.is_none() {
        outcome.note_all(generation.next().await);
    }
    assert_eq!(outcome.failed, Some(Failed::Incomplete));
    let error = server.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("out of memory for good"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn workers_whose_every_step_fails_are_to_be_replaced_and_cost_few_requests() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    (5..200).for_each(|step| server.workers.rank(0).inject(step, Fault::FailStep));
    let mut generations: Vec<(Generation, Outcome)> =
        (0..8).map(|index| (server.generate(request(prompt(index, 20), 60)), Outcome::default())).collect();
    while server.health.hung().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let hung = server.health.hung().unwrap();
    assert!(hung.rank == 0 && hung.generation > 0 && hung.reason.contains("fails alone"), "{hung:?}");
    assert!(hung.every_step_fails, "{hung:?}");
    // Nothing is tried on them again, however long it takes until they are replaced.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((server.health.phase(), server.health.hung().is_some()), (Phase::Recovering, true));
    assert_eq!(server.workers.rank(0).streams(), 1);
    for (generation, outcome) in &mut generations {
        while outcome.failed.is_none()
            && let Ok(events) = tokio::time::timeout(Duration::from_secs(1), generation.next()).await
        {
            outcome.note_all(events);
        }
    }
    assert_eq!(generations.iter().filter(|(_, outcome)| outcome.failed.is_some()).count(), 3);
    drop(generations);
    server.workers.rank(0).die();
    while server.health.phase() != Phase::Serving {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.end().await;
}

/// Its client asks again at once, and there is nobody else whose steps would succeed.
#[tokio::test(start_paused = true)]
async fn a_bad_request_that_is_asked_again_and_again_is_refused_and_ends_nothing() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let worker = server.workers.rank(0);
    for _ in 0..20 {
        // The next step may have been sent already when this one fails.
        (1..=4).for_each(|ahead| worker.inject(worker.steps() + ahead, Fault::FailStep));
        let refusal = collect(server.generate(request(prompt(3, 20), 10)), 1);
        let outcome = tokio::time::timeout(Duration::from_secs(60), refusal).await.expect("it is refused");
        assert!(matches!(outcome.failed, Some(Failed::Generation(_))), "{outcome:?}");
        assert_eq!((server.health.phase(), server.health.hung()), (Phase::Serving, None));
    }
    assert_eq!(worker.streams(), 1, "no group was replaced for it");
    // Another's is computed, as soon as the steps that are to fail are over.
    let mut num_tries = 1;
    let outcome = loop {
        let outcome = collect(server.generate(request(prompt(4, 20), 10)), 1).await;
        if outcome.failed.is_none() || num_tries == 5 {
            break outcome;
        }
        num_tries += 1;
    };
    assert_eq!(outcome.ids(0), server.expected(&request(prompt(4, 20), 10), 0));
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_engine_comes_round_whatever_it_waits_for_until_it_stands_still() {
    let workers = FakeGroup::single(&options());
    workers.rank(0).set_reachable(false);
    let server = start_with(workers, "", READER_PATIENCE);
    let a_while = async || {
        tokio::time::sleep(Duration::from_secs(20)).await;
        (server.health.phase(), server.health.standstill())
    };
    assert_eq!(a_while().await, (Phase::Starting, None));
    server.workers.rank(0).set_reachable(true);
    assert_eq!(a_while().await, (Phase::Serving, None));
    server.workers.rank(0).set_reachable(false);
    server.workers.rank(0).die();
    assert_eq!(a_while().await, (Phase::Recovering, None));
    server.workers.rank(0).set_reachable(true);
    assert_eq!(a_while().await, (Phase::Serving, None));
    server.task.abort();
    let (phase, standstill) = a_while().await;
    assert!(phase == Phase::Serving && standstill > Some(Duration::from_secs(19)) && !server.health.is_serving());
}
