//! Scores as gaps: by how much each is below the row's best one, over the temperature. A token's weight is e^-gap.

use super::noise::{Race, uniforms};
use crate::simd::{LANES, Simd, Vector, exp};

/// Values of a block: of each of its lanes the smallest gap is kept.
pub(crate) const BLOCK: usize = LANES * LANES;
/// Blocks whose weights are summed in float32 before they join a sum of float64.
const BLOCKS_OF_A_SUM: usize = 4;

/// e^-gap, and 0 where that is no normal number. NaN stays NaN.
#[inline(always)]
fn weight<V: Vector>(gap: V) -> V {
    // 1 up to a gap of 87, 0 from there on: there is no comparison of vectors.
    let counts = V::splat(1.0).min(V::zero().max(V::splat(87.0).sub(gap).mul(V::splat(1e30))));
    exp(V::zero().sub(gap)).mul(counts)
}

/// The largest value; anything where one is NaN.
#[inline(always)]
pub(crate) fn best<S: Simd>(values: &[f32]) -> f32 {
    let mut best = S::V::splat(f32::NEG_INFINITY);
    let vectors = values.chunks_exact(LANES);
    let rest = vectors.remainder();
    for vector in vectors {
        // SAFETY: a chunk has sixteen values.
        best = best.max(unsafe { S::V::load(vector.as_ptr()) });
    }
    rest.iter().copied().fold(best.maximum(), f32::max)
}

/// The first of the largest scores, and the sum of all weights if that is 0: NaN where a score is NaN, or the best one no
/// finite number.
#[inline(always)]
pub(crate) fn greatest<S: Simd>(scores: &[f32]) -> (usize, f64) {
    let (mut largest, mut first) = (f32::NEG_INFINITY, 0);
    for (at, block) in (0_usize..).step_by(BLOCK).zip(scores.chunks(BLOCK)) {
        let here = best::<S>(block);
        if here > largest {
            (largest, first) = (here, at);
        }
    }
    let mut total = 0.0;
    for stretch in scores.chunks(BLOCK * BLOCKS_OF_A_SUM) {
        let mut sum = S::V::zero();
        for part in stretch.chunks(LANES) {
            let mut values = [f32::NEG_INFINITY; LANES];
            // SAFETY: a part has sixteen values, and so has what it is filled up to.
            let scores = unsafe {
                if part.len() == LANES {
                    S::V::load(part.as_ptr())
                } else {
                    values[..part.len()].copy_from_slice(part);
                    S::V::load(values.as_ptr())
                }
            };
            sum = sum.add(weight(S::V::splat(largest).sub(scores)));
        }
        total += f64::from(sum.sum());
    }
    let place = scores[first..].iter().position(|score| *score >= largest);
    (first + place.unwrap_or(0), total)
}

/// Makes gaps of whole blocks of scores, in place. `least` receives the smallest gap of each lane of each block. The sum of
/// all weights: NaN where a score is NaN, or the best one no finite number.
#[inline(always)]
pub(crate) fn to_gaps<S: Simd>(scores: &mut [f32], best: f32, temperature: f32, least: &mut Vec<f32>) -> f64 {
    least.resize(scores.len() / LANES, 0.0);
    if temperature.to_bits() == 1.0_f32.to_bits() {
        divide::<S, false>(scores, best, temperature, least)
    } else {
        divide::<S, true>(scores, best, temperature, least)
    }
}

/// As `to_gaps`; without a division for the temperature 1.
#[inline(always)]
fn divide<S: Simd, const DIVIDES: bool>(scores: &mut [f32], best: f32, temperature: f32, least: &mut [f32]) -> f64 {
    let (best, temperature) = (S::V::splat(best), S::V::splat(temperature));
    let mut total = 0.0;
    let stretches = scores.chunks_mut(BLOCK * BLOCKS_OF_A_SUM).zip(least.chunks_mut(LANES * BLOCKS_OF_A_SUM));
    for (stretch, lows) in stretches {
        let mut sum = S::V::zero();
        for (block, lows) in stretch.chunks_exact_mut(BLOCK).zip(lows.chunks_exact_mut(LANES)) {
            let mut low = S::V::splat(f32::INFINITY);
            for vector in block.chunks_exact_mut(LANES) {
                // SAFETY: a chunk has sixteen values.
                unsafe {
                    let gap = best.sub(S::V::load(vector.as_ptr()));
                    let gap = if DIVIDES { gap.div(temperature) } else { gap };
                    gap.store(vector.as_mut_ptr());
                    low = low.min(gap);
                    sum = sum.add(weight(gap));
                }
            }
            // SAFETY: as above.
            unsafe { low.store(lows.as_mut_ptr()) };
        }
        total += f64::from(sum.sum());
    }
    total
}

/// The weights of some gaps.
#[inline(always)]
pub(crate) fn weights<S: Simd>(gaps: &[f32], out: &mut Vec<f32>) {
    out.clear();
    for part in gaps.chunks(LANES) {
        let mut values = [f32::INFINITY; LANES];
        values[..part.len()].copy_from_slice(part);
        // SAFETY: the array has sixteen values.
        unsafe { weight(S::V::load(values.as_ptr())).store(values.as_mut_ptr()) };
        out.extend_from_slice(&values[..part.len()]);
    }
}

/// The winner of a race among all tokens.
#[inline(always)]
pub(crate) fn race<S: Simd>(gaps: &[f32], keys: [u32; 2]) -> usize {
    let mut race = Race::default();
    for (first, block) in (0_usize..).step_by(BLOCK).zip(gaps.chunks_exact(BLOCK)) {
        let mut fastest = S::V::zero();
        for (at, vector) in (0_usize..).step_by(LANES).zip(block.chunks_exact(LANES)) {
            let draws = uniforms((first + at) as u32, keys);
            // SAFETY: a chunk has sixteen values, and so have the draws.
            let bound = unsafe { weight(S::V::load(vector.as_ptr())).div(S::V::load(draws.as_ptr())) };
            fastest = fastest.max(bound);
        }
        if fastest.maximum() > race.speed {
            enter::<S>(&mut race, first, block, keys);
        }
    }
    race.winner
}

/// Lets every token of a block run.
#[inline(always)]
fn enter<S: Simd>(race: &mut Race, first: usize, block: &[f32], keys: [u32; 2]) {
    for (at, vector) in (0_usize..).step_by(LANES).zip(block.chunks_exact(LANES)) {
        let draws = uniforms((first + at) as u32, keys);
        let mut weights = [0.0; LANES];
        // SAFETY: a chunk has sixteen values, and so have the weights.
        unsafe { weight(S::V::load(vector.as_ptr())).store(weights.as_mut_ptr()) };
        for lane in 0..LANES {
            race.enter(first + at + lane, weights[lane], draws[lane]);
        }
    }
}
