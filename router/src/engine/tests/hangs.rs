//! Ranks that hang again, in what their predecessors hung in.

use millrace_client::fake::FakeWorker;

use super::*;

/// Waits until the group serves; then nothing reaches it any more: a process that hangs gets no further with new connections.
async fn serving(server: &Server) {
    while server.health.phase() != Phase::Serving {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.workers.rank(0).set_reachable(false);
}

/// Waits until a rank is reported; after how long that is.
async fn found(server: &Server) -> Duration {
    let began = tokio::time::Instant::now();
    while server.health.hung().is_none() {
        assert!(began.elapsed() < Duration::from_secs(3600), "nobody finds it");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    began.elapsed()
}

/// What a launcher does.
fn replace(server: &Server) {
    server.workers.rank(0).die();
    server.workers.rank(0).set_reachable(true);
}

/// A prompt that hangs the workers each time hangs the next ones in their first step, of which they know nothing.
#[tokio::test(start_paused = true)]
async fn what_steps_take_is_known_to_the_workers_that_come_next() {
    let server = start(&FakeOptions { delay: Duration::from_millis(20), ..options() }, "--hung-step-seconds 20");
    // Prompts of several hundred tokens, and decode steps: what both take is learned.
    check_all(&server, (0..3).map(|number| request(prompt(number, 600), 10)).collect()).await;
    let request = request(prompt(7, 500), 10);
    let expected = server.expected(&request, 0);
    server.workers.rank(0).inject(server.workers.rank(0).steps() + 1, Fault::Hang);
    serving(&server).await;
    let generation = server.generate(request);
    let first = found(&server).await;
    assert!(first < Duration::from_secs(40), "{first:?}");
    server.workers.rank(0).inject(1, Fault::Hang);
    replace(&server);
    serving(&server).await;
    let second = found(&server).await;
    assert!(second < first + Duration::from_secs(10), "{second:?} after {first:?}");
    replace(&server);
    assert_eq!(collect(generation, 1).await.ids(0), expected);
    server.end().await;
}

/// The first request of all is a long prompt: nothing is known but what the workers' trial took, or not even that.
#[tokio::test(start_paused = true)]
async fn a_first_large_step_that_does_not_end_is_found_by_what_the_trial_took() {
    for (trial, at_least, at_most) in [(400, 20, 60), (0, 600, 640)] {
        let trial = Duration::from_millis(trial);
        let server = start(&FakeOptions { trial, ..options() }, "--hung-step-seconds 20");
        server.workers.rank(0).inject(1, Fault::Hang);
        serving(&server).await;
        let request = request(prompt(7, 900), 10);
        let expected = server.expected(&request, 0);
        let generation = server.generate(request);
        let took = found(&server).await.as_secs();
        assert!((at_least..at_most).contains(&took), "{took} s");
        replace(&server);
        assert_eq!(collect(generation, 1).await.ids(0), expected);
        server.end().await;
    }
}

/// A group that serves, and then one that gets no further while it gets ready, which is found after so long; and the next.
async fn found_while_it_gets_ready(
    server: Server,
    rank: usize,
    get_stuck: impl Fn(&FakeWorker, bool),
) -> (Duration, String) {
    let request = request(prompt(7, 30), 60);
    let expected = server.expected(&request, 0);
    let mut generation = server.generate(request);
    let mut outcome = Outcome::default();
    read_tokens(&mut generation, &mut outcome, 5).await;
    get_stuck(server.workers.rank(rank), true);
    (0..2).for_each(|rank| server.workers.rank(rank).die());
    while server.health.phase() != Phase::Recovering {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = found(&server).await;
    let hung = server.health.hung().unwrap();
    assert_eq!((hung.rank, hung.generation, hung.every_step_fails), (rank, 2, false), "{hung:?}");
    // Reported, and as long as nobody replaces it nothing else comes of it.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((server.health.hung(), server.health.phase()), (Some(hung.clone()), Phase::Recovering));
    (0..2).for_each(|rank| server.workers.rank(rank).die());
    get_stuck(server.workers.rank(rank), false);
    read_tokens(&mut generation, &mut outcome, 60).await;
    assert_eq!(outcome.ids(0), expected);
    assert_eq!((server.health.phase(), server.health.hung()), (Phase::Serving, None));
    drop(generation);
    server.end().await;
    (took, hung.reason)
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_is_prepared_for_ever_is_reported_until_it_is_replaced_and_costs_no_token() {
    let options = FakeOptions { delay: Duration::from_millis(1), ..options() };
    let server = start_with(FakeGroup::new(&options, 2), "", READER_PATIENCE);
    let get_stuck = |worker: &FakeWorker, is_stuck| {
        if is_stuck {
            worker.inject(0, Fault::Hang);
        }
    };
    let (took, reason) = found_while_it_gets_ready(server, 1, get_stuck).await;
    assert!(reason.contains("preparing"), "{reason}");
    assert!((115..150).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_loads_for_ever_is_reported_until_it_is_replaced_and_costs_no_token() {
    // The first load is seen, and takes a minute.
    let options = FakeOptions { delay: Duration::from_millis(1), load_time: Duration::from_secs(60), ..options() };
    let server = start_with(FakeGroup::new(&options, 2), "", READER_PATIENCE);
    let (took, reason) = found_while_it_gets_ready(server, 0, FakeWorker::hang_while_loading).await;
    assert!(reason.contains("loading the weights"), "{reason}");
    assert!((590..640).contains(&took.as_secs()), "{took:?}");
}

/// A first load and a first `Prepare` may take as long as they take.
#[tokio::test(start_paused = true)]
async fn nothing_bounds_a_first_start() {
    let workers = FakeGroup::single(&options());
    workers.rank(0).hang_while_loading(true);
    workers.rank(0).inject(0, Fault::Hang);
    let server = start_with(workers, "", READER_PATIENCE);
    let long = Duration::from_secs(2 * 3600);
    tokio::time::sleep(long).await;
    assert_eq!((server.health.phase(), server.health.hung()), (Phase::Starting, None));
    server.workers.rank(0).hang_while_loading(false);
    tokio::time::sleep(long).await;
    assert_eq!((server.health.phase(), server.health.hung()), (Phase::Starting, None));
    server.workers.rank(0).release();
    check_all(&server, mixed_load(3)).await;
    server.end().await;
}
