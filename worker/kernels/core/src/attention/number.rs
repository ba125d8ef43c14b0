//! What keys, values, queries and weights are stored as, and the product of a few rows with panels of sixteen columns.
//!
//! Everything is counted in words of 32 bits: one float32, or a pair of bfloat16 that are multiplied together. So one
//! loop serves both.

use std::ops::Range;

use crate::Dtype;
use crate::norm;
use crate::simd::{LANES, Simd, Vector};

/// The numbers of a KV pool.
pub(crate) trait Number: 'static {
    /// Sixteen words, ready to be multiplied.
    type Panel<S: Simd>: Copy;
    const DTYPE: Dtype;
    /// How many numbers a word holds.
    const PER_WORD: usize;

    /// # Safety
    /// `from` is readable for sixteen words.
    unsafe fn load<S: Simd>(from: *const u32) -> Self::Panel<S>;

    /// In each lane `plus` and the products of one word on the left with that lane's word.
    fn dot<S: Simd>(left: u32, right: Self::Panel<S>, plus: S::V) -> S::V;

    /// Rounds sixteen values and writes them as the numbers `index ..` of `to`.
    ///
    /// # Safety
    /// `to` is writable for them.
    #[inline(always)]
    unsafe fn store<S: Simd>(values: S::V, to: *mut u32, index: usize) {
        // SAFETY: the caller's promise.
        unsafe { norm::store::<S>(values, to.cast(), Self::DTYPE, index) }
    }
}

pub(crate) struct Float32;

impl Number for Float32 {
    type Panel<S: Simd> = S::V;
    const DTYPE: Dtype = Dtype::F32;
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::V::load(from.cast()) }
    }
    #[inline(always)]
    fn dot<S: Simd>(left: u32, right: S::V, plus: S::V) -> S::V {
        right.mul_add(S::V::splat(f32::from_bits(left)), plus)
    }
}

pub(crate) struct Bfloat16;

impl Number for Bfloat16 {
    type Panel<S: Simd> = S::Pairs;
    const DTYPE: Dtype = Dtype::Bf16;
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u32) -> S::Pairs {
        // SAFETY: the caller's promise.
        unsafe { S::load_pairs(from.cast()) }
    }
    #[inline(always)]
    fn dot<S: Simd>(left: u32, right: S::Pairs, plus: S::V) -> S::V {
        S::dot_pairs(left, right, plus)
    }
}

/// The left side of a product: rows of words, `stride` words apart.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) words: *const u32,
    pub(crate) stride: usize,
}

impl Left {
    /// # Safety
    /// Row `row` exists.
    #[inline(always)]
    pub(crate) unsafe fn row(self, row: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { words: unsafe { self.words.add(row * self.stride) }, ..self }
    }
}

/// The right side of a product: columns in panels of sixteen, whose words are `stride` words apart.
#[derive(Clone, Copy)]
pub(crate) struct Right<const N: usize> {
    pub(crate) panels: [*const u32; N],
    pub(crate) stride: usize,
}

/// `sums[m][n] += left row m * panel n` over the words `steps`. Each sum adds its products in the order of the steps,
/// whatever M and N are: the same numbers give the same bits in every tile. Every step asks for the next AHEAD cache lines
/// of what will be needed later, from `ahead` on, which may be anything.
///
/// # Safety
/// On both sides these words are readable, M rows of them and sixteen times N columns.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, T: Number, const M: usize, const N: usize, const AHEAD: usize>(
    sums: &mut [[S::V; N]; M],
    left: Left,
    right: Right<N>,
    steps: Range<usize>,
    ahead: *const u32,
) {
    for (done, step) in steps.enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            for line in 0..AHEAD {
                S::prefetch(ahead.wrapping_add((done * AHEAD + line) * LANES).cast());
            }
            let mut columns = [T::load::<S>(right.panels[0].add(step * right.stride)); N];
            // By index: an iterator would keep the columns out of the registers.
            let mut n = 1;
            while n < N {
                columns[n] = T::load::<S>(right.panels[n].add(step * right.stride));
                n += 1;
            }
            for (m, row) in sums.iter_mut().enumerate() {
                let word = *left.words.add(m * left.stride + step);
                for n in 0..N {
                    row[n] = T::dot::<S>(word, columns[n], row[n]);
                }
            }
        }
    }
}
