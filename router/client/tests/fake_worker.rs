//! The fake worker finds every wrong plan: what a scheduler's tests rely on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_client::fake::{FakeGroup, FakeOptions, ToyModel};
use millrace_client::{LostReason, StepStream, Workers};
use millrace_scheduler::{
    Admission, Growth, NO_TOKEN, PageCopy, PageId, Row, Sampling, SequenceId, StepPlan, StepResult, Work,
};
use support::{REQUEST, soon};

/// Pages of 4 tokens, plans written by hand.
struct Bench {
    group: FakeGroup,
    steps: StepStream,
    step: u64,
}

impl Bench {
    async fn new() -> Self {
        let options = FakeOptions { page_size: 4, num_pages: 8, ..FakeOptions::default() };
        let mut group = FakeGroup::single(&options);
        let connected = group.connect().await.unwrap();
        connected.prepare(REQUEST).await.unwrap();
        let steps = connected.run().await.unwrap();
        Self { group, steps, step: 0 }
    }

    async fn step(&mut self, plan: StepPlan) -> Result<StepResult, LostReason> {
        self.step += 1;
        self.steps.send(&StepPlan { step: self.step, ..plan });
        soon(self.steps.next()).await.map_err(|lost| lost.reason)
    }

    /// Errs with what the worker says against a plan that no worker could carry out.
    async fn refusal(plans: impl IntoIterator<Item = StepPlan>) -> String {
        let mut bench = Self::new().await;
        let mut refusals = Vec::new();
        for plan in plans {
            match bench.step(plan).await {
                Ok(_) => assert_eq!(bench.group.violations(), Vec::<String>::new()),
                Err(LostReason::Failed { message, .. }) => refusals.push(message),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(refusals.len(), 1, "the last plan is refused: {refusals:?}");
        assert!(bench.group.violations()[0].contains(&refusals[0]));
        refusals.remove(0)
    }
}

fn admit(row: u32, tokens: impl IntoIterator<Item = u32>, pages: impl IntoIterator<Item = u32>) -> Admission {
    let token_ids: Vec<u32> = tokens.into_iter().collect();
    Admission {
        sequence: SequenceId(row.into()),
        row: Row(row),
        num_prompt_tokens: token_ids.len() as u32,
        token_ids,
        pages: pages.into_iter().map(PageId).collect(),
        sampling: Arc::default(),
        prompt_logprobs: false,
    }
}

fn work(row: u32, start: u32, count: u32, samples: bool) -> Work {
    Work { sequence: SequenceId(row.into()), row: Row(row), start, count, samples }
}

fn plan(admitted: Vec<Admission>, work: Vec<Work>) -> StepPlan {
    StepPlan { admitted, work, ..StepPlan::default() }
}

#[tokio::test]
async fn a_shared_prefix_a_copied_page_and_a_grown_table_are_right() {
    let mut bench = Bench::new().await;
    let prompt = 20..27;
    let expected = bench.group.rank(0).expected(&(20..27).collect::<Vec<_>>(), &Sampling::default(), 3);
    let first = plan(vec![admit(0, prompt.clone(), [5, 6])], vec![work(0, 0, 7, true)]);
    assert_eq!(bench.step(first).await.unwrap().sampled[0].token_id, expected[0]);

    // A sibling shares page 5, copies page 6 into 1, and computes the last prompt token itself.
    let mut second = plan(vec![admit(1, prompt.clone(), [5, 1])], vec![work(0, 7, 1, true), work(1, 6, 1, true)]);
    second.copies = vec![PageCopy { source: PageId(6), target: PageId(1) }];
    let sampled = bench.step(second).await.unwrap().sampled;
    assert_eq!([sampled[0].token_id, sampled[1].token_id], [expected[1], expected[0]]);

    let mut third = plan(Vec::new(), vec![work(0, 8, 1, true), work(1, 7, 1, true)]);
    third.grown = vec![Growth { row: Row(0), index: 2, page: PageId(0) }];
    let sampled = bench.step(third).await.unwrap().sampled;
    assert_eq!([sampled[0].token_id, sampled[1].token_id], [expected[2], expected[1]]);

    // A resumed sequence with its output so far; row 0 is free again.
    let tokens = prompt.chain(expected.iter().copied().take(2));
    let mut resumed = admit(0, tokens, [2, 3, 4]);
    resumed.num_prompt_tokens = 7;
    let mut fourth = plan(vec![resumed], vec![work(0, 0, 9, true)]);
    fourth.released = vec![Row(0), Row(1)];
    assert_eq!(bench.step(fourth).await.unwrap().sampled[0].token_id, expected[2]);
    assert_eq!(bench.group.violations(), Vec::<String>::new());
    assert_eq!((bench.group.rank(0).steps(), bench.group.rank(0).computed_tokens()), (4, 7 + 2 + 2 + 9));
}

#[tokio::test]
async fn reading_what_is_not_there_fails_the_sequence_and_is_reported() {
    // Pages 5 and 6 hold the prompt 20 … 26 at positions 0 … 6.
    let right = || plan(vec![admit(0, 20..27, [5, 6])], vec![work(0, 0, 7, true)]);
    let reads = |tokens: Vec<u32>, pages| plan(vec![admit(1, tokens, pages)], vec![work(1, 8, 1, true)]);
    let prompt = || (20..29).collect::<Vec<u32>>();
    let other_prefix = [&[9], &prompt()[1..]].concat();
    for (wrong, says) in [
        (reads(prompt(), [2, 6, 7]), "sequence 1: position 0 in page 2 was not computed"),
        (reads(prompt(), [6, 5, 7]), "sequence 1: position 0 in page 6 was not computed"),
        (reads(prompt(), [5, 6, 7]), "sequence 1: position 7 in page 6 was not computed"),
        (reads(other_prefix, [5, 6, 7]), "sequence 1: position 0 in page 5 was not computed"),
    ] {
        let mut bench = Bench::new().await;
        bench.step(right()).await.unwrap();
        let result = bench.step(wrong).await.unwrap();
        assert_eq!(result.sampled[0].token_id, NO_TOKEN);
        assert_eq!(result.failed[0].message, says);
        assert_eq!(bench.group.violations(), [says]);
    }
}

#[tokio::test]
async fn two_sequences_that_write_one_page_are_found_in_the_same_step() {
    let mut bench = Bench::new().await;
    let admitted = vec![admit(0, 20..24, [3]), admit(1, 30..34, [3])];
    let result = bench.step(plan(admitted, vec![work(0, 0, 4, false), work(1, 0, 4, false)])).await.unwrap();
    assert_eq!(result.failed[0].message, "sequence 0: position 0 in page 3 was overwritten in the same step");
}

#[tokio::test]
async fn plans_that_no_worker_could_carry_out_end_the_stream() {
    let start = || plan(vec![admit(0, 20..25, [0, 1])], vec![work(0, 0, 5, true)]);
    let after = |wrong: StepPlan| [start(), wrong];
    let release = |row| StepPlan { released: vec![Row(row)], ..StepPlan::default() };
    let grow = |index, page| StepPlan {
        grown: vec![Growth { row: Row(0), index, page: PageId(page) }],
        ..StepPlan::default()
    };
    for (wrong, says) in [
        (release(3), "row 3 is released, but nobody holds it"),
        (plan(vec![admit(0, 1..5, [2])], vec![]), "sequence 0 is admitted to row 0, which is taken"),
        (plan(vec![admit(8, 1..5, [2])], vec![]), "sequence 8 is admitted to row 8, which does not exist"),
        (plan(vec![admit(1, 1..5, [8])], vec![]), "page 8 of 8 does not exist"),
        (grow(1, 2), "row 0 has 2 pages, but page 1 is appended"),
        (grow(2, 9), "page 9 of 8 does not exist"),
        (plan(vec![], vec![work(0, 6, 1, true)]), "row 0 has 6 tokens of at most 32"),
        (plan(vec![], vec![work(0, 3, 1, true)]), "row 0 has 6 tokens of at most 32"),
        (plan(vec![admit(1, 20..29, [2, 3])], vec![work(1, 0, 9, true)]), "row 1 has 2 pages"),
        (plan(vec![admit(1, (0..600).map(|i| i % 9), 0..8)], vec![work(1, 0, 600, true)]), "600 tokens in one step"),
        (plan(vec![], vec![work(5, 0, 1, true)]), "no sequence holds this row"),
    ] {
        let refusal = Bench::refusal(after(wrong)).await;
        assert!(refusal.contains(says), "{refusal:?} instead of {says:?}");
    }
}

#[tokio::test]
async fn a_new_stream_starts_from_empty_rows_and_poisoned_pages() {
    let mut bench = Bench::new().await;
    let start = || plan(vec![admit(0, 20..25, [0, 1])], vec![work(0, 0, 5, true)]);
    let before = bench.step(start()).await.unwrap();
    let connected = bench.group.connect().await.unwrap();
    connected.prepare(REQUEST).await.unwrap();
    (bench.steps, bench.step) = (connected.run().await.unwrap(), 0);
    let after = bench.step(start()).await.unwrap();
    assert_eq!(before.sampled, after.sampled);
    let stale = plan(vec![admit(1, 20..29, [5, 6, 7])], vec![work(1, 4, 5, true)]);
    assert_eq!(bench.step(stale).await.unwrap().failed.len(), 1);
    assert_eq!(bench.group.rank(0).streams(), 2);
}

#[test]
fn the_model_depends_on_tokens_seed_and_position_and_nothing_else() {
    let model = ToyModel::default();
    let prompt: Vec<u32> = (0..40).collect();
    let ids = |prompt: &[u32], sampling: &Sampling| -> Vec<u32> {
        model.generate(prompt, sampling, 50).into_iter().map(|sampled| sampled.token_id).collect()
    };
    let greedy = Sampling::default();
    let seeded = |seed| Sampling { do_sample: true, seed, ..Sampling::default() };
    assert_eq!(ids(&prompt, &greedy), ids(&prompt, &Sampling { seed: 9, top_k: 3, ..Sampling::default() }));
    assert_eq!(ids(&prompt, &seeded(1)), ids(&prompt, &seeded(1)));
    let distinct =
        [ids(&prompt, &greedy), ids(&prompt, &seeded(1)), ids(&prompt, &seeded(2)), ids(&prompt[1..], &greedy)];
    for (index, one) in distinct.iter().enumerate() {
        assert!(one.iter().all(|token| model.token_ids.contains(token)));
        assert!(distinct[..index].iter().all(|other| other != one), "outputs {index} and an earlier one are equal");
    }
    // Continuing an output is the same as never having stopped.
    let whole = ids(&prompt, &greedy);
    let longer: Vec<u32> = prompt.iter().chain(&whole[..20]).copied().collect();
    assert_eq!(ids(&longer, &greedy)[..30], whole[20..]);
}

#[test]
fn scripts_put_tokens_where_they_are_told_to() {
    let model =
        ToyModel { at_output: BTreeMap::from([(2, 1)]), at_position: BTreeMap::from([(6, 5)]), ..ToyModel::default() };
    let sampling = Sampling { top_n_tokens: 4, ..Sampling::default() };
    let sampled = model.generate(&[30, 31, 32], &sampling, 5);
    assert_eq!((sampled[2].token_id, sampled[3].token_id), (1, 5));
    assert!(sampled[0].token_id >= 16 && sampled[4].token_id >= 16);
    for sampled in sampled {
        let top = &sampled.top_tokens;
        assert_eq!((top[0].token_id, top[0].logprob), (sampled.token_id, sampled.logprob));
        assert!(top.len() == 4 && top.windows(2).all(|pair| pair[0].logprob > pair[1].logprob));
    }
    assert!(ToyModel::prompt_logprobs(&[4]).is_empty());
    assert_eq!(ToyModel::prompt_logprobs(&[4, 5, 6]).len(), 2);
}
