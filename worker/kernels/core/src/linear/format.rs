//! How a level multiplies the cells of a packed weight.

use crate::simd::{Simd, Vector};

/// One way of multiplying: a step of a block by what a row has for that step.
pub(crate) trait Format<S: Simd> {
    /// A step of a block, in registers.
    type Block: Copy;
    /// Bytes of one row's values for a step.
    const LEFT: usize;
    /// Whether rows of bfloat16 have to be widened to float32 first: then a step is two values.
    const WIDENS: bool = false;

    /// # Safety
    /// `from` is readable for 64 bytes.
    unsafe fn load(from: *const u8) -> Self::Block;
    /// `plus + left * block`, in every lane.
    ///
    /// # Safety
    /// `left` is readable for `LEFT` bytes.
    unsafe fn multiply(left: *const u8, block: Self::Block, plus: S::V) -> S::V;
}

/// float32 by float32.
pub(crate) struct Singles;

impl<S: Simd> Format<S> for Singles {
    type Block = S::V;
    const LEFT: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::V::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply(left: *const u8, block: S::V, plus: S::V) -> S::V {
        // SAFETY: the caller's promise.
        let left = unsafe { left.cast::<f32>().read_unaligned() };
        block.mul_add(S::V::splat(left), plus)
    }
}

/// Pairs of bfloat16, by the CPU's own instruction.
pub(crate) struct Pairs;

impl<S: Simd> Format<S> for Pairs {
    type Block = S::Pairs;
    const LEFT: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> S::Pairs {
        // SAFETY: the caller's promise.
        unsafe { S::load_pairs(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply(left: *const u8, block: S::Pairs, plus: S::V) -> S::V {
        // SAFETY: the caller's promise.
        let left = unsafe { left.cast::<u32>().read_unaligned() };
        S::dot_pairs(left, block, plus)
    }
}

/// Pairs of bfloat16 as float32, where the CPU cannot multiply them.
pub(crate) struct Halves;

impl<S: Simd> Format<S> for Halves {
    type Block = (S::V, S::V);
    const LEFT: usize = 8;
    const WIDENS: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::load_halves(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply(left: *const u8, block: (S::V, S::V), plus: S::V) -> S::V {
        // SAFETY: the caller's promise.
        let [first, second] = unsafe { left.cast::<[f32; 2]>().read_unaligned() };
        block.1.mul_add(S::V::splat(second), block.0.mul_add(S::V::splat(first), plus))
    }
}
