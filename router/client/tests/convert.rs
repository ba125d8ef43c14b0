//! What goes out comes back the same; what comes in is believed only if it fits.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::sync::Arc;

use millrace_client::convert::{Outline, plan_from_proto, plan_to_proto, result_from_proto, result_to_proto};
use millrace_client::v1;
use millrace_scheduler::{
    Admission, Failure, Growth, NO_TOKEN, PageCopy, PageId, PromptLogprob, PromptLogprobs, Row, Sampled, Sampling,
    SequenceId, StepPlan, StepResult, Timings, TopToken, Work,
};
use proptest::collection::vec;
use proptest::prelude::*;

const VOCAB_SIZE: u32 = 5000;

prop_compose! {
    fn sampling()(
        (do_sample, seed, top_k, watermark, top_n_tokens) in any::<(bool, u64, u32, bool, u32)>(),
        floats in any::<[u16; 8]>(),
        edits in (vec(any::<(u32, u16)>(), 0..4), vec(any::<u32>(), 0..3), any::<u32>(), "[ -~]{0,9}"),
    ) -> Sampling {
        let [temperature, top_p, typical_p, min_p, repetition, frequency, presence, count] = floats.map(f32::from);
        Sampling {
            do_sample, seed, temperature, top_k, top_p, typical_p, min_p, repetition_penalty: repetition,
            frequency_penalty: frequency, presence_penalty: presence, count_penalty: count, watermark, top_n_tokens,
            prompt_top_tokens: top_n_tokens / 2,
            logit_bias: edits.0.into_iter().map(|(id, bias)| (id, f32::from(bias))).collect(),
            end_tokens: edits.1.into(), min_new_tokens: edits.2,
            grammar: (!edits.3.is_empty()).then(|| edits.3.as_str().into()),
        }
    }
}

prop_compose! {
    fn admission()(
        sequence: u64, row: u32, token_ids in vec(any::<u32>(), 1..40), pages in vec(any::<u32>(), 0..9),
        known in 0..40_usize, sampling in sampling(), prompt_logprobs: bool,
    ) -> Admission {
        Admission {
            sequence: SequenceId(sequence), row: Row(row), num_prompt_tokens: 1 + (known % token_ids.len()) as u32,
            token_ids, pages: pages.into_iter().map(PageId).collect(), sampling: Arc::new(sampling), prompt_logprobs,
        }
    }
}

prop_compose! {
    fn plan()(
        step: u64, released in vec(any::<u32>(), 0..5), admitted in vec(admission(), 0..4),
        grown in vec(any::<(u32, u32, u32)>(), 0..20), copies in vec(any::<(u32, u32)>(), 0..4),
        work in vec(any::<(u32, u32, bool)>(), 0..20),
    ) -> StepPlan {
        let one = |(index, (start, count, samples)): (usize, (u32, u32, bool))| {
            Work { sequence: SequenceId(index as u64 * 7), row: Row(index as u32), start, count: count.max(1), samples }
        };
        let mut admitted = admitted;
        // Rows and sequences are unique in a plan; those of the work are 0, 1, … and 0, 7, ….
        for (index, admission) in admitted.iter_mut().enumerate() {
            (admission.row, admission.sequence) = (Row(100 + index as u32), SequenceId(5 + 7 * index as u64));
        }
        StepPlan {
            step,
            released: released.into_iter().map(Row).collect(),
            admitted,
            grown: grown.into_iter().map(|(row, index, page)| Growth { row: Row(row), index, page: PageId(page) }).collect(),
            copies: copies.into_iter().map(|(from, to)| PageCopy { source: PageId(from), target: PageId(to) }).collect(),
            work: work.into_iter().enumerate().map(one).collect(),
        }
    }
}

/// A result that fits the plan, made of `choices`.
fn result_for(plan: &StepPlan, choices: &[u32]) -> StepResult {
    let mut choices = choices.iter().copied().cycle();
    let mut next = move |below: u32| choices.next().unwrap_or(0) % below;
    let mut result = StepResult { step: plan.step, progress: next(9).into(), ..StepResult::default() };
    for (index, work) in plan.work.iter().enumerate() {
        let fails = next(4) == 0;
        if fails {
            result.failed.push(Failure { sequence: work.sequence, message: format!("failure {}", next(100)) });
        }
        if work.samples {
            let num_top = if fails { 0 } else { next(4) };
            let top_tokens =
                (0..num_top).map(|i| TopToken { token_id: next(VOCAB_SIZE), logprob: -(i as f32) }).collect();
            let token_id = if fails { NO_TOKEN } else { next(VOCAB_SIZE) };
            result.sampled.push(Sampled { token_id, logprob: -(next(100) as f32) / 8.0, top_tokens });
        }
        if next(3) == 0 {
            let num_logprobs = next(work.count.min(20) + 1);
            let logprobs = (0..num_logprobs).map(|_| {
                let top = (0..next(3)).map(|_| TopToken { token_id: next(VOCAB_SIZE), logprob: -(next(100) as f32) });
                let top_tokens: Vec<TopToken> = top.collect();
                PromptLogprob { logprob: -(next(100) as f32), top_tokens }
            });
            let logprobs = logprobs.collect();
            result.prompt_logprobs.push(PromptLogprobs { work: index as u32, logprobs });
        }
    }
    result.timings = Timings { inputs_us: next(9), forward_us: next(9), sample_us: next(9), total_us: next(9) };
    result
}

