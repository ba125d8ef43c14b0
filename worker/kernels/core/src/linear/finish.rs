//! What follows a product in the same pass: bias, activation, gate, and the result in its dtype.

use std::ops::Range;

use super::Epilogue;
use super::packed::STRIP_BLOCKS;
use super::tile::SUMS;
use crate::Dtype;
use crate::norm::store;
use crate::simd::{LANES, Simd, Vector};

/// Where the sums of a layer go.
pub(crate) struct Finish<'a> {
    pub(crate) epilogue: Epilogue,
    /// In the order of the packed columns, zero where there is none.
    pub(crate) bias: &'a [f32],
    /// Columns of the result.
    pub(crate) columns: usize,
    pub(crate) out: *mut u8,
}

impl Finish<'_> {
    /// Writes the rows `rows` of the result: its columns that come from the blocks `blocks` of a strip, as far as they
    /// exist. `strip`: its number, and how many blocks it has.
    ///
    /// # Safety
    /// `sums` has `SUMS` values for each row, `out` all rows of the result.
    #[inline(always)]
    pub(crate) unsafe fn rows<S: Simd>(
        &self,
        sums: *const f32,
        rows: Range<usize>,
        strip: (usize, usize),
        blocks: Range<usize>,
    ) {
        let (epilogue, columns) = (self.epilogue, self.columns);
        let (strip, width) = strip;
        let bias = self.bias[strip * SUMS..][..width * LANES].as_ptr();
        // Sums of a gate and of what it gates lie side by side.
        let group = if epilogue.gated { 2 } else { 1 };
        for (row, at) in rows.enumerate() {
            let out = self.out.wrapping_add(at * columns * epilogue.out_dtype.bytes());
            for block in blocks.clone().step_by(group) {
                let column = (strip * STRIP_BLOCKS + block) / group * LANES;
                // SAFETY: the sums have `width` blocks, as has the bias; `out` has the row's columns.
                unsafe {
                    let sum = |block: usize| {
                        S::V::load(sums.add(row * SUMS + block * LANES)).add(S::V::load(bias.add(block * LANES)))
                    };
                    // Not `map_or`: what is not inlined here lacks the level's instructions.
                    let y = match (epilogue.activation, epilogue.gated) {
                        (None, false) => sum(block),
                        (None, true) => sum(block).mul(sum(block + 1)),
                        (Some(activation), false) => activation.of(sum(block)),
                        (Some(activation), true) => activation.join(sum(block), sum(block + 1)),
                    };
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
