//! One strip of a weight by some rows: blocks of rows, blocks of steps, tiles, and what follows the product.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Call;
use super::format::{Format, Halves, Pairs, Singles};
use super::packed::CELLS;
use super::panel::{Input, Panel};
use super::tile::{Ahead, SUMS, Tile, vectors};
use crate::Dtype;
use crate::simd::{Kernel, LANES, Simd};

/// Rows whose sums are kept at a time: 24 KiB of them.
pub(crate) const BLOCK_ROWS: usize = 96;
/// Steps of a strip that stay in the second-level cache while all rows of a block use them: 256 KiB.
const BLOCK_STEPS: usize = 1024;
/// How far ahead of a single row memory is asked for.
const DISTANCE: usize = 4096;

/// The rows `rows`, at most `BLOCK_ROWS`, of the columns of some strips.
pub(crate) struct Part<'a> {
    pub(crate) call: &'a Call<'a>,
    pub(crate) panel: &'a mut Panel,
    pub(crate) rows: Range<usize>,
    pub(crate) strips: Range<usize>,
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
        let input = Input { at: self.call.x, row_bytes: weight.inputs() * weight.dtype().bytes() };
        // SAFETY: the rows are within `x`.
        unsafe { self.panel.take::<S, F>(input, self.rows.clone()) };
        let mut sums = MaybeUninit::<[f32; BLOCK_ROWS * SUMS]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        let height = self.rows.len().div_ceil(self.rows.len().div_ceil(S::TILE_ROWS));
        let finish = self.call.linear.finish(self.call.out);
        for strip in self.strips.clone() {
            let (blocks, steps, start) = (weight.width(strip), weight.steps(), weight.strip(strip));
            let width = vectors::<S>(height).min(blocks);
            let mut ahead = self.ahead::<S>(strip, blocks / width);
            let step_blocks = steps.div_ceil(BLOCK_STEPS);
            for block in 0..step_blocks {
                let (from, to) = (steps * block / step_blocks, steps * (block + 1) / step_blocks);
                for column in (0..blocks).step_by(width) {
                    for (first, height) in tiles(self.rows.len(), S::TILE_ROWS) {
                        let tile = Tile {
                            left: self.panel.tile::<S, F>(input, first, height, from),
                            right: start.wrapping_add((from * blocks + column) * CELLS),
                            right_step: blocks * CELLS,
                            steps: to - from,
                            sums: sums.wrapping_add(first * SUMS + column * LANES),
                            fresh: block == 0,
                        };
                        // Results leave one tile at a time: the memory takes them while the next one computes.
                        let done = block + 1 == step_blocks && (column + width).is_multiple_of(2);
                        let columns = (column + width).saturating_sub(width.max(2))..column + width;
                        // SAFETY: a tile lies within the rows, the strip and the sums.
                        unsafe {
                            tile.multiply::<S, F>(height, width, &mut ahead);
                            if done {
                                let rows = self.rows.start + first..self.rows.start + first + height;
                                finish.rows::<S>(sums.add(first * SUMS), rows, (strip, blocks), columns);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Memory to ask for during this strip. Where tiles read a strip several times, it is the next strip (on Zen 4: 211
    /// against 167 GF/s at 16 rows). One row only is faster than the hardware reads ahead (38 against 30 GB/s); a few are
    /// not, and requests would hold it up (20 against 32 GB/s).
    #[inline(always)]
    fn ahead<S: Simd>(&self, strip: usize, passes: usize) -> Ahead {
        let weight = &self.call.linear.weight;
        let step_bytes = weight.width(strip) * CELLS;
        let bytes = weight.steps() * step_bytes;
        let passes = passes * self.rows.len().div_ceil(S::TILE_ROWS);
        let (distance, asked) = match (passes, self.rows.len()) {
            (1, 1) => (DISTANCE, bytes),
            (1, _) => (0, 0),
            _ => (bytes, bytes),
        };
        Ahead::new(weight.strip(strip).wrapping_add(distance), asked, passes, step_bytes)
    }
}

/// Splits `rows` into tiles of at most `most` rows, as even as can be: the first row of each and their number.
#[inline(always)]
pub(crate) fn tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    (0..count).map(move |tile| {
        let (first, end) = (rows * tile / count, rows * (tile + 1) / count);
        (first, end - first)
    })
}
