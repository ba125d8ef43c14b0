//! Chosen tokens, of every level against sorting and a race in float64.

mod support;

use millrace_kernels_core::level::Level;
use millrace_kernels_core::sampling::{Limits, Parameters, Penalties, Row, Sampler, Step, Watermark};
use millrace_kernels_core::team::Team;
use support::{Random, near};

const NONE: Limits = Limits { top_k: 0, top_p: 1.0, typical_p: 1.0, spread: f32::INFINITY };
const PLAIN: Parameters =
    Parameters { watermark: false, penalties: None, temperature: 1.0, limits: None, draws: false, top: 0 };

fn row(parameters: Parameters, keys: [u32; 2]) -> Row {
    Row { parameters, keys, previous: 0, length: 1, counts: std::ptr::null(), output_counts: std::ptr::null() }
}

fn sampler(level: Level) -> Sampler {
    Sampler::new(level, Team::new(None, 1), Watermark { largest: i32::MIN, delta: 0.0 })
}

/// A token of one row, its logprob, and the ids of its best ones.
fn sample(sampler: &Sampler, scores: &[f32], row: Row) -> (usize, f32, Vec<usize>) {
    let (mut ids, mut logprobs) = ([-1_i64], [f32::INFINITY]);
    let step = Step {
        scores: scores.as_ptr(),
        vocabulary: scores.len(),
        rows: &[row],
        ids: ids.as_mut_ptr(),
        logprobs: logprobs.as_mut_ptr(),
    };
    // SAFETY: there is one row of scores; what it is counted by is as long, where it is penalized.
    let tops = unsafe { sampler.sample(step) };
    (usize::try_from(ids[0]).expect("an id was written"), logprobs[0], tops.into_iter().map(|top| top.id).collect())
}

/// All tokens with their gaps, best first.
fn sorted(scores: &[f32], temperature: f32) -> Vec<(f32, usize)> {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut all: Vec<_> = (0..).zip(scores).map(|(id, score)| ((best - score) / temperature, id)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all
}

/// The beginning of `all` that top-k, top-p and min-p leave.
fn narrowed(mut all: Vec<(f32, usize)>, limits: Limits) -> Vec<(f32, usize)> {
    let keep = |all: &mut Vec<(f32, usize)>, bound: f32| all.retain(|(gap, _)| *gap <= bound);
    if limits.top_k > 0 && limits.top_k < all.len() {
        let bound = all[limits.top_k - 1].0;
        keep(&mut all, bound);
    }
    if limits.top_p < 1.0 {
        let wanted = f64::from(limits.top_p) * all.iter().map(|(gap, _)| f64::from(-gap).exp()).sum::<f64>();
        let mut sum = 0.0;
        let last = all.iter().find(|(gap, _)| {
            sum += f64::from(-gap).exp();
            sum >= wanted
        });
        let bound = last.map_or(f32::INFINITY, |(gap, _)| *gap);
        keep(&mut all, bound);
    }
    keep(&mut all, limits.spread);
    all
}

#[test]
fn the_best_token_and_those_beside_it_are_those_of_a_sort() {
    let mut random = Random::new();
    for level in Level::available() {
        let sampler = sampler(level);
        for _ in 0..60 {
            let (vocabulary, size) = (1 + random.below(900), [1.0, 10.0, 100.0][random.below(3)]);
            let scores = random.values(vocabulary, size);
            let limits = Limits {
                top_k: [0, 1, 7, 2000][random.below(4)],
                top_p: [1.0, 0.3, 0.9][random.below(3)],
                spread: [f32::INFINITY, 0.5, 5.0][random.below(3)],
                ..NONE
            };
            let top = 1 + random.below(5);
            let temperature = 0.5 + random.below(4) as f32 / 2.0;
            let parameters = Parameters { temperature, limits: Some(limits), top, ..PLAIN };
            let kept = narrowed(sorted(&scores, temperature), limits);
            let (id, logprob, tops) = sample(&sampler, &scores, row(parameters, [0, 0]));
            assert_eq!(id, kept[0].1);
            let mass: f64 = kept.iter().map(|(gap, _)| f64::from(-gap).exp()).sum();
            near(logprob, -mass.ln(), 1e-5, 1e-5);
            let bound = kept[top.min(kept.len()) - 1].0;
            let wanted: Vec<_> = kept.iter().filter(|(gap, _)| *gap <= bound).map(|(_, id)| *id).collect();
            assert_eq!(tops, wanted);
        }
    }
}

#[test]
fn a_drawn_token_is_the_same_whether_it_races_against_all_or_against_those_that_are_kept() {
    let mut random = Random::new();
    for level in Level::available() {
        let sampler = sampler(level);
        let scores = random.values(600, 2.0);
        for _ in 0..40 {
            let keys = [random.bits() as u32, random.bits() as u32];
            let open = sample(&sampler, &scores, row(Parameters { draws: true, ..PLAIN }, keys));
            // Nothing is cut off: more are kept than there are.
            let all = Parameters { draws: true, limits: Some(Limits { top_k: 601, ..NONE }), ..PLAIN };
            let kept = sample(&sampler, &scores, row(all, keys));
            assert_eq!(open.0, kept.0);
            near(open.1, f64::from(kept.1), 1e-5, 1e-6);
        }
    }
}

#[test]
fn penalties_come_before_everything_else() {
    for level in Level::available() {
        let sampler = sampler(level);
        let scores = [4.0, 3.0, -1.0, -1.5];
        let (counts, output_counts) = ([2.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]);
        let penalties = Penalties { repetition: 2.0, frequency: 3.0, presence: 0.5, count: 0.25 };
        let parameters = Parameters { penalties: Some(penalties), top: 4, ..PLAIN };
        let row = Row {
            length: 3,
            counts: counts.as_ptr(),
            output_counts: output_counts.as_ptr(),
            ..row(parameters, [0, 0])
        };
        // 4 / 2 - 2 - 0.5 - 0.25, 3, -1 * 2 - 1 - 0.5 - 0.25, -1.5
        let wanted = [-0.75_f64, 3.0, -3.75, -1.5];
        let (id, logprob, tops) = sample(&sampler, &scores, row);
        assert_eq!((id, tops), (1, vec![1, 0, 3, 2]));
        near(logprob, -wanted.iter().map(|score| (score - 3.0).exp()).sum::<f64>().ln(), 1e-5, 1e-6);
    }
}

#[test]
fn scores_that_are_no_numbers_are_told() {
    for level in Level::available() {
        let sampler = sampler(level);
        for (scores, is_broken) in [
            ([0.0, f32::NAN, 1.0], true),
            ([0.0, f32::INFINITY, 1.0], true),
            ([f32::NEG_INFINITY; 3], true),
            ([f32::NEG_INFINITY, f32::NEG_INFINITY, 1.0], false),
        ] {
            for limits in [None, Some(Limits { top_p: 0.9, ..NONE })] {
                let parameters = Parameters { limits, draws: true, top: 2, ..PLAIN };
                let (id, logprob, tops) = sample(&sampler, &scores, row(parameters, [1, 2]));
                assert_eq!(logprob.is_nan(), is_broken);
                assert!(if is_broken { id < 3 && tops.is_empty() } else { id == 2 && tops == [2] });
            }
        }
    }
}
