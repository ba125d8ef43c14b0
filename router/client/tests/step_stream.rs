//! The way from a plan to its result: in process, over unix sockets and over TCP, with one rank and with three.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use millrace_client::fake::{FakeOptions, Fault, Malformation};
use millrace_client::{LostReason, MAX_STEPS_IN_FLIGHT, WorkersLost};
use millrace_scheduler::{NO_TOKEN, Sampling, SequenceId, StepPlan};
use support::{EVERYWHERE, Group, Job, Plans, Transport, generate, soon};

fn jobs() -> Vec<Job> {
    let sampled = Sampling { do_sample: true, seed: 7, top_n_tokens: 3, ..Sampling::default() };
    vec![
        Job::greedy(20..37, 20),
        Job { sampling: sampled, ..Job::greedy([5], 33) },
        Job::greedy((0..100).map(|i| i * 3), 1),
        Job::greedy(20..36, 7),
    ]
}

#[tokio::test]
async fn every_transport_and_group_answers_what_the_model_says() {
    for (transport, world_size) in EVERYWHERE {
        let mut group = Group::new(transport, world_size, &FakeOptions::default());
        let mut steps = group.run().await;
        let (outputs, results) = generate(&mut steps, &jobs(), 16).await.unwrap();
        for (job, output) in jobs().iter().zip(outputs) {
            assert_eq!(output, job.expected(&group.workers[0]), "{transport:?} with {world_size} ranks");
        }
        let numbers: Vec<u64> = results.iter().map(|result| result.step).collect();
        assert_eq!(numbers, (1..=33).collect::<Vec<u64>>());
        for worker in &group.workers {
            assert_eq!(worker.steps(), 33, "every rank gets every plan");
        }
        group.assert_no_violations();
    }
}

