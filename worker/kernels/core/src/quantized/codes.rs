//! How a level multiplies codes: they become numbers in registers, or have become them before.

use std::marker::PhantomData;

use super::packed::Codes;
use crate::linear::format::{Format, Pairs, Singles};
use crate::linear::packed::CELLS;
use crate::simd::{Simd, Vector};

/// A way of multiplying (`Format`) that codes can be made into. What it multiplies by is 4 bytes of a row.
pub(crate) trait ByCodes<S: Simd>: Format<S> {
    /// Inputs that are multiplied at once: one float32, or a pair of bfloat16.
    const INPUTS: usize;
    /// What is taken from the codes of a block, for each output.
    type Zeros: Copy;

    /// # Safety
    /// `cell` is readable for 64 bytes; there is such a part of it.
    unsafe fn four(cell: *const u8, part: usize) -> Self::Block;
    /// # Safety
    /// As `four`.
    unsafe fn four_less(cell: *const u8, part: usize, zeros: Self::Zeros) -> Self::Block;
    /// # Safety
    /// As `four`.
    unsafe fn eight(cell: *const u8, part: usize, numbers: S::Bytes) -> Self::Block;
    /// # Safety
    /// `from` is readable for a byte for each output.
    unsafe fn zeros(from: *const u8) -> Self::Zeros;
}

impl<S: Simd> ByCodes<S> for Singles {
    const INPUTS: usize = 1;
    type Zeros = S::V;

    #[inline(always)]
    unsafe fn four(cell: *const u8, part: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::nibbles(cell, part) }
    }
    #[inline(always)]
    unsafe fn four_less(cell: *const u8, part: usize, zeros: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::nibbles(cell, part) }.sub(zeros)
    }
    #[inline(always)]
    unsafe fn eight(cell: *const u8, part: usize, _numbers: S::Bytes) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::bytes(cell, part) }
    }
    #[inline(always)]
    unsafe fn zeros(from: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::V::load_i8(from.cast()) }
    }
}

impl<S: Simd> ByCodes<S> for Pairs {
    const INPUTS: usize = 2;
    type Zeros = S::Words;

    #[inline(always)]
    unsafe fn four(cell: *const u8, part: usize) -> S::Pairs {
        // SAFETY: the caller's promise.
        unsafe { S::nibble_pairs(cell, part) }
    }
    #[inline(always)]
    unsafe fn four_less(cell: *const u8, part: usize, zeros: S::Words) -> S::Pairs {
        // SAFETY: the caller's promise.
        unsafe { S::nibble_pairs_less(cell, part, zeros) }
    }
    #[inline(always)]
    unsafe fn eight(cell: *const u8, part: usize, numbers: S::Bytes) -> S::Pairs {
        // SAFETY: the caller's promise.
        unsafe { S::byte_pairs(cell, part, numbers) }
    }
    #[inline(always)]
    unsafe fn zeros(from: *const u8) -> S::Words {
        // SAFETY: the caller's promise.
        unsafe { S::words(from) }
    }
}

/// Where a tile gets its blocks from.
pub(crate) trait Source<S: Simd> {
    /// What the blocks are multiplied as.
    type By: ByCodes<S>;
    /// What codes are looked up in: registers.
    type Numbers: Copy;
    /// What is taken from the codes of a block in a group.
    type Zeros: Copy;
    /// Blocks that a cell gives.
    const PARTS: usize;
    /// Whether weights with one group have tiles of their own.
    const TALL: bool = false;
    /// Whether the weight itself is read; else what has been decoded.
    const PACKED: bool = true;
    /// Bytes from step to step.
    const STEP: usize = CELLS;

    fn numbers() -> Self::Numbers;
    /// # Safety
    /// `from` is readable for a byte for each output, where codes have zeros.
    unsafe fn zeros(from: *const u8) -> Self::Zeros;
    /// # Safety
    /// `cell` is readable for 64 bytes; `part` is below `PARTS`.
    unsafe fn block(
        cell: *const u8,
        part: usize,
        numbers: Self::Numbers,
        zeros: Self::Zeros,
    ) -> <Self::By as Format<S>>::Block;
}

