//! What is refused, and what of the workers' answers is not believed.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use millrace_scheduler::{
    Config, Failure, FinishReason, GenerationEvent, NO_TOKEN, PromptLogprob, PromptLogprobs, Refused, Request, Sampled,
    Sampling, Scheduler, SequenceId, Share, StepResult, Work, WrongResult,
};

fn scheduler() -> Scheduler {
    Scheduler::new(Config {
        max_rows: 4,
        max_step_tokens: 16,
        page_size: 4,
        num_pages: 4,
        max_sequence_tokens: 20,
        waiting_served_ratio: 0.3,
        max_waiting_tokens: 20,
        max_batch_total_tokens: None,
        attention_window: 0,
        position_switch: 0,
        prefix_caching: true,
        max_steps_in_flight: 2,
    })
}

fn request(ids: &[u64], num_prompt_tokens: u32, max_new_tokens: u32) -> Request {
    Request {
        sequences: ids.iter().map(|&id| (SequenceId(id), Arc::new(Sampling::default()))).collect(),
        tokens: (0..num_prompt_tokens).collect(),
        max_new_tokens,
        eos_token_ids: Arc::from([]),
        prompt_logprobs: false,
        namespace: 0,
        share: Share::default(),
    }
}

fn answer(step: u64, num_sampled: usize) -> StepResult {
    let sampled = vec![Sampled { token_id: 7, ..Sampled::default() }; num_sampled];
    StepResult { step, sampled, ..StepResult::default() }
}

#[test]
fn what_can_never_run_is_refused_with_the_numbers() {
    let mut scheduler = scheduler();
    let cases = [
        (request(&[], 1, 1), Refused::NoSequences),
        (request(&[1, 2, 1], 1, 1), Refused::DuplicateSequence { sequence: SequenceId(1) }),
        (request(&[1], 0, 1), Refused::EmptyPrompt),
        (request(&[1], 1, 0), Refused::NoNewTokens),
        (request(&[1], 15, 6), Refused::TooLong { prompt_tokens: 15, max_new_tokens: 6, max_sequence_tokens: 20 }),
        (
            request(&[1], 15, 3),
            Refused::NoRoom { prompt_tokens: 15, max_new_tokens: 3, pages_needed: 5, num_pages: 4, page_size: 4 },
        ),
    ];
    for (request, refused) in cases {
        assert_eq!(scheduler.submit(request), Err(refused));
    }
    assert!(scheduler.is_idle());
    let message = scheduler.submit(request(&[1], 15, 3)).unwrap_err().to_string();
    assert!(
        ["15", "`max_new_tokens` 3", "5 KV pages", "there are 4"].iter().all(|part| message.contains(part)),
        "{message}"
    );
}

#[test]
fn the_last_token_needs_no_room_because_it_is_never_computed() {
    let mut scheduler = scheduler();
    assert_eq!(scheduler.submit(request(&[1], 15, 2)), Ok(()));
    assert_eq!(scheduler.submit(request(&[1], 1, 1)), Err(Refused::DuplicateSequence { sequence: SequenceId(1) }));
}

#[test]
fn an_answer_that_is_not_the_oldest_steps_changes_nothing() {
    let mut scheduler = scheduler();
    assert_eq!(scheduler.apply(answer(1, 0)), Err(WrongResult::NothingInFlight { step: 1 }));
    scheduler.submit(request(&[1, 2], 6, 3)).unwrap();
    scheduler.schedule().unwrap();
    assert_eq!(scheduler.apply(answer(2, 1)), Err(WrongResult::Step { expected: 1, got: 2 }));
    assert_eq!(scheduler.apply(answer(1, 2)), Err(WrongResult::Sampled { step: 1, expected: 1, got: 2 }));
    let mut unasked = answer(1, 1);
    unasked.prompt_logprobs.push(PromptLogprobs { work: 3, logprobs: vec![PromptLogprob::default()] });
    let wrong = WrongResult::PromptLogprobs { step: 1, work: 3, expected: 0, got: 1 };
    assert_eq!(scheduler.apply(unasked), Err(wrong));
    scheduler.check_integrity().unwrap();
    assert_eq!(scheduler.apply(answer(1, 1)).unwrap().len(), 2);
}

#[test]
fn prompt_logprobs_that_were_asked_for_must_come_whole() {
    let mut scheduler = scheduler();
    scheduler.submit(Request { prompt_logprobs: true, ..request(&[1], 6, 3) }).unwrap();
    scheduler.schedule().unwrap();
    assert_eq!(
        scheduler.apply(answer(1, 1)),
        Err(WrongResult::PromptLogprobs { step: 1, work: 0, expected: 5, got: 0 })
    );
    let with = |number: usize| {
        let mut result = answer(1, 1);
        let logprobs = vec![PromptLogprob::default(); number];
        result.prompt_logprobs.push(PromptLogprobs { work: 0, logprobs });
        result
    };
    let wrong = WrongResult::PromptLogprobs { step: 1, work: 0, expected: 5, got: 6 };
    assert_eq!(scheduler.apply(with(6)), Err(wrong));
    assert_eq!(scheduler.apply(with(5)).unwrap().len(), 2);
}

#[test]
fn a_sequence_is_started_once_even_if_it_is_seated_twice() {
    let mut scheduler = scheduler();
    scheduler.submit(request(&[1], 6, 3)).unwrap();
    assert!(scheduler.take_started().is_empty());
    scheduler.schedule().unwrap();
    assert_eq!(scheduler.take_started(), [SequenceId(1)]);
    scheduler.workers_lost();
    assert_eq!(scheduler.schedule().unwrap().step, 1);
    assert!(scheduler.take_started().is_empty());
}