#[tokio::test]
async fn logprobs_and_top_tokens_come_through_unchanged() {
    let mut group = Group::new(Transport::Unix, 1, &FakeOptions::default());
    let mut steps = group.run().await;
    let job = jobs().remove(1);
    let (_, results) = generate(&mut steps, std::slice::from_ref(&job), 16).await.unwrap();
    let expected = group.workers[0].expected_samples(&job.prompt, &job.sampling, 33);
    assert!(expected.iter().all(|sampled| sampled.top_tokens.len() == 3 && sampled.logprob < 0.0));
    assert_eq!(results.into_iter().flat_map(|result| result.sampled).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn prompt_logprobs_come_in_chunks_that_join_to_the_whole() {
    let mut group = Group::new(Transport::Unix, 1, &FakeOptions::default());
    let mut steps = group.run().await;
    let jobs = [Job::greedy(30..60, 1)];
    let mut first = Plans::of(&jobs, 16).plan(1);
    first.admitted[0].prompt_logprobs = true;
    let whole = first.work[0];
    first.work[0].count = 17;
    first.work[0].samples = false;
    let second = StepPlan {
        step: 2,
        work: vec![millrace_scheduler::Work { start: 17, count: 13, ..whole }],
        ..StepPlan::default()
    };
    steps.send(&first);
    steps.send(&second);
    let mut logprobs = Vec::new();
    for _ in 0..2 {
        let result = soon(steps.next()).await.unwrap();
        let entries = result.prompt_logprobs.into_iter().flat_map(|entry| entry.logprobs);
        logprobs.extend(entries.map(|entry| entry.logprob));
    }
    assert_eq!(logprobs, millrace_client::fake::ToyModel::prompt_logprobs(&jobs[0].prompt));
}

#[tokio::test]
async fn a_step_is_answered_only_when_every_rank_has_acknowledged_it() {
    for transport in [Transport::InProcess, Transport::Unix, Transport::Tcp] {
        let mut group = Group::new(transport, 3, &FakeOptions::default());
        group.workers[2].inject(2, Fault::Hang);
        let mut steps = group.run().await;
        let jobs = [Job::greedy(20..40, 3)];
        let plans = Plans::of(&jobs, 16);
        (1..=3).for_each(|step| steps.send(&plans.plan(step)));
        assert_eq!(soon(steps.next()).await.unwrap().step, 1);
        while group.workers[0].steps() < 3 || group.workers[1].steps() < 3 {
            // Also shows that `next` may be dropped and called again.
            let early = tokio::time::timeout(std::time::Duration::from_millis(5), steps.next()).await;
            assert!(early.is_err(), "{transport:?}: rank 2 has not acknowledged, but there is {early:?}");
        }
        assert_eq!(group.workers[2].steps(), 1);
        group.workers[2].release();
        let expected = jobs[0].expected(&group.workers[0]);
        for step in 2..=3 {
            let result = soon(steps.next()).await.unwrap();
            assert_eq!((result.step, result.sampled[0].token_id), (step, expected[step as usize - 1]));
        }
    }
}

#[tokio::test]
async fn a_death_on_any_rank_is_a_loss_and_a_new_connection_starts_afresh() {
    for (transport, world_size) in EVERYWHERE {
        for rank in 0..world_size as usize {
            let mut group = Group::new(transport, world_size, &FakeOptions::default());
            group.workers[rank].inject(3, Fault::Die);
            let before = group.connect().await.unwrap().instances().to_vec();
            let mut steps = group.run().await;
            let lost = generate(&mut steps, &jobs(), 16).await.unwrap_err();
            assert_eq!(lost.rank, rank, "{transport:?}: {lost}");
            for plan in [StepPlan::default(), StepPlan { step: 4, ..StepPlan::default() }] {
                steps.send(&plan);
                assert_eq!(soon(steps.next()).await.unwrap_err(), lost, "a loss is for good");
            }

            group.restart();
            assert_ne!(group.connect().await.unwrap().instances()[rank], before[rank]);
            let mut steps = group.run().await;
            let (outputs, _) = generate(&mut steps, &jobs(), 16).await.unwrap();
            let expected: Vec<_> = jobs().iter().map(|job| job.expected(&group.workers[0])).collect();
            assert_eq!(outputs, expected);
            group.assert_no_violations();
        }
    }
}

#[tokio::test]
async fn a_kill_is_noticed_with_a_step_in_flight_and_without() {
    for (transport, world_size) in EVERYWHERE {
        for in_flight in [false, true] {
            let last = world_size as usize - 1;
            let mut group = Group::new(transport, world_size, &FakeOptions::default());
            let mut steps = group.run().await;
            if in_flight {
                group.workers[0].inject(1, Fault::Hang);
                steps.send(&Plans::of(&jobs(), 16).plan(1));
            }
            let early = tokio::time::timeout(std::time::Duration::from_millis(5), steps.next()).await;
            assert!(early.is_err(), "{transport:?}: nothing has happened yet, but there is {early:?}");
            group.kill(last);
            assert_eq!(soon(steps.next()).await.unwrap_err().rank, last, "{transport:?}");
        }
    }
}

#[tokio::test]
async fn malformed_answers_are_losses_that_name_what_is_wrong() {
    for transport in [Transport::InProcess, Transport::Unix] {
        for (malformation, says) in [
            (Malformation::Ragged, "logprobs has 17 bytes"),
            (Malformation::ExtraToken, "token_ids has 5 entries, but 4 are due"),
            (Malformation::ForeignToken, "token_ids[0] is 4294967294: it is not in the vocabulary"),
        ] {
            let lost = lose(transport, 0, Fault::Malformed(malformation)).await;
            assert!(matches!(lost.reason, LostReason::Malformed(_)), "{lost}");
            assert!(lost.to_string().contains(says), "{lost}");
        }
        for rank in 0..2 {
            let lost = lose(transport, rank, Fault::Malformed(Malformation::WrongStep)).await;
            assert_eq!(lost, WorkersLost { rank, reason: LostReason::OutOfOrder { expected: 1, actual: 2 } });
            let lost = lose(transport, rank, Fault::Malformed(Malformation::Twice)).await;
            assert_eq!(lost, WorkersLost { rank, reason: LostReason::OutOfOrder { expected: 2, actual: 1 } });
        }
    }
}

/// How a group of two is lost when one rank has this fault at step 1.
async fn lose(transport: Transport, rank: usize, fault: Fault) -> WorkersLost {
    let mut group = Group::new(transport, 2, &FakeOptions::default());
    group.workers[rank].inject(1, fault);
    let mut steps = group.run().await;
    generate(&mut steps, &jobs(), 16).await.unwrap_err()
}

#[tokio::test]
async fn one_failed_sequence_leaves_the_others_alone() {
    let mut group = Group::new(Transport::Unix, 2, &FakeOptions::default());
    group.workers.iter().for_each(|worker| worker.inject(3, Fault::FailSequence(1)));
    let mut steps = group.run().await;
    let jobs = [Job::greedy(20..30, 6), Job::greedy(30..40, 6), Job::greedy(40..50, 6)];
    let (outputs, results) = generate(&mut steps, &jobs, 16).await.unwrap();
    let expected: Vec<_> = jobs.iter().map(|job| job.expected(&group.workers[0])).collect();
    assert_eq!((&outputs[0], &outputs[2]), (&expected[0], &expected[2]));
    assert_eq!(outputs[1][..2], expected[1][..2]);
    assert!(outputs[1][2..].iter().all(|token| *token == NO_TOKEN));
    assert_eq!(results[1].failed, []);
    assert_eq!(results[2].failed.len(), 1);
    assert_eq!(results[2].failed[0].sequence, SequenceId(101));
}

#[tokio::test]
async fn a_failed_step_fails_its_sequences_and_the_stream_lives_on() {
    let mut group = Group::new(Transport::Unix, 1, &FakeOptions::default());
    group.workers[0].inject(2, Fault::FailStep);
    let mut steps = group.run().await;
    let jobs = [Job::greedy(20..30, 2), Job::greedy(30..40, 2)];
    let plans = Plans::of(&jobs, 16);
    let (_, results) = generate(&mut steps, &jobs, 16).await.unwrap();
    assert_eq!((results[1].failed.len(), results[1].whole_step, results[0].whole_step), (2, true, false));
    let mut next = plans.plan(3);
    assert_eq!(next.released.len(), 2);
    let again = plans.plan(1);
    (next.admitted, next.work) = (again.admitted, again.work);
    steps.send(&next);
    let result = soon(steps.next()).await.unwrap();
    assert_eq!(result.failed, []);
    assert_eq!(result.sampled[1].token_id, jobs[1].expected(&group.workers[0])[0]);
    group.assert_no_violations();
}

#[tokio::test]
async fn plans_out_of_order_or_too_many_are_refused() {
    let mut group = Group::new(Transport::Unix, 1, &FakeOptions::default());
    group.workers[0].inject(1, Fault::Hang);
    let mut steps = group.run().await;
    let plan = |step| StepPlan { step, ..StepPlan::default() };
    for step in 1..=MAX_STEPS_IN_FLIGHT as u64 {
        steps.send(&plan(step));
    }
    assert_eq!(steps.num_in_flight(), MAX_STEPS_IN_FLIGHT);
    steps.send(&plan(MAX_STEPS_IN_FLIGHT as u64 + 1));
    let lost = soon(steps.next()).await.unwrap_err();
    assert!(matches!(lost.reason, LostReason::PlanOutOfOrder { in_flight: MAX_STEPS_IN_FLIGHT, .. }), "{lost}");

    let mut steps = group.run().await;
    steps.send(&plan(2));
    let lost = soon(steps.next()).await.unwrap_err();
    assert_eq!(lost.reason, LostReason::PlanOutOfOrder { expected: 1, actual: 2, in_flight: 0 });
}

#[tokio::test]
async fn a_plan_of_many_megabytes_arrives() {
    let options = FakeOptions { max_positions: 4_000_000, num_pages: 250_000, ..FakeOptions::default() };
    let mut group = Group::new(Transport::Unix, 2, &options);
    let connected = group.connect().await.unwrap();
    let request = millrace_client::PrepareRequest { max_step_tokens: 4_000_000, ..support::REQUEST };
    soon(connected.prepare(request)).await.unwrap();
    let mut steps = soon(connected.run()).await.unwrap();
    let job = Job::greedy((0..3_000_000).map(|i| i % 1000), 2);
    let (outputs, _) = generate(&mut steps, std::slice::from_ref(&job), 16).await.unwrap();
    assert_eq!(outputs[0], job.expected(&group.workers[0]));
    group.assert_no_violations();
}
