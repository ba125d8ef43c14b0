//! Online softmax (Milakov and Gimelshein 2018): the sums of weights and of weighted values of some query rows so far,
//! relative to the largest score so far.

use crate::simd::{LANES, Simd, Vector, exp};

/// Below every score: the largest of none.
pub(crate) const FLOOR: f32 = -1e30;

/// e^x, and exactly 0 for x below -87 (where `exp` stays at e^-87): what is not seen weighs nothing.
#[inline(always)]
pub(crate) fn weight<V: Vector>(x: V) -> V {
    exp(x).sub(exp(V::splat(f32::NEG_INFINITY)))
}

/// Of `rows` query rows: the largest score [rows], the weights' sums [rows][LANES] (lane i adds up keys i, i + 16, ...)
/// and the weighted values' sums [rows][head_dim].
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) largest: *mut f32,
    pub(crate) weights: *mut f32,
    pub(crate) values: *mut f32,
    head_dim: usize,
}

impl Sums {
    /// How many values the sums take; a multiple of the lanes.
    pub(crate) const fn len(rows: usize, head_dim: usize) -> usize {
        rows.next_multiple_of(LANES) + rows * (LANES + head_dim)
    }

    /// # Safety
    /// `Self::len(rows, head_dim)` values are there.
    pub(crate) unsafe fn at(memory: *mut f32, rows: usize, head_dim: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let weights = memory.add(rows.next_multiple_of(LANES));
            Self { largest: memory, weights, values: weights.add(rows * LANES), head_dim }
        }
    }

    /// Sums of nothing.
    ///
    /// # Safety
    /// As in `at`.
    #[inline(always)]
    pub(crate) unsafe fn clear<S: Simd>(self, rows: usize) {
        // SAFETY: the caller's promise; all parts are multiples of the lanes.
        unsafe {
            for i in (0..rows).step_by(LANES) {
                S::V::splat(FLOOR).store(self.largest.add(i));
            }
            for i in (0..rows * (LANES + self.head_dim)).step_by(LANES) {
                S::V::zero().store(self.weights.add(i));
            }
        }
    }

    /// Adds the sums of later keys. With nothing on one side the other side's bits stay as they are.
    ///
    /// # Safety
    /// Both have `rows` rows of the same head size and do not overlap.
    #[inline(always)]
    pub(crate) unsafe fn join<S: Simd>(self, later: Self, rows: usize) {
        for row in 0..rows {
            // SAFETY: the caller's promise.
            unsafe {
                let (old, new) = (*self.largest.add(row), *later.largest.add(row));
                let largest = if new > old { new } else { old };
                let (keep, take) = (weight(S::V::splat(old - largest)), weight(S::V::splat(new - largest)));
                *self.largest.add(row) = largest;
                let at = row * LANES;
                blend(self.weights.add(at), later.weights.add(at), keep, take);
                for i in (0..self.head_dim).step_by(LANES) {
                    let at = row * self.head_dim + i;
                    blend(self.values.add(at), later.values.add(at), keep, take);
                }
            }
        }
    }

    /// What a row's values are divided by; `sink` is the score of a key without a value.
    ///
    /// # Safety
    /// The row exists.
    #[inline(always)]
    pub(crate) unsafe fn divisor<S: Simd>(self, row: usize, sink: Option<f32>) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = S::V::load(self.weights.add(row * LANES)).sum();
            sink.map_or(sum, |sink| sum + (sink - *self.largest.add(row)).exp())
        }
    }
}

/// `to = to * keep + from * take`.
///
/// # Safety
/// Both are good for sixteen values.
#[inline(always)]
unsafe fn blend<V: Vector>(to: *mut f32, from: *const f32, keep: V, take: V) {
    // SAFETY: the caller's promise.
    unsafe { V::load(to).mul(keep).add(V::load(from).mul(take)).store(to) }
}
