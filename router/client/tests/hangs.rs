//! Ranks that hang are found out: those whose process stands still by their silence, those whose step does not end by its
//! time. Ranks that are only slow are not. Time is the test's own: seconds pass as soon as nobody has anything to do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use millrace_client::fake::{FakeGroup, FakeOptions, Fault};
use millrace_client::{Connected, Hang, LostReason, SILENCE, StepStream, Workers, WorkersLost};
use support::{Job, Plans, REQUEST, generate};
use tokio::time::{Instant, sleep, timeout};

async fn connected(group: &mut FakeGroup) -> Connected {
    let connected = group.connect().await.unwrap();
    connected.prepare(REQUEST).await.unwrap();
    connected
}

async fn hang(steps: &mut StepStream) -> (usize, Hang) {
    match generate(steps, &[Job::greedy(20..37, 200)], 16).await {
        Err(WorkersLost { rank, reason: LostReason::Hung(hang) }) => (rank, hang),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_rank_is_found_whether_it_works_or_not() {
    for idle in [true, false] {
        let mut group = FakeGroup::new(&FakeOptions::default(), 3);
        let mut steps = connected(&mut group).await.run().await.unwrap();
        sleep(Duration::from_secs(60)).await;
        let stopped = Instant::now();
        group.rank(1).stop(true);
        let (rank, hang) = if idle {
            match steps.next().await {
                Err(WorkersLost { rank, reason: LostReason::Hung(hang) }) => (rank, hang),
                other => panic!("{other:?}"),
            }
        } else {
            hang(&mut steps).await
        };
        assert_eq!((rank, hang.generation), (1, 1), "{hang}");
        assert!(hang.why.contains("not answered"), "{hang}");
        assert!(stopped.elapsed() >= SILENCE && stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
        assert!(hang.report.contains("rank 2: answered step"), "{}", hang.report);
        assert_eq!(hang.report.contains("step 1: 17 tokens of 1 sequences"), !idle, "{}", hang.report);
        assert!(matches!(steps.next().await, Err(WorkersLost { rank: 1, .. })), "for good");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_was_stopped_for_a_moment_goes_on() {
    let mut group = FakeGroup::new(&FakeOptions::default(), 2);
    let mut steps = connected(&mut group).await.run().await.unwrap();
    let job = Job::greedy(20..37, 20);
    for _ in 0..5 {
        group.rank(1).stop(true);
        sleep(Duration::from_secs(2)).await;
        group.rank(1).stop(false);
        sleep(Duration::from_secs(2)).await;
        assert!(timeout(Duration::from_secs(1), steps.next()).await.is_err(), "nothing has happened");
    }
    let (outputs, _) = generate(&mut steps, std::slice::from_ref(&job), 16).await.unwrap();
    assert_eq!(outputs, [job.expected(group.rank(0))]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_does_not_end_is_found_though_its_process_answers() {
    let mut group = FakeGroup::new(&FakeOptions::default(), 2);
    let mut steps = connected(&mut group).await.run().await.unwrap();
    steps.set_patience(Duration::from_secs(20));
    // Both ranks have begun step 9; one of them will never answer it.
    group.rank(1).inject(9, Fault::Hang);
    let started = Instant::now();
    let (rank, hang) = hang(&mut steps).await;
    assert_eq!(rank, 1, "{hang}");
    assert!(hang.why.starts_with("step 9 has taken 2"), "{hang}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn honest_work_takes_the_time_that_it_takes() {
    // Half a minute for every step, at a patience of one second: the first bound is wide, the others are learned.
    let options = FakeOptions { delay: Duration::from_secs(30), ..FakeOptions::default() };
    let mut group = FakeGroup::new(&options, 2);
    let mut steps = connected(&mut group).await.run().await.unwrap();
    steps.set_patience(Duration::from_secs(1));
    let jobs = [Job::greedy(20..320, 10), Job::greedy(20..37, 12)];
    let (outputs, _) = generate(&mut steps, &jobs, 16).await.unwrap();
    assert_eq!(outputs, jobs.each_ref().map(|job| job.expected(group.rank(0))));
}

#[tokio::test(start_paused = true)]
async fn who_answers_steps_needs_no_other_sign_of_life() {
    let options = FakeOptions { delay: Duration::from_secs(1), ..FakeOptions::default() };
    let mut group = FakeGroup::new(&options, 2);
    let mut steps = connected(&mut group).await.run().await.unwrap();
    group.rank(1).mute();
    let job = Job::greedy(20..37, 30);
    let (outputs, _) = generate(&mut steps, std::slice::from_ref(&job), 16).await.unwrap();
    assert_eq!(outputs, [job.expected(group.rank(0))]);
    // Without steps there is none.
    assert!(matches!(steps.next().await, Err(WorkersLost { rank: 1, reason: LostReason::Hung(_) })));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_has_been_answered_does_not_hang_however_late_it_is_looked_at() {
    let mut group = FakeGroup::new(&FakeOptions::default(), 2);
    let mut steps = connected(&mut group).await.run().await.unwrap();
    steps.set_patience(Duration::ZERO);
    let jobs = [Job::greedy(20..37, 50)];
    let plans = Plans::of(&jobs, 16);
    for step in 1..=10 {
        steps.send(&plans.plan(step));
        assert_eq!(steps.next().await.unwrap().step, step);
    }
    // These have taken no time at all, which the next one then has; it is looked at when that is long over.
    steps.send(&plans.plan(11));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(steps.next().await.unwrap().step, 11);
}
