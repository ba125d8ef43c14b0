//! The left side of a product: some rows of the input, in the order in which tiles read them.
//!
//! With few rows a tile reads them where they lie. With more, the rows of a tile are copied side by side,
//! `[step][row]`: one stream instead of a dozen that are a power of two apart, and fall on the same lines of the cache.

use std::ops::Range;

use super::format::Format;
use super::strip::tiles;
use crate::simd::{Simd, from_bf16};

/// Up to so many rows are read where they lie.
const DIRECT_ROWS: usize = 8;

/// Rows `rows` of an input.
#[derive(Clone, Copy)]
pub(crate) struct Input {
    pub(crate) at: *const u8,
    /// Bytes from row to row, four for each step.
    pub(crate) row_bytes: usize,
}

/// Where a tile's rows are.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) at: *const u8,
    /// Bytes from row to row where they lie in the input; 0 where they are copied, `[step][row]`.
    pub(crate) row: usize,
}

/// A thread's copy of the rows that it works on, kept from one task to the next.
#[derive(Default)]
pub(crate) struct Panel {
    copy: Vec<u32>,
    rows: Range<usize>,
}

impl Panel {
    /// Prepares the rows; `Panel::tile` then says where they are. What it did for the last task stays.
    ///
    /// # Safety
    /// The rows are readable.
    #[inline(always)]
    pub(crate) unsafe fn take<S: Simd, F: Format<S>>(&mut self, input: Input, rows: Range<usize>) {
        if self.rows == rows {
            return;
        }
        self.rows = rows.clone();
        if !self.is_copy::<S, F>() {
            return;
        }
        let (steps, cells) = (input.row_bytes / 4, F::LEFT / 4);
        self.copy.clear();
        self.copy.reserve(rows.len() * steps * cells);
        let copy = self.copy.as_mut_ptr();
        for (first, height) in tiles(rows.len(), S::TILE_ROWS) {
            let to = copy.wrapping_add(first * steps * cells);
            for row in 0..height {
                let from = input.at.wrapping_add((rows.start + first + row) * input.row_bytes).cast::<u32>();
                for step in 0..steps {
                    // SAFETY: a row has `steps` steps, and the copy room for all.
                    unsafe {
                        let pair = from.add(step).read_unaligned();
                        if F::WIDENS {
                            let both = [from_bf16(pair as u16).to_bits(), from_bf16((pair >> 16) as u16).to_bits()];
                            to.add((step * height + row) * 2).cast::<[u32; 2]>().write(both);
                        } else {
                            to.add(step * height + row).write(pair);
                        }
                    }
                }
            }
        }
    }

    /// The rows `first .. first + height` of those taken, one of `tiles`, at step `step`.
    #[inline(always)]
    pub(crate) fn tile<S: Simd, F: Format<S>>(&self, input: Input, first: usize, height: usize, step: usize) -> Left {
        if self.is_copy::<S, F>() {
            let cells = first * (input.row_bytes / 4) + step * height;
            let at = self.copy.as_ptr().cast::<u8>().wrapping_add(cells * F::LEFT);
            Left { at, row: 0 }
        } else {
            let at = input.at.wrapping_add((self.rows.start + first) * input.row_bytes + step * F::LEFT);
            Left { at, row: input.row_bytes }
        }
    }

    #[inline(always)]
    fn is_copy<S: Simd, F: Format<S>>(&self) -> bool {
        F::WIDENS || self.rows.len() > DIRECT_ROWS
    }
}