/// What has been decoded into memory, all parts of a cell one after the other.
pub(crate) struct Decoded<Q>(PhantomData<Q>);
/// Cells of 4-bit codes.
pub(crate) struct Four<F>(PhantomData<F>);
/// Cells of 4-bit codes that have zeros.
pub(crate) struct FourLess<F>(PhantomData<F>);
/// Cells of 8-bit codes.
pub(crate) struct Eight<F>(PhantomData<F>);

impl<S: Simd, F: ByCodes<S>> Source<S> for Four<F> {
    type By = F;
    type Numbers = ();
    type Zeros = ();
    const PARTS: usize = Codes::Four.per_cell() / F::INPUTS;

    #[inline(always)]
    fn numbers() {}
    #[inline(always)]
    unsafe fn zeros(_from: *const u8) {}
    #[inline(always)]
    unsafe fn block(cell: *const u8, part: usize, (): (), (): ()) -> F::Block {
        // SAFETY: the caller's promise.
        unsafe { F::four(cell, part) }
    }
}

impl<S: Simd, F: ByCodes<S>> Source<S> for FourLess<F> {
    type By = F;
    type Numbers = ();
    type Zeros = F::Zeros;
    const PARTS: usize = Codes::Four.per_cell() / F::INPUTS;

    #[inline(always)]
    fn numbers() {}
    #[inline(always)]
    unsafe fn zeros(from: *const u8) -> F::Zeros {
        // SAFETY: the caller's promise.
        unsafe { F::zeros(from) }
    }
    #[inline(always)]
    unsafe fn block(cell: *const u8, part: usize, (): (), zeros: F::Zeros) -> F::Block {
        // SAFETY: the caller's promise.
        unsafe { F::four_less(cell, part, zeros) }
    }
}

impl<S: Simd, F: ByCodes<S>> Source<S> for Eight<F> {
    type By = F;
    type Numbers = S::Bytes;
    type Zeros = ();
    const PARTS: usize = Codes::Eight.per_cell() / F::INPUTS;
    const TALL: bool = true;

    #[inline(always)]
    fn numbers() -> S::Bytes {
        S::bytes_to_pairs()
    }
    #[inline(always)]
    unsafe fn zeros(_from: *const u8) {}
    #[inline(always)]
    unsafe fn block(cell: *const u8, part: usize, numbers: S::Bytes, (): ()) -> F::Block {
        // SAFETY: the caller's promise.
        unsafe { F::eight(cell, part, numbers) }
    }
}

impl<S: Simd, Q: Source<S>> Source<S> for Decoded<Q> {
    type By = Q::By;
    type Numbers = ();
    type Zeros = ();
    const PARTS: usize = Q::PARTS;
    const TALL: bool = Q::TALL;
    const PACKED: bool = false;
    const STEP: usize = Q::PARTS * CELLS;

    #[inline(always)]
    fn numbers() {}
    #[inline(always)]
    unsafe fn zeros(_from: *const u8) {}
    #[inline(always)]
    unsafe fn block(cell: *const u8, part: usize, (): (), (): ()) -> <Q::By as Format<S>>::Block {
        // SAFETY: the caller's promise.
        unsafe { Q::By::load(cell.add(part * CELLS)) }
    }
}

/// Sixteen decoded numbers, or pairs of them, in memory.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Cell(#[expect(dead_code)] [u8; CELLS]);

impl Cell {
    /// # Safety
    /// `to` is writable for a cell.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd, F: Format<S>>(to: *mut Self, block: F::Block) {
        debug_assert!(size_of::<F::Block>() == CELLS, "only what is multiplied as it is has this size");
        // SAFETY: the caller's promise.
        unsafe { to.cast::<F::Block>().write_unaligned(block) }
    }
}
