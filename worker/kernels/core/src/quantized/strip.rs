//! Some strips of a quantized weight by some rows. Every tile decodes what it multiplies by where that costs nothing; else
//! it is decoded once for all of them.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::Call;
use super::codes::{ByCodes, Decoded, Eight, Four, FourLess, Source};
use super::packed::{Codes, Layout};
use super::panel::{Input, Panel};
use super::tile::{Ahead, Decode, Tile, is_whole, most_rows, width};
use crate::linear::format::{Pairs, Singles};
use crate::linear::packed::STRIP_BLOCKS;
use crate::linear::strip::{BLOCK_ROWS, tiles};
use crate::linear::tile::SUMS;
use crate::simd::{Kernel, LANES, Simd};

/// Parts of a row that stay in the second-level cache, for all rows of a block, while all of a strip uses them: 384 KiB.
const BLOCK_PARTS: usize = 1024;
/// Decoded parts that stay in the nearest cache while all rows use them: 16 KiB.
const DECODED_PARTS: usize = 256;

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
        // SAFETY: the caller of `QuantizedLinear::apply` promises the pointers.
        unsafe {
            // `QuantizedLinear::new` chooses a level that does the one or the other.
            if S::MULTIPLIES_BF16 {
                self.compute::<S, Pairs>();
            } else {
                self.compute::<S, Singles>();
            }
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn compute<S: Simd, F: ByCodes<S>>(mut self) {
        let weight = &self.call.linear.weight;
        let input = Input { at: self.call.x, dtype: self.call.linear.dtype, pairs: F::INPUTS == 2, weight };
        let most = match weight.codes() {
            Codes::Four => most_rows::<S>(is_whole::<S, Four<F>>(&weight.layout)),
            Codes::Eight => most_rows::<S>(is_whole::<S, Eight<F>>(&weight.layout)),
        };
        let mut sums = MaybeUninit::<[f32; BLOCK_ROWS * SUMS]>::uninit();
        let sums = sums.as_mut_ptr().cast();
        // SAFETY: the rows are within `x`, the strips within the weight.
        unsafe {
            self.panel.take(input, self.rows.clone(), most);
            for strip in self.strips.clone() {
                match (weight.codes(), weight.has_zeros()) {
                    (Codes::Four, false) => self.strip::<S, Four<F>>(sums, input, strip, most),
                    (Codes::Four, true) => self.strip::<S, FourLess<F>>(sums, input, strip, most),
                    (Codes::Eight, _) => self.strip::<S, Eight<F>>(sums, input, strip, most),
                }
            }
        }
    }

    /// All rows by a strip, in tiles of at most `most` rows.
    ///
    /// # Safety
    /// The panel has taken the rows; there is such a strip; `sums` has room for all rows.
    #[inline(always)]
    unsafe fn strip<S: Simd, Q: Source<S>>(&mut self, sums: *mut f32, input: Input<'_>, strip: usize, most: usize) {
        let (weight, rows, layout) = (input.weight, self.rows.len(), &input.weight.layout);
        let finish = self.call.linear.finish(self.call.out);
        let (blocks, count) = (weight.columns().width(strip), rows.div_ceil(most));
        let width = width::<S>(rows.div_ceil(count)).min(blocks);
        let decodes = S::DECODES_FREELY || count == 1;
        let parts = if decodes { BLOCK_PARTS } else { DECODED_PARTS };
        for here in stretches(layout, is_whole::<S, Q>(layout), parts / Q::PARTS) {
            let decoded = self.panel.room(if decodes { 0 } else { here.len() * Q::PARTS });
            for column in (0..blocks).step_by(width) {
                let block = weight.block(strip * STRIP_BLOCKS + column);
                let mut ahead = Ahead::of(block, layout, width);
                if !decodes {
                    let decode = Decode::<Q> { block, layout, steps: here.clone(), to: decoded, source: PhantomData };
                    // SAFETY: the block has these steps, and there is room for them.
                    unsafe { S::run(decode) };
                }
                for (first, height) in tiles(rows, most) {
                    let tile = Tile {
                        layout,
                        block,
                        steps: here.clone(),
                        left: self.panel.tile(input, first, height, here.start),
                        decoded,
                        sums: sums.wrapping_add(first * SUMS + column * LANES),
                    };
                    // Results leave one tile at a time: the memory takes them while the next one computes.
                    let done = here.end == layout.steps && (column + width).is_multiple_of(2);
                    let columns = (column + width).saturating_sub(width.max(2))..column + width;
                    // SAFETY: a tile lies within the rows, the strip and the sums.
                    unsafe {
                        if decodes {
                            tile.multiply::<S, Q>(height, width, &mut ahead);
                        } else {
                            tile.multiply::<S, Decoded<Q>>(height, width, &mut ahead);
                        }
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

/// Splits the steps of a weight into stretches of about `most`, which end where a group ends unless it is `whole`.
#[inline(always)]
fn stretches(layout: &Layout, whole: bool, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (steps, unit) = (layout.steps, if whole { 1 } else { layout.group_steps });
    let (units, count) = (steps.div_ceil(unit), steps.div_ceil(most.max(unit)));
    (0..count).map(move |at| units * at / count * unit..steps.min(units * (at + 1) / count * unit))
}
