//! One row, from its scores to its token.

use std::ops::Range;
use std::slice;

use super::gaps::{self, BLOCK, best, greatest, to_gaps};
use super::narrowing::narrow;
use super::noise::{Race, uniform};
use super::scores::Watermark;
use super::shells::Found;
use super::{Row, Step, Top};
use crate::simd::{Kernel, Simd};

/// Chooses the token of one row. The answer: its best tokens, where it asks for them.
pub(crate) struct Choose<'a> {
    pub(crate) step: &'a Step<'a>,
    pub(crate) row: usize,
    pub(crate) watermark: Watermark,
    pub(crate) found: &'a mut Found,
}

/// What is chosen from: tokens in their order, and the sum of their weights.
struct Kept {
    places: Range<usize>,
    mass: f64,
}

impl Kernel for Choose<'_> {
    type Output = Vec<Top>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<Top> {
        let row = self.step.rows[self.row];
        if row.parameters.is_plain() {
            // SAFETY: the caller of `Sampler::sample` promises the pointers.
            unsafe { plain::<S>(self.step, self.row) };
            return Vec::new();
        }
        // SAFETY: the caller of `Sampler::sample` promises the pointers.
        unsafe { read_scores::<S>(self.step, self.row, self.watermark, self.found) };
        // A best score of -0 would make gaps of -0, which are not in the order of their bits.
        let best = best::<S>(&self.found.values) + 0.0;
        let found = self.found;
        found.total = to_gaps::<S>(&mut found.values, best, row.parameters.temperature, &mut found.least);
        if found.total.is_nan() {
            // SAFETY: the row is one of the step's.
            unsafe { self.step.write(self.row, 0, f32::NAN) };
            return Vec::new();
        }
        found.clear();
        let (kept, token) = match row.parameters.limits {
            None => open::<S>(found, row),
            Some(limits) => {
                let places = loop {
                    found.grow::<S>();
                    if let Some(places) = narrow(found, limits) {
                        break places;
                    }
                };
                let kept = Kept { mass: found.sums[places.end] - found.sums[places.start], places };
                let place = if row.parameters.draws { draw(found, &kept.places, row.keys) } else { kept.places.start };
                (kept, found.ids[place])
            }
        };
        let logprob = |gap: f32| (-f64::from(gap) - kept.mass.ln()) as f32;
        // SAFETY: the row is one of the step's.
        unsafe { self.step.write(self.row, token, logprob(found.values[token])) };
        let reported = reported(found, &kept.places, row.parameters.top);
        let tops =
            reported.map(|place| Top { row: self.row, id: found.ids[place], logprob: logprob(found.gaps[place]) });
        tops.collect()
    }
}

/// A row that asks for nothing: its best score is all that is looked for.
///
/// # Safety
/// The step's pointers are good.
#[inline(always)]
unsafe fn plain<S: Simd>(step: &Step<'_>, at: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let (id, total) = greatest::<S>(slice::from_raw_parts(step.scores(at), step.vocabulary));
        step.write(at, id, -total.ln() as f32);
    }
}

/// The row's scores with what its client and the watermark make of them, in whole blocks.
///
/// # Safety
/// The pointers of the step and of its row are good.
#[inline(always)]
unsafe fn read_scores<S: Simd>(step: &Step<'_>, at: usize, watermark: Watermark, found: &mut Found) {
    let (row, vocabulary) = (&step.rows[at], step.vocabulary);
    found.values.clear();
    // SAFETY: the caller's promise.
    found.values.extend_from_slice(unsafe { slice::from_raw_parts(step.scores(at), vocabulary) });
    if row.parameters.watermark {
        watermark.add(&mut found.values, row.previous);
    }
    if let Some(penalties) = row.parameters.penalties {
        // SAFETY: the caller's promise.
        let (counts, output_counts) = unsafe {
            (slice::from_raw_parts(row.counts, vocabulary), slice::from_raw_parts(row.output_counts, vocabulary))
        };
        penalties.subtract::<S>(&mut found.values, counts, output_counts, row.length);
    }
    found.values.resize(vocabulary.next_multiple_of(BLOCK), f32::NEG_INFINITY);
}

/// Chooses among all tokens, and finds as many of the best as are asked for.
#[inline(always)]
fn open<S: Simd>(found: &mut Found, row: Row) -> (Kept, usize) {
    if !row.parameters.draws || row.parameters.top > 0 {
        // The best ones: their gap is 0.
        found.grow_to::<S>(0.0);
    }
    while found.ids.len() < row.parameters.top && !found.is_complete() {
        found.grow::<S>();
    }
    let token = if row.parameters.draws { gaps::race::<S>(&found.values, row.keys) } else { found.ids[0] };
    (Kept { places: 0..found.ids.len(), mass: found.total }, token)
}

/// The place of the winner of a race.
#[inline(always)]
fn draw(found: &Found, places: &Range<usize>, keys: [u32; 2]) -> usize {
    let mut race = Race { winner: places.start, speed: 0.0 };
    for place in places.clone() {
        race.enter(place, found.weights[place], uniform(found.ids[place] as u32, keys));
    }
    race.winner
}

/// The places of the best `wanted` tokens, and of those that are as good as the last of them.
#[inline(always)]
fn reported(found: &Found, kept: &Range<usize>, wanted: usize) -> Range<usize> {
    if wanted == 0 {
        return 0..0;
    }
    let least = found.gaps[(kept.start + wanted).min(kept.end).max(1) - 1];
    kept.start..found.gaps.partition_point(|gap| *gap <= least)
}
