//! What is refused, and what of the workers' answers is not believed.

use std::sync::Arc;

use millrace_scheduler::{
    Config, PromptLogprob, PromptLogprobs, Refused, Request, Sampled, Sampling, Scheduler, SequenceId, StepResult,
    WrongResult,
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