/// Computes until nothing is left or a result is not believed; steps with one of these fail. As with real workers, who was
/// in a failed step takes no part in others until it is admitted again, and is named there. Answers who has failed.
fn compute(scheduler: &mut Scheduler, is_bad: impl Fn(u64) -> bool) -> (Vec<u64>, Option<WrongResult>) {
    let (mut plans, mut failed, mut out) = (VecDeque::new(), Vec::new(), HashSet::new());
    for _ in 0..200 {
        while let Some(plan) = scheduler.schedule() {
            plans.push_back(plan);
        }
        let Some(plan) = plans.pop_front() else { break };
        for admission in &plan.admitted {
            out.remove(&admission.sequence);
        }
        let fails = |work: &&Work| is_bad(work.sequence.0) && !out.contains(&work.sequence);
        let whole_step = plan.work.iter().any(|work| fails(&work));
        if whole_step {
            out.extend(plan.work.iter().map(|work| work.sequence));
        }
        let failure = |work: &Work| Failure { sequence: work.sequence, message: "test".to_owned() };
        let sampled = plan.work.iter().filter(|work| work.samples).map(|work| {
            let token_id = if out.contains(&work.sequence) { NO_TOKEN } else { 7 };
            Sampled { token_id, ..Sampled::default() }
        });
        let result = StepResult {
            step: plan.step,
            sampled: sampled.collect(),
            failed: plan.work.iter().filter(|work| out.contains(&work.sequence)).map(failure).collect(),
            whole_step,
            ..StepResult::default()
        };
        match scheduler.apply(result) {
            Ok(events) => failed.extend(events.iter().filter_map(|event| match event {
                GenerationEvent::Finished { sequence, reason: FinishReason::Failed(_) } => Some(sequence.0),
                _ => None,
            })),
            Err(wrong) => return (failed, Some(wrong)),
        }
        scheduler.check_integrity().unwrap();
    }
    (failed, None)
}

/// A request whose prompt nobody else has.
fn own_prompt(id: u64) -> Request {
    Request { tokens: vec![id as u32, 1], ..request(&[id], 2, 2) }
}

#[test]
fn when_one_after_the_other_fails_alone_it_is_the_workers_fault() {
    let mut scheduler = scheduler();
    for id in 1..=12 {
        scheduler.submit(own_prompt(id)).unwrap();
    }
    let (failed, wrong) = compute(&mut scheduler, |_| true);
    assert_eq!(failed.len(), 3, "{failed:?}");
    assert!(matches!(wrong, Some(WrongResult::EverybodyFails { .. })), "{wrong:?}");
    // The same device: each further group of workers costs one.
    for _ in 0..2 {
        scheduler.workers_lost();
        let (failed, wrong) = compute(&mut scheduler, |_| true);
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(matches!(wrong, Some(WrongResult::EverybodyFails { .. })), "{wrong:?}");
    }
    scheduler.workers_lost();
    assert_eq!(compute(&mut scheduler, |_| false), (Vec::new(), None));
    assert!(scheduler.is_idle());
}

#[test]
fn a_culprit_behind_as_many_as_the_workers_are_replaced_for_is_found_by_the_next_ones() {
    let mut scheduler = scheduler();
    for id in 1..=8 {
        scheduler.submit(own_prompt(id)).unwrap();
    }
    let (first, wrong) = compute(&mut scheduler, |id| id <= 4);
    assert!(first == [1, 2, 3] && matches!(wrong, Some(WrongResult::EverybodyFails { .. })), "{first:?} {wrong:?}");
    scheduler.workers_lost();
    assert_eq!(compute(&mut scheduler, |id| id <= 4), (vec![4], None));
    assert!(scheduler.is_idle());
}

#[test]
fn culprits_between_steps_that_succeed_are_found_however_many_they_are() {
    let mut scheduler = scheduler();
    for id in 1..=12 {
        scheduler.submit(own_prompt(id)).unwrap();
    }
    let (mut failed, wrong) = compute(&mut scheduler, |id| id % 2 == 0);
    failed.sort_unstable();
    assert_eq!((failed, wrong), (vec![2, 4, 6, 8, 10, 12], None));
    assert!(scheduler.is_idle());
}

#[test]
fn one_prompt_that_fails_alone_again_and_again_is_to_blame_itself() {
    let mut scheduler = scheduler();
    for id in 1..=20 {
        scheduler.submit(request(&[id], 2, 2)).unwrap();
        assert_eq!(compute(&mut scheduler, |_| true), (vec![id], None));
    }
    // Others that fail beside it are counted, and it is known to the next workers, too.
    for id in 21..=22 {
        scheduler.submit(own_prompt(id)).unwrap();
        assert_eq!(compute(&mut scheduler, |_| true), (vec![id], None));
    }
    scheduler.submit(own_prompt(23)).unwrap();
    assert!(matches!(compute(&mut scheduler, |_| true), (_, Some(WrongResult::EverybodyFails { .. }))));
    scheduler.workers_lost();
    assert_eq!(compute(&mut scheduler, |_| true), (vec![23], None));
    scheduler.submit(request(&[24], 2, 2)).unwrap();
    assert_eq!(compute(&mut scheduler, |_| true), (vec![24], None));
    // A step that succeeds forgets them all.
    scheduler.submit(own_prompt(25)).unwrap();
    assert_eq!(compute(&mut scheduler, |_| false), (Vec::new(), None));
    for id in 26..=28 {
        scheduler.submit(own_prompt(id)).unwrap();
        assert_eq!(compute(&mut scheduler, |_| true), (vec![id], None));
    }
}