proptest! {
    #[test]
    fn a_plan_comes_back_the_same(plan in plan()) {
        let rows: HashMap<Row, SequenceId> = plan.work.iter().map(|work| (work.row, work.sequence)).collect();
        let back = plan_from_proto(&plan_to_proto(&plan), |row| rows.get(&row).copied()).unwrap();
        prop_assert_eq!(back, plan);
    }

    #[test]
    fn a_result_comes_back_the_same(plan in plan(), choices in vec(any::<u32>(), 1..200)) {
        let result = result_for(&plan, &choices);
        let back = result_from_proto(&Outline::of(&plan, VOCAB_SIZE), &result_to_proto(&result)).unwrap();
        prop_assert_eq!(back, result);
    }

    /// Cuts, lengthens or overwrites one column anywhere: either it is still right, or the error names a field.
    #[test]
    fn a_damaged_result_never_panics(
        plan in plan(), choices in vec(any::<u32>(), 1..200), column in 0..11_usize, at: u16, bytes in vec(any::<u8>(), 0..9),
    ) {
        let mut proto = result_to_proto(&result_for(&plan, &choices));
        let top = proto.top_tokens.get_or_insert_default();
        let prompt = proto.prompt_logprobs.get_or_insert_default();
        let prompt_top = prompt.top_tokens.get_or_insert_default();
        let columns = [
            &mut proto.token_ids, &mut proto.logprobs, &mut top.counts, &mut top.token_ids, &mut top.logprobs,
            &mut prompt.work, &mut prompt.counts, &mut prompt.logprobs, &mut prompt_top.counts,
            &mut prompt_top.token_ids, &mut prompt_top.logprobs,
        ];
        let damaged = columns.into_iter().nth(column).unwrap();
        damaged.truncate(at as usize % (damaged.len() + 1));
        damaged.extend(bytes);
        let read = result_from_proto(&Outline::of(&plan, VOCAB_SIZE), &proto);
        let names = ["token_ids", "logprobs", "top_tokens.", "prompt_logprobs."];
        prop_assert!(read.is_ok() || names.iter().any(|name| read.as_ref().unwrap_err().to_string().starts_with(name)));
    }

    #[test]
    fn a_damaged_plan_never_panics(plan in plan(), column in 0..9_usize, at: u16, bytes in vec(any::<u8>(), 0..9)) {
        let mut proto = plan_to_proto(&plan);
        let grown = proto.grown.get_or_insert_default();
        let copies = proto.copies.get_or_insert_default();
        let work = proto.work.get_or_insert_default();
        let columns = [
            &mut proto.released, &mut grown.rows, &mut grown.indices, &mut grown.pages, &mut copies.sources,
            &mut copies.targets, &mut work.rows, &mut work.starts, &mut work.samples,
        ];
        let damaged = columns.into_iter().nth(column).unwrap();
        damaged.truncate(at as usize % (damaged.len() + 1));
        damaged.extend(bytes);
        let read = plan_from_proto(&proto, |row| Some(SequenceId(row.0.into())));
        let names = ["released", "grown.", "copies.", "work."];
        prop_assert!(read.is_ok() || names.iter().any(|name| read.as_ref().unwrap_err().to_string().starts_with(name)));
    }
}

/// Two entries that sample, one that does not, one more sequence admitted.
fn small_plan() -> StepPlan {
    let work = |row, count, samples| Work {
        sequence: SequenceId(10 + u64::from(row)),
        row: Row(row),
        start: 4,
        count,
        samples,
    };
    let admission = Admission {
        sequence: SequenceId(20),
        row: Row(3),
        token_ids: vec![1],
        num_prompt_tokens: 1,
        pages: Vec::new(),
        sampling: Arc::default(),
        prompt_logprobs: false,
    };
    let work = vec![work(0, 1, true), work(1, 3, false), work(2, 1, true)];
    StepPlan { step: 1, admitted: vec![admission], work, ..StepPlan::default() }
}

