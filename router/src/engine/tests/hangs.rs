//! Ranks that hang again, in what their predecessors hung in.

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
