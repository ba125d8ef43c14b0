//! Bytes that are nearly a worker's answer, or nearly a plan: each is read or refused, and nothing panics.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;

use std::sync::Arc;

use millrace_client::convert::{Outline, plan_from_proto, plan_to_proto, result_from_proto, result_to_proto};
use millrace_client::v1;
use millrace_scheduler::{
    Admission, Failure, Growth, PageCopy, PageId, PromptLogprob, PromptLogprobs, Row, Sampled, Sampling, SequenceId,
    StepPlan, StepResult, TopToken, Work,
};
use mutate::{Dice, cases};
use prost::Message;

fn plan(dice: &mut Dice) -> StepPlan {
    let work = (0..=dice.roll(5) as u32).map(|row| Work {
        sequence: SequenceId(u64::from(row)),
        row: Row(row),
        start: dice.roll(9) as u32,
        count: 1 + dice.roll(4) as u32,
        samples: dice.roll(2) == 0,
    });
    let work = work.collect();
    let admission = Admission {
        sequence: SequenceId(77),
        row: Row(9),
        token_ids: vec![1, 2, 3],
        num_prompt_tokens: 2,
        pages: vec![PageId(4)],
        sampling: Arc::new(Sampling { logit_bias: vec![(3, 1.0)], ..Sampling::default() }),
        prompt_logprobs: true,
    };
    StepPlan {
        step: dice.roll(9) as u64,
        released: vec![Row(1)],
        admitted: vec![admission],
        grown: vec![Growth { row: Row(0), index: 1, page: PageId(2) }],
        copies: vec![PageCopy { source: PageId(1), target: PageId(3) }],
        work,
    }
}

fn result(plan: &StepPlan, dice: &mut Dice) -> StepResult {
    let top = |dice: &mut Dice| {
        (0..dice.roll(3)).map(|id| TopToken { token_id: id as u32, logprob: -1.0 }).collect::<Vec<_>>()
    };
    let sampling = plan.work.iter().filter(|work| work.samples);
    StepResult {
        step: plan.step,
        sampled: sampling
            .map(|_| Sampled { token_id: dice.roll(50) as u32, logprob: -0.5, top_tokens: top(dice) })
            .collect(),
        prompt_logprobs: vec![PromptLogprobs {
            work: 0,
            logprobs: vec![PromptLogprob { logprob: -1.0, top_tokens: Vec::new() }],
        }],
        failed: vec![Failure { sequence: SequenceId(0), message: "test".to_owned() }],
        whole_step: dice.roll(2) == 0,
        ..StepResult::default()
    }
}

#[test]
fn whatever_a_worker_answers_it_is_read_or_refused() {
    let (mut dice, mut decoded, mut read) = (Dice::new(5), 0, 0);
    let count = cases(30_000);
    for _ in 0..count {
        let plan = plan(&mut dice);
        let (bytes, other) = (result(&plan, &mut dice), result(&plan, &mut dice));
        let bytes = result_to_proto(&bytes).encode_to_vec();
        let mutated = dice.mutate(&bytes, &result_to_proto(&other).encode_to_vec());
        let Ok(answer) = v1::StepResult::decode(mutated.as_slice()) else { continue };
        decoded += 1;
        let vocab_size = if dice.roll(2) == 0 { 50 } else { 0 };
        match result_from_proto(&Outline::of(&plan, vocab_size), &answer) {
            // What is believed fits the plan, so that the scheduler may count on it.
            Ok(result) => {
                read += 1;
                assert_eq!(result.sampled.len(), plan.work.iter().filter(|work| work.samples).count());
                assert!(result.prompt_logprobs.iter().all(|entry| (entry.work as usize) < plan.work.len()));
            }
            Err(wrong) => assert!(!wrong.to_string().is_empty()),
        }
    }
    assert!(decoded * 8 > count && read * 20 > count, "{decoded} and {read} of {count}");
}

#[test]
fn whatever_a_plan_is_it_is_read_or_refused() {
    let (mut dice, mut decoded) = (Dice::new(6), 0);
    let count = cases(10_000);
    for _ in 0..count {
        let (first, other) = (plan(&mut dice), plan(&mut dice));
        let mutated = dice.mutate(&plan_to_proto(&first).encode_to_vec(), &plan_to_proto(&other).encode_to_vec());
        let Ok(asked) = v1::StepPlan::decode(mutated.as_slice()) else { continue };
        decoded += 1;
        if let Err(wrong) = plan_from_proto(&asked, |row| (row.0 < 20).then_some(SequenceId(row.0.into()))) {
            assert!(!wrong.to_string().is_empty());
        }
    }
    assert!(decoded * 8 > count, "{decoded} of {count}");
}