#[test]
fn what_is_wrong_with_an_answer_is_named() {
    let outline = Outline::of(&small_plan(), VOCAB_SIZE);
    let column = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let right = || v1::StepResult { token_ids: column(&[7, 8]), logprobs: vec![0; 8], ..v1::StepResult::default() };
    assert_eq!(result_from_proto(&outline, &right()).unwrap().sampled[1].token_id, 8);

    let failed = |sequence| vec![v1::Failure { sequence, message: "out of memory".to_owned() }];
    let top = |counts: &[u32], token_ids: &[u32]| {
        let (counts, token_ids, logprobs) = (column(counts), column(token_ids), column(token_ids));
        v1::StepResult { top_tokens: Some(v1::TopTokens { counts, token_ids, logprobs }), ..right() }
    };
    let prompt = |work: &[u32], counts: &[u32], num_logprobs: usize| {
        let (work, counts, logprobs) = (column(work), column(counts), vec![0; num_logprobs * 4]);
        v1::StepResult {
            prompt_logprobs: Some(v1::PromptLogprobs { work, counts, logprobs, top_tokens: None }),
            ..right()
        }
    };
    for (answer, says) in [
        (v1::StepResult { token_ids: column(&[7]), ..right() }, "token_ids has 1 entries, but 2 are due"),
        (v1::StepResult { logprobs: vec![0; 7], ..right() }, "logprobs has 7 bytes"),
        (v1::StepResult { token_ids: column(&[7, 5000]), ..right() }, "token_ids[1] is 5000: it is not in the vocab"),
        (v1::StepResult { token_ids: column(&[NO_TOKEN, 8]), ..right() }, "token_ids[0] is 4294967295"),
        (v1::StepResult { failed: failed(99), ..right() }, "failed.sequence[0] is 99: this sequence has no part"),
        (top(&[1], &[7]), "top_tokens.counts has 1 entries, but 2 are due"),
        (top(&[1, 2], &[7, 7]), "top_tokens.token_ids has 2 entries, but 3 are due"),
        (top(&[u32::MAX, u32::MAX], &[7]), "top_tokens.token_ids has 1 entries"),
        (top(&[1, 1], &[7, 5000]), "top_tokens.token_ids[1] is 5000"),
        (prompt(&[3], &[1], 1), "prompt_logprobs.work[0] is 3: the plan has no such work entry"),
        (prompt(&[1], &[4], 4), "prompt_logprobs.counts[0] is 4: it is more than the work entry's tokens"),
        (prompt(&[1, 2], &[3, 1], 3), "prompt_logprobs.logprobs has 3 entries, but 4 are due"),
    ] {
        let error = result_from_proto(&outline, &answer).unwrap_err().to_string();
        assert!(error.starts_with(says), "{error:?} instead of {says:?}");
    }
    for sequence in [10, 11, 20] {
        let answer = v1::StepResult { failed: failed(sequence), ..right() };
        assert_eq!(result_from_proto(&outline, &answer).unwrap().failed[0].sequence, SequenceId(sequence));
    }
    let gone = v1::StepResult { token_ids: column(&[NO_TOKEN, 8]), failed: failed(10), ..right() };
    assert_eq!(result_from_proto(&outline, &gone).unwrap().sampled[0].token_id, NO_TOKEN);
}

#[test]
fn what_is_wrong_with_a_plan_is_named() {
    let right = plan_to_proto(&small_plan());
    let read = |plan: &v1::StepPlan| plan_from_proto(plan, |row| (row.0 < 4).then_some(SequenceId(1)));
    read(&right).unwrap();
    let damage = |edit: &dyn Fn(&mut v1::StepPlan)| {
        let mut plan = right.clone();
        edit(&mut plan);
        read(&plan).unwrap_err().to_string()
    };
    assert_eq!(damage(&|plan| plan.admitted[0].sampling = None), "admitted.sampling[0] is missing");
    assert!(damage(&|plan| plan.admitted[0].num_prompt_tokens = 2).starts_with("admitted.num_prompt_tokens[0] is 2"));
    assert!(damage(&|plan| plan.work.as_mut().unwrap().samples[1] = 2).starts_with("work.samples[1] is 2"));
    assert!(damage(&|plan| plan.work.as_mut().unwrap().counts[..4].fill(0)).starts_with("work.counts[0] is 0"));
    assert!(damage(&|plan| plan.work.as_mut().unwrap().rows[0] = 9).starts_with("work.rows[0] is 9: no sequence"));
    assert!(damage(&|plan| plan.work.as_mut().unwrap().starts.clear()).starts_with("work.starts has 0 entries"));
    assert!(damage(&|plan| plan.released = vec![1, 2]).starts_with("released has 2 bytes"));
}
