//! One strip of a weight by some rows: blocks of rows, blocks of steps, tiles, and what follows the product.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Call;
use super::format::{Format, Halves, Pairs, Singles, widen};
use super::packed::{CELLS, STRIP_BLOCKS};
use super::tile::{Ahead, SUMS, Tile, vectors};
use crate::Dtype;
use crate::norm::store;
use crate::simd::{Kernel, LANES, Simd, Vector};

/// Rows whose sums are kept at a time: 24 KiB of them.
const BLOCK_ROWS: usize = 96;
/// Steps of a strip that stay in the second-level cache while all rows of a block use them: 256 KiB.
const BLOCK_STEPS: usize = 1024;
/// With one tile of rows a strip is read once: so many bytes ahead are asked for.
const DISTANCE: usize = 4096;

/// The rows `rows` of one strip's columns.
pub(crate) struct Part<'a> {
    pub(crate) call: &'a Call<'a>,
    pub(crate) strip: usize,
    pub(crate) rows: Range<usize>,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of `Linear::apply` promises the pointers.
        unsafe {
            match self.call.linear.weight.dtype() {
                Dtype::F32 => self.compute::<S, Singles>(),
                Dtype::Bf16 if S::MULTIPLIES_BF16 => self.compute::<S, Pairs>(),
                Dtype::Bf16 => self.compute::<S, Halves>(),
            }
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn compute<S: Simd, F: Format<S>>(self) {
        let weight = &self.call.linear.weight;
        let (width, steps, start) = (weight.width(self.strip), weight.steps(), weight.strip(self.strip));
        let mut sums = MaybeUninit::<[f32; BLOCK_ROWS * SUMS]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        let mut widened = Vec::new();
        let mut ahead = self.ahead::<S>();
        let step_blocks = steps.div_ceil(BLOCK_STEPS);
        for first in self.rows.clone().step_by(BLOCK_ROWS) {
            let rows = first..self.rows.end.min(first + BLOCK_ROWS);
            for block in 0..step_blocks {
                let (from, to) = (steps * block / step_blocks, steps * (block + 1) / step_blocks);
                // SAFETY: rows and steps are within `x`.
                let (left, left_row) = unsafe { self.left::<S, F>(&rows, from..to, &mut widened) };
                let tile = Tile {
                    left,
                    left_row,
                    right: start.wrapping_add(from * width * CELLS),
                    right_step: width * CELLS,
                    steps: to - from,
                    sums,
                    fresh: block == 0,
                };
                let finish = block + 1 == step_blocks;
                for (at, height) in tiles(rows.len(), S::TILE_ROWS) {
                    let (left, sums) = (left.wrapping_add(at * left_row), sums.wrapping_add(at * SUMS));
                    // SAFETY: a tile lies within the rows, the strip and the sums.
                    unsafe {
                        Tile { left, sums, ..tile }.multiply::<S, F>(height, width, &mut ahead);
                        if finish {
                            self.finish::<S>(sums, first + at, height);
                        }
                    }
                }
            }
        }
    }

    /// What to ask memory for: this strip itself where it is read once, the next one where this one is used again.
    fn ahead<S: Simd>(&self) -> Ahead {
        let weight = &self.call.linear.weight;
        let (width, start) = (weight.width(self.strip), weight.strip(self.strip));
        let step_bytes = width * CELLS;
        let bytes = weight.steps() * step_bytes;
        let height = self.rows.len().min(S::TILE_ROWS);
        let passes = self.rows.len().div_ceil(S::TILE_ROWS) * width.div_ceil(vectors::<S>(height));
        let distance = if passes == 1 { DISTANCE } else { bytes };
        Ahead::new(start.wrapping_add(distance), bytes, passes, step_bytes)
    }

    /// Where the rows' values for the first of `steps` begin, and the bytes from row to row.
    #[inline(always)]
    unsafe fn left<S: Simd, F: Format<S>>(
        &self,
        rows: &Range<usize>,
        steps: Range<usize>,
        widened: &mut Vec<f32>,
    ) -> (*const u8, usize) {
        let weight = &self.call.linear.weight;
        let row_bytes = weight.inputs() * weight.dtype().bytes();
        let at = self.call.x.wrapping_add(rows.start * row_bytes + steps.start * 4);
        if !F::WIDENS {
            return (at, row_bytes);
        }
        let count = 2 * steps.len();
        widened.resize(rows.len() * count, 0.0);
        let to = widened.as_mut_ptr();
        for row in 0..rows.len() {
            // SAFETY: within `x`, and within what was just made.
            unsafe { widen::<S>(at.add(row * row_bytes).cast(), to.add(row * count), count) };
        }
        (to.cast_const().cast(), count * 4)
    }

    /// Bias, activation, gate; writes the columns that exist.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, sums: *const f32, first: usize, height: usize) {
        let linear = self.call.linear;
        let (epilogue, columns) = (linear.epilogue, linear.columns());
        let width = linear.weight.width(self.strip);
        let bias = linear.bias[self.strip * SUMS..][..width * LANES].as_ptr();
        let activated = |x: S::V| epilogue.activation.map_or(x, |activation| activation.of(x));
        // Sums of a gate and of what it gates lie side by side.
        let group = if epilogue.gated { 2 } else { 1 };
        for row in 0..height {
            let out = self.call.out.wrapping_add((first + row) * columns * epilogue.out_dtype.bytes());
            for block in (0..width).step_by(group) {
                let column = (self.strip * STRIP_BLOCKS + block) / group * LANES;
                // SAFETY: the sums have `width` blocks, as has the bias; `out` has the row's columns.
                unsafe {
                    let sum = |block: usize| {
                        S::V::load(sums.add(row * SUMS + block * LANES)).add(S::V::load(bias.add(block * LANES)))
                    };
                    let mut y = activated(sum(block));
                    if epilogue.gated {
                        y = y.mul(sum(block + 1));
                    }
                    write::<S>(y, out, epilogue.out_dtype, column..columns);
                }
            }
        }
    }
}

/// Writes as many of sixteen values as there are columns.
///
/// # Safety
/// `row` is writable for `columns.end` values.
#[inline(always)]
unsafe fn write<S: Simd>(y: S::V, row: *mut u8, dtype: Dtype, columns: Range<usize>) {
    // SAFETY: the caller's promise; the padded form has room for a whole vector.
    unsafe {
        if columns.len() >= LANES {
            store::<S>(y, row, dtype, columns.start);
        } else {
            let mut padded = [0_u8; 4 * LANES];
            store::<S>(y, padded.as_mut_ptr(), dtype, 0);
            let to = row.wrapping_add(columns.start * dtype.bytes());
            padded.as_ptr().copy_to_nonoverlapping(to, columns.len() * dtype.bytes());
        }
    }
}

/// Splits `rows` into tiles of at most `most` rows, as even as can be: the first row of each and their number.
#[inline(always)]
fn tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    (0..count).map(move |tile| {
        let (first, end) = (rows * tile / count, rows * (tile + 1) / count);
        (first, end - first)
    })
}
