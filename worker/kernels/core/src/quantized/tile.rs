//! The innermost loop: some rows by a few blocks, with every sum of a group in a register.
//!
//! Each tile decodes for itself. That costs next to nothing where it is as high as the registers allow: decoding uses other
//! parts of the CPU than multiplying does. Leaving decoded numbers in memory for other tiles would cost more: on Zen 4 a
//! product waits 1.4 cycles for each store of 64 bytes, and for a shuffle not at all. So tiles are one block wide; only
//! those of few rows are wider, so that sums do not wait for each other.

use std::marker::PhantomData;
use std::ops::Range;

use super::codes::{Cell, Source};
use super::packed::Layout;
use super::panel::{DIRECT_ROWS, Left};
use crate::linear::format::Format;
use crate::linear::packed::CELLS;
use crate::linear::tile::SUMS;
use crate::simd::{Body, LANES, Simd, Vector};

/// Sums that keep the CPU busy: a product takes as many of its cycles.
const ENOUGH_SUMS: usize = 4;

/// Runs `$body` for the parts of a cell, one after the other, with the places of codes known when this is compiled.
macro_rules! each_part {
    ($number:expr, $part:ident, $body:block) => {
        each_part!(@ $number, $part, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $number:expr, $part:ident, $body:block, $($place:literal)*) => {
        $(if $place < $number {
            const $part: usize = $place;
            $body
        })*
    };
}

/// Some rows, some blocks, some of their steps: whole groups of them, or some of the only group.
pub(crate) struct Tile<'a> {
    pub(crate) layout: &'a Layout,
    /// The first block.
    pub(crate) block: *const u8,
    pub(crate) steps: Range<usize>,
    /// The rows' values for the first of the steps.
    pub(crate) left: Left,
    /// The steps of the block, if they have been decoded.
    pub(crate) decoded: *const Cell,
    /// The sums, `SUMS` from row to row: they begin at zero with the first step, else continue from what is there.
    pub(crate) sums: *mut f32,
}

/// Memory that will be needed later: as many blocks as are read now, a line of each in each step.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    line: *const u8,
    end: *const u8,
}

impl Ahead {
    /// Asks for the `width` blocks that follow those from `block` on.
    pub(crate) fn of(block: *const u8, layout: &Layout, width: usize) -> Self {
        let bytes = width * layout.block_bytes;
        let line = block.wrapping_add(bytes);
        Self { line, end: line.wrapping_add(bytes) }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self, lines: usize) {
        if self.line < self.end {
            for _ in 0..lines {
                S::prefetch(self.line);
                self.line = self.line.wrapping_add(CELLS);
            }
        }
    }
}

/// Decodes some steps of a block.
pub(crate) struct Decode<'a, Q> {
    pub(crate) block: *const u8,
    pub(crate) layout: &'a Layout,
    pub(crate) steps: Range<usize>,
    /// Has room for all parts of the steps.
    pub(crate) to: *mut Cell,
    pub(crate) source: PhantomData<Q>,
}

impl<S: Simd, Q: Source<S>> Body<S> for Decode<'_, Q> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Self { block, layout, steps, mut to, .. } = self;
        let numbers = Q::numbers();
        for step in steps {
            let cell = layout.cell(block, step);
            // SAFETY: the caller's promise.
            unsafe {
                let zeros = Q::zeros(layout.zeros(block, step / layout.group_steps));
                each_part!(Q::PARTS, PART, {
                    Cell::write::<S, Q::By>(to.add(PART), Q::block(cell, PART, numbers, zeros));
                });
                to = to.add(Q::PARTS);
            }
        }
    }
}

/// A tile of `M` rows by `N` blocks; `ONLY`: of a weight with one group.
struct Shaped<'a, Q, const M: usize, const N: usize, const ONLY: bool> {
    tile: Tile<'a>,
    ahead: &'a mut Ahead,
    source: PhantomData<Q>,
}

impl<S: Simd, Q: Source<S>, const M: usize, const N: usize, const ONLY: bool> Body<S> for Shaped<'_, Q, M, N, ONLY> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        // SAFETY: the caller of `Tile::multiply` promises it.
        unsafe {
            if ONLY {
                self.tile.only::<S, Q, M, N>(self.ahead);
            } else {
                self.tile.groups::<S, Q, M, N>(self.ahead);
            }
        }
    }
}

