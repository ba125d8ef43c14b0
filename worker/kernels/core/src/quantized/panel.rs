//! The left side of a product with codes: some rows of the input, 4 bytes for each part of a cell: a float32, or a pair of
//! bfloat16.
//!
//! A few rows are read where they lie, if they are whole cells of what is multiplied. Else the rows of a tile are copied
//! side by side, `[part][row]`, with zeros up to the end of the last cell: a code there is 0, and times NaN it would not be.

use std::ops::Range;

use super::codes::Cell;
use super::packed::Packed;
use crate::Dtype;
use crate::linear::strip::tiles;
use crate::simd::from_bf16;

/// Up to so many rows are read where they lie.
pub(crate) const DIRECT_ROWS: usize = 4;
/// Parts of a cache line.
const LINE_PARTS: usize = 16;
/// Rows and parts that are turned at once.
const SQUARE: usize = 4;

/// A thread's copy of the rows that it works on, kept from one task to the next.
#[derive(Default)]
pub(crate) struct Panel {
    copy: Vec<u32>,
    rows: Range<usize>,
    /// Where the rows are: in the input, or in the copy.
    at: usize,
    in_place: bool,
    /// Numbers of some steps of a block, for tiles that do not decode themselves.
    decoded: Vec<Cell>,
}

/// The rows of a call.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) at: *const u8,
    pub(crate) dtype: Dtype,
    /// Whether pairs of bfloat16 are multiplied as they are; else float32.
    pub(crate) pairs: bool,
    pub(crate) weight: &'a Packed,
}

/// Where a tile's rows are.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) at: *const u8,
    /// Bytes from row to row.
    pub(crate) row: usize,
    /// Bytes from part to part.
    pub(crate) part: usize,
}

impl Input<'_> {
    /// Parts of a cell, 4 bytes of a row each.
    pub(crate) fn parts_of_step(&self) -> usize {
        self.weight.codes().per_cell() / if self.pairs { 2 } else { 1 }
    }

    /// Parts of a row.
    fn parts(&self) -> usize {
        self.weight.layout.steps * self.parts_of_step()
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.weight.inputs() * self.dtype.bytes()
    }

    /// Whether a row lies in memory as it is multiplied.
    fn is_stored(&self) -> bool {
        self.pairs || self.dtype == Dtype::F32
    }

    /// # Safety
    /// The row has such an input.
    unsafe fn value(&self, row: usize, input: usize) -> f32 {
        let at = row * self.weight.inputs() + input;
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                Dtype::F32 => self.at.cast::<f32>().add(at).read_unaligned(),
                Dtype::Bf16 => from_bf16(self.at.cast::<u16>().add(at).read_unaligned()),
            }
        }
    }

    /// A part that does not lie in memory as it is multiplied.
    ///
    /// # Safety
    /// The row exists.
    unsafe fn part(&self, row: usize, part: usize) -> u32 {
        let inputs = self.weight.inputs();
        // SAFETY: the caller's promise, for the inputs that there are.
        let bits = |input: usize| if input < inputs { unsafe { self.value(row, input) }.to_bits() } else { 0 };
        if self.pairs { bits(2 * part) >> 16 | bits(2 * part + 1) & 0xffff_0000 } else { bits(part) }
    }

    /// Writes the parts of the rows `first .. first + height` side by side, a cache line of each row at a time: so what is
    /// written stays in the nearest cache until it is full.
    ///
    /// # Safety
    /// The rows exist; `to` is writable for `parts` parts of each.
    unsafe fn copy_rows(&self, first: usize, height: usize, to: *mut u32) {
        let stored = if self.is_stored() { self.row_bytes() / 4 } else { 0 };
        let whole = (stored - stored % SQUARE, height - height % SQUARE);
        for line in (0..whole.0).step_by(LINE_PARTS) {
            for row in (0..whole.1).step_by(SQUARE) {
                for part in (line..whole.0.min(line + LINE_PARTS)).step_by(SQUARE) {
                    let from = self.at.wrapping_add((first + row) * self.row_bytes() + 4 * part);
                    // SAFETY: so many parts of so many rows are stored, and there is room for them.
                    unsafe { turn(from, self.row_bytes(), to.add(part * height + row), height) };
                }
            }
        }
        for row in 0..height {
            let from = self.at.wrapping_add((first + row) * self.row_bytes()).cast::<u32>();
            let turned = if row < whole.1 { whole.0 } else { 0 };
            for part in turned..self.parts() {
                // SAFETY: `stored` parts lie within the row; the caller's promise.
                unsafe {
                    let value =
                        if part < stored { from.add(part).read_unaligned() } else { self.part(first + row, part) };
                    to.add(part * height + row).write(value);
                }
            }
        }
    }
}

/// Writes four parts of four rows side by side. `row`: bytes from row to row; `height`: values from part to part.
///
/// # Safety
/// All are readable, and `to` is writable for them.
#[inline]
unsafe fn turn(from: *const u8, row: usize, to: *mut u32, height: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let read = |at: usize| from.add(at * row).cast::<[u32; SQUARE]>().read_unaligned();
        let (first, second, third, fourth) = (read(0), read(1), read(2), read(3));
        let columns = first.into_iter().zip(second).zip(third).zip(fourth);
        for (part, (((first, second), third), fourth)) in columns.enumerate() {
            to.add(part * height).cast::<[u32; SQUARE]>().write_unaligned([first, second, third, fourth]);
        }
    }
}

impl Panel {
    /// Prepares the rows for tiles of at most `most`; what it did for the last task stays.
    ///
    /// # Safety
    /// The rows are readable.
    #[inline(always)]
    pub(crate) unsafe fn take(&mut self, input: Input<'_>, rows: Range<usize>, most: usize) {
        if self.rows == rows {
            return;
        }
        self.rows = rows.clone();
        let whole_cells = input.weight.inputs().is_multiple_of(input.weight.codes().per_cell());
        self.in_place = rows.len() <= DIRECT_ROWS && input.is_stored() && whole_cells;
        if self.in_place {
            self.at = input.at.expose_provenance() + rows.start * input.row_bytes();
        } else {
            let parts = input.parts();
            self.copy.clear();
            self.copy.reserve(rows.len() * parts);
            let copy = self.copy.as_mut_ptr();
            for (first, height) in tiles(rows.len(), most) {
                // SAFETY: the rows are the call's, and the copy has room for all parts of all of them.
                unsafe { input.copy_rows(rows.start + first, height, copy.add(first * parts)) };
            }
            self.at = self.copy.as_ptr().expose_provenance();
        }
    }

    /// The rows from `first` on, the first ones of a tile of `height`, at a step.
    #[inline(always)]
    pub(crate) fn tile(&self, input: Input<'_>, first: usize, height: usize, step: usize) -> Left {
        let part = step * input.parts_of_step();
        if self.in_place {
            let row = input.row_bytes();
            Left { at: std::ptr::with_exposed_provenance(self.at + first * row + 4 * part), row, part: 4 }
        } else {
            let before = first * input.parts() + part * height;
            Left { at: std::ptr::with_exposed_provenance(self.at + 4 * before), row: 4, part: 4 * height }
        }
    }
    /// Room for so many decoded cells.
    #[inline(always)]
    pub(crate) fn room(&mut self, cells: usize) -> *mut Cell {
        self.decoded.clear();
        self.decoded.reserve(cells);
        self.decoded.as_mut_ptr()
    }
}
