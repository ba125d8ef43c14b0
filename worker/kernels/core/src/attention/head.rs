//! A head of a token on its way from the projection: normalized, rotated.

use super::number::Number;
use crate::Dtype;
use crate::norm::load;
use crate::simd::{LANES, Simd, Vector};

/// Heads of up to this many dimensions are computed.
pub const MAX_HEAD_DIM: usize = 256;

/// Which dimensions a rotary embedding (Su et al. 2021) turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// i and i + half the rotated dimensions.
    Halves,
    /// 2 i and 2 i + 1.
    Neighbours,
}

/// An `RMSNorm` of each head of q and k, before the rotation.
#[derive(Clone, Debug)]
pub struct HeadNorm {
    pub eps: f32,
    /// For each head, those of q and then those of k, `head_dim` values.
    pub weight: Vec<f32>,
}

/// Cosines and sines of one token.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// As many as there are pairs.
    pub(crate) cos: *const f32,
    pub(crate) sin: *const f32,
    pub(crate) pairs: usize,
}

/// One head's values in float32, and its numbers as they are stored.
#[repr(align(64))]
pub(crate) struct Head {
    pub(crate) values: [f32; MAX_HEAD_DIM],
    pub(crate) words: [u32; MAX_HEAD_DIM],
}

impl Head {
    pub(crate) const fn new() -> Self {
        Self { values: [0.0; MAX_HEAD_DIM], words: [0; MAX_HEAD_DIM] }
    }

    /// # Safety
    /// `size`, a multiple of the lanes, values of `dtype` are readable from number `index` on.
    #[inline(always)]
    pub(crate) unsafe fn read<S: Simd>(&mut self, from: *const u8, dtype: Dtype, index: usize, size: usize) {
        for i in (0..size).step_by(LANES) {
            // SAFETY: the caller's promise; a head has at most MAX_HEAD_DIM values.
            unsafe { load::<S>(from, dtype, index + i).store(self.values.as_mut_ptr().add(i)) }
        }
    }

    /// x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
    ///
    /// # Safety
    /// `weight` has `size` values, a multiple of the lanes.
    #[inline(always)]
    pub(crate) unsafe fn normalize<S: Simd>(&mut self, eps: f32, weight: *const f32, size: usize) {
        let x = self.values.as_mut_ptr();
        // SAFETY: the caller's promise; a head has at most MAX_HEAD_DIM values.
        unsafe {
            let mut squares = S::V::zero();
            for i in (0..size).step_by(LANES) {
                let value = S::V::load(x.add(i));
                squares = value.mul_add(value, squares);
            }
            let factor = S::V::splat(1.0 / (squares.sum() / size as f32 + eps).sqrt());
            for i in (0..size).step_by(LANES) {
                S::V::load(x.add(i)).mul(factor).mul(S::V::load(weight.add(i))).store(x.add(i));
            }
        }
    }

    /// Turns the leading dimensions, two by two.
    ///
    /// # Safety
    /// `turn` is readable, and has at most half as many pairs as the head has dimensions.
    #[inline(always)]
    pub(crate) unsafe fn rotate<S: Simd>(&mut self, turn: Turn, pairs: Pairs) {
        let x = self.values.as_mut_ptr();
        let whole = if pairs == Pairs::Halves { turn.pairs - turn.pairs % LANES } else { 0 };
        // SAFETY: the caller's promise.
        unsafe {
            for i in (0..whole).step_by(LANES) {
                let (cos, sin) = (S::V::load(turn.cos.add(i)), S::V::load(turn.sin.add(i)));
                let (first, second) = (S::V::load(x.add(i)), S::V::load(x.add(i + turn.pairs)));
                first.mul(cos).sub(second.mul(sin)).store(x.add(i));
                second.mul(cos).add(first.mul(sin)).store(x.add(i + turn.pairs));
            }
            for i in whole..turn.pairs {
                let (cos, sin) = (*turn.cos.add(i), *turn.sin.add(i));
                let (at, other) = match pairs {
                    Pairs::Halves => (i, i + turn.pairs),
                    Pairs::Neighbours => (2 * i, 2 * i + 1),
                };
                let (first, second) = (*x.add(at), *x.add(other));
                *x.add(at) = first * cos - second * sin;
                *x.add(other) = second * cos + first * sin;
            }
        }
    }

    /// Rounds the head and writes it where a product reads it from.
    ///
    /// # Safety
    /// `to` is writable for `size` numbers, a multiple of the lanes.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd, T: Number>(&self, to: *mut u32, size: usize) {
        for i in (0..size).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe { T::store::<S>(S::V::load(self.values.as_ptr().add(i)), to, i) }
        }
    }

    /// Rounds the head; answers its words.
    ///
    /// # Safety
    /// `size` is a multiple of the lanes.
    #[inline(always)]
    pub(crate) unsafe fn round<S: Simd, T: Number>(&mut self, size: usize) -> *const u32 {
        let words = self.words.as_mut_ptr();
        // SAFETY: a head has at most MAX_HEAD_DIM values.
        unsafe { self.store::<S, T>(words, size) }
        words
    }
}
