//! The innermost loop: a few rows by a few blocks, with every sum in a register.

use super::format::Format;
use super::packed::{CELLS, STRIP_BLOCKS};
use super::panel::Left;
use crate::simd::{LANES, Simd, Vector};

/// Values from one row of sums to the next: a strip's columns.
pub(crate) const SUMS: usize = STRIP_BLOCKS * LANES;
/// Steps between two requests for memory that will be needed later.
const STRIDE: usize = 4;

/// Some rows, some blocks of a strip, some of its steps.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The rows' values for the first step.
    pub(crate) left: Left,
    /// The strip's first block at the first step, and the bytes from step to step.
    pub(crate) right: *const u8,
    pub(crate) right_step: usize,
    pub(crate) steps: usize,
    /// The sums, `SUMS` from row to row.
    pub(crate) sums: *mut f32,
    /// Whether the sums begin at zero; else they continue from what is there.
    pub(crate) fresh: bool,
}

/// Memory that will be needed later: cache lines are asked for while a tile computes.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) line: *const u8,
    pub(crate) end: *const u8,
    /// How many lines in `STRIDE` steps.
    pub(crate) lines: usize,
}

impl Ahead {
    /// Asks for all lines `from .. from + bytes`, evenly over `passes` times as many steps as it takes to compute them.
    pub(crate) fn new(from: *const u8, bytes: usize, passes: usize, step_bytes: usize) -> Self {
        let lines = (step_bytes / CELLS * STRIDE).div_ceil(passes);
        Self { line: from, end: from.wrapping_add(bytes), lines }
    }
}

impl Tile {
    /// Multiplies `rows` rows by `width` blocks of the strip.
    ///
    /// # Safety
    /// The pointers are good for it. `rows` is at most `S::TILE_ROWS`, `width` at most `vectors(rows)` and a power of 2.
    #[inline(always)]
    pub(crate) unsafe fn multiply<S: Simd, F: Format<S>>(self, rows: usize, width: usize, ahead: &mut Ahead) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.left.row == 0 {
                self.shaped::<S, F, true>(rows, width, ahead);
            } else {
                self.shaped::<S, F, false>(rows, width, ahead);
            }
        }
    }

    #[inline(always)]
    #[rustfmt::skip]
    unsafe fn shaped<S: Simd, F: Format<S>, const COPY: bool>(self, rows: usize, width: usize, ahead: &mut Ahead) {
        macro_rules! tiles {
            ($(($rows:literal, $width:literal))*) => {
                match (rows, width) {
                    $(($rows, $width) if fits::<S>($rows, $width) => {
                        // SAFETY: the caller's promise.
                        unsafe { self.run::<S, F, $rows, $width, COPY>(ahead) }
                    })*
                    _ => unreachable!("{rows} rows by {width} blocks is no tile of this level"),
                }
            };
        }
        tiles!(
            (1, 4) (2, 4) (3, 4) (4, 4) (5, 4) (6, 4)
            (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2)
            (1, 1) (2, 1) (3, 1) (4, 1)
        );
    }

    #[inline(always)]
    unsafe fn run<S: Simd, F: Format<S>, const M: usize, const N: usize, const COPY: bool>(self, ahead: &mut Ahead) {
        let mut sums = [[S::V::zero(); N]; M];
        let (mut left, mut right) = (self.left.at, self.right);
        // SAFETY: the caller's promise, for all of the block.
        unsafe {
            if !self.fresh {
                for (m, row) in sums.iter_mut().enumerate() {
                    for (n, sum) in row.iter_mut().enumerate() {
                        *sum = S::V::load(self.sums.add(m * SUMS + n * LANES));
                    }
                }
            }
            let lines = if ahead.line < ahead.end { ahead.lines } else { 0 };
            for _ in 0..self.steps / STRIDE {
                for _ in 0..lines {
                    S::prefetch(ahead.line);
                    ahead.line = ahead.line.wrapping_add(CELLS);
                }
                for _ in 0..STRIDE {
                    self.step::<S, F, M, N, COPY>(&mut sums, left, right);
                    left = left.add(if COPY { M * F::LEFT } else { F::LEFT });
                    right = right.add(self.right_step);
                }
            }
            for _ in 0..self.steps % STRIDE {
                self.step::<S, F, M, N, COPY>(&mut sums, left, right);
                left = left.add(if COPY { M * F::LEFT } else { F::LEFT });
                right = right.add(self.right_step);
            }
            for (m, row) in sums.iter().enumerate() {
                for (n, sum) in row.iter().enumerate() {
                    sum.store(self.sums.add(m * SUMS + n * LANES));
                }
            }
        }
    }

    /// One step. A function, not a closure: closures are not always inlined, and then lack the level's instructions.
    #[inline(always)]
    unsafe fn step<S: Simd, F: Format<S>, const M: usize, const N: usize, const COPY: bool>(
        &self,
        sums: &mut [[S::V; N]; M],
        left: *const u8,
        right: *const u8,
    ) {
        // SAFETY: the caller's promise, for one step.
        unsafe {
            let mut blocks = [F::load(right); N];
            for (n, block) in blocks.iter_mut().enumerate().skip(1) {
                *block = F::load(right.add(n * CELLS));
            }
            for (m, row) in sums.iter_mut().enumerate() {
                let left = left.add(if COPY { m * F::LEFT } else { m * self.left.row });
                for (n, sum) in row.iter_mut().enumerate() {
                    *sum = F::multiply(left, blocks[n], *sum);
                }
            }
        }
    }
}

/// How many blocks a tile of so many rows is wide: twice as many where half as many rows leave registers free.
#[inline(always)]
pub(crate) fn vectors<S: Simd>(rows: usize) -> usize {
    if 2 * rows <= S::TILE_ROWS { 2 * S::TILE_VECTORS } else { S::TILE_VECTORS }
}

/// Whether a level has this tile: its sums stay in registers. Known at compile time.
#[inline(always)]
pub(crate) const fn fits<S: Simd>(rows: usize, width: usize) -> bool {
    rows <= S::TILE_ROWS && rows * width <= S::TILE_ROWS * S::TILE_VECTORS && width <= 2 * S::TILE_VECTORS
}