impl Tile<'_> {
    /// Multiplies `rows` rows by `width` blocks of the strip.
    ///
    /// # Safety
    /// The pointers are good for it. `rows` is at most `most_rows`, `width` what `width` says for it or 1.
    #[inline(always)]
    #[rustfmt::skip]
    pub(crate) unsafe fn multiply<S: Simd, Q: Source<S>>(self, rows: usize, width: usize, ahead: &mut Ahead) {
        macro_rules! tiles {
            ($(($rows:literal, $width:literal))*) => {
                match (rows, width, is_whole::<S, Q>(self.layout)) {
                    $(
                        ($rows, $width, true) if const { fits::<S, Q>($rows, $width, true) } => {
                            let source = PhantomData;
                            // SAFETY: the caller's promise.
                            unsafe { S::run(Shaped::<Q, $rows, $width, true> { tile: self, ahead, source }) }
                        }
                        ($rows, $width, false) if const { fits::<S, Q>($rows, $width, false) } => {
                            let source = PhantomData;
                            // SAFETY: the caller's promise.
                            unsafe { S::run(Shaped::<Q, $rows, $width, false> { tile: self, ahead, source }) }
                        }
                    )*
                    _ => unreachable!("{rows} rows by {width} blocks is no tile of this level"),
                }
            };
        }
        tiles!(
            (1, 4) (2, 4) (3, 4) (1, 2) (2, 2) (3, 2)
            (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1) (7, 1) (8, 1) (9, 1) (10, 1) (11, 1) (12, 1)
            (13, 1) (14, 1) (15, 1) (16, 1) (17, 1) (18, 1) (19, 1) (20, 1) (21, 1) (22, 1) (23, 1) (24, 1)
        );
    }

    /// Of a weight with one group: its sums are scaled after the last step.
    #[inline(always)]
    unsafe fn only<S: Simd, Q: Source<S>, const M: usize, const N: usize>(self, ahead: &mut Ahead) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = self.before::<S, M, N>();
            self.steps::<S, Q, M, N>(&mut sums, &mut self.from::<S, Q>(), 0, self.steps.len(), ahead);
            if self.steps.end == self.layout.steps {
                for n in 0..N {
                    let scale = self.layout.scales::<S>(self.at(n), 0);
                    for row in &mut sums {
                        row[n] = row[n].mul(scale);
                    }
                }
            }
            self.leave::<S, M, N>(&sums);
        }
    }

    /// The sums of each group are scaled and added to those of the groups before.
    #[inline(always)]
    unsafe fn groups<S: Simd, Q: Source<S>, const M: usize, const N: usize>(self, ahead: &mut Ahead) {
        let group_steps = self.layout.group_steps;
        // SAFETY: the caller's promise.
        unsafe {
            let mut totals = self.before::<S, M, N>();
            let mut from = self.from::<S, Q>();
            let (mut group, mut remaining) = (self.steps.start / group_steps, self.steps.len());
            while remaining > 0 {
                let mut sums = [[S::V::zero(); N]; M];
                let here = remaining.min(group_steps);
                self.steps::<S, Q, M, N>(&mut sums, &mut from, group, here, ahead);
                for n in 0..N {
                    let scale = self.layout.scales::<S>(self.at(n), group);
                    for (total, sum) in totals.iter_mut().zip(&sums) {
                        total[n] = sum[n].mul_add(scale, total[n]);
                    }
                }
                remaining -= here;
                group += 1;
            }
            self.leave::<S, M, N>(&totals);
        }
    }

    /// One of the blocks.
    #[inline(always)]
    fn at(&self, n: usize) -> *const u8 {
        self.block.wrapping_add(n * self.layout.block_bytes)
    }

    /// Where the tile begins to read.
    #[inline(always)]
    fn from<S: Simd, Q: Source<S>>(&self) -> From {
        let cells = if Q::PACKED { self.layout.cell(self.block, self.steps.start) } else { self.decoded.cast() };
        From { left: self.left, cells }
    }

    #[inline(always)]
    unsafe fn before<S: Simd, const M: usize, const N: usize>(&self) -> [[S::V; N]; M] {
        let mut sums = [[S::V::zero(); N]; M];
        if self.steps.start > 0 {
            for (m, row) in sums.iter_mut().enumerate() {
                for (n, sum) in row.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    *sum = unsafe { S::V::load(self.sums.add(m * SUMS + n * LANES)) };
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn leave<S: Simd, const M: usize, const N: usize>(&self, sums: &[[S::V; N]; M]) {
        for (m, row) in sums.iter().enumerate() {
            for (n, sum) in row.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { sum.store(self.sums.add(m * SUMS + n * LANES)) };
            }
        }
    }

    /// Multiplies rows by some steps of a group.
    #[inline(always)]
    unsafe fn steps<S: Simd, Q: Source<S>, const M: usize, const N: usize>(
        &self,
        sums: &mut [[S::V; N]; M],
        from: &mut From,
        group: usize,
        steps: usize,
        ahead: &mut Ahead,
    ) {
        let numbers = Q::numbers();
        let From { mut left, mut cells } = *from;
        let (row, part) = if M > DIRECT_ROWS { (4, 4 * M) } else { (left.row, left.part) };
        // SAFETY: the caller's promise.
        unsafe {
            let mut zeros = [Q::zeros(self.layout.zeros(self.at(0), group)); N];
            for (n, zeros) in zeros.iter_mut().enumerate().skip(1) {
                *zeros = Q::zeros(self.layout.zeros(self.at(n), group));
            }
            for _ in 0..steps {
                ahead.ask::<S>(N);
                each_part!(Q::PARTS, PART, {
                    let mut blocks = [Q::block(cells, PART, numbers, zeros[0]); N];
                    for (n, block) in blocks.iter_mut().enumerate().skip(1) {
                        *block = Q::block(cells.add(n * self.layout.block_bytes), PART, numbers, zeros[n]);
                    }
                    multiply::<S, Q::By, M, N>(sums, left.at.add(PART * part), row, blocks);
                });
                left.at = left.at.wrapping_add(Q::PARTS * part);
                cells = cells.wrapping_add(Q::STEP);
            }
        }
        *from = From { left, cells };
    }
}

/// Where a tile reads.
struct From {
    left: Left,
    cells: *const u8,
}

// Functions, not closures: closures are not always inlined, and then lack the level's instructions.

/// Adds what rows, `row` bytes apart, are multiplied by blocks.
///
/// # Safety
/// `left` is readable for a part of `M` rows.
#[inline(always)]
unsafe fn multiply<S: Simd, F: Format<S>, const M: usize, const N: usize>(
    sums: &mut [[S::V; N]; M],
    left: *const u8,
    row: usize,
    blocks: [F::Block; N],
) {
    for (m, sums) in sums.iter_mut().enumerate() {
        for (sum, block) in sums.iter_mut().zip(blocks) {
            // SAFETY: the caller's promise.
            *sum = unsafe { F::multiply(left.add(m * row), block, *sum) };
        }
    }
}

/// Whether a weight is multiplied as one group, so that nothing but its sums takes registers: then tiles are twice as high,
/// which helps where decoding is dear.
#[inline(always)]
pub(crate) fn is_whole<S: Simd, Q: Source<S>>(layout: &Layout) -> bool {
    Q::TALL && layout.groups == 1
}

/// Rows of a tile at most: its sums stay in registers, and those of the groups before beside them.
#[inline(always)]
pub(crate) const fn most_rows<S: Simd>(whole: bool) -> usize {
    if whole { S::TILE_ROWS * S::TILE_VECTORS } else { S::TILE_ROWS }
}

/// How many blocks a tile of so many rows is wide: as many as registers allow while sums are so few that each would wait
/// for itself.
#[inline(always)]
pub(crate) const fn width<S: Simd>(rows: usize) -> usize {
    if rows >= ENOUGH_SUMS {
        1
    } else if 4 * rows <= S::TILE_ROWS {
        4
    } else if 2 * rows <= S::TILE_ROWS {
        2
    } else {
        1
    }
}

/// Whether a level has this tile, alone or among several, of which it may be the lowest. Known at compile time.
#[inline(always)]
const fn fits<S: Simd, Q: Source<S>>(rows: usize, blocks: usize, whole: bool) -> bool {
    let most = most_rows::<S>(whole);
    let (lowest, widest) = (blocks == 1 && 2 * rows + 1 >= most, width::<S>(rows));
    // The last strip may have two blocks only. What has been decoded is for several tiles.
    let alone = Q::PACKED && (blocks == widest || (blocks == 2 && widest == 4));
    rows <= most && (lowest || alone) && (Q::TALL || !whole) && (Q::PACKED || !S::DECODES_FREELY)
}
