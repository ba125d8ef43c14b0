//! The inner loops: some query rows with the pages of one block of keys.

use std::ops::Range;

use super::layout::{PAGE, Pool};
use super::number::{Left, Number, Right, multiply};
use super::rule::{Rule, Sight};
use super::step::{BLOCK_PAGES, Shape};
use super::sums::{Sums, weight};
use crate::simd::{LANES, Simd, Vector};

/// Keys of a block.
const BLOCK: usize = BLOCK_PAGES * PAGE;
/// The most query rows that are computed together: their accumulators fit into the registers.
const MAX_TILE_ROWS: usize = 12;
/// Up to this many rows are computed faster than memory brings their keys and values.
const MEMORY_BOUND_ROWS: usize = 6;
/// Values that the scores of a tile take.
pub(crate) const SCORES_LEN: usize = MAX_TILE_ROWS * BLOCK;

/// What a thread is likely to read next: pages from the beginning of a block on, and of which KV head.
#[derive(Clone, Copy)]
pub(crate) struct Next<'a> {
    pub(crate) pages: &'a [u32],
    pub(crate) head: usize,
}

/// The query rows of a task: `group` rows per token, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) shape: Shape,
    pub(crate) rule: &'a Rule,
    pub(crate) pool: Pool,
    /// The sequence's pages.
    pub(crate) pages: &'a [u32],
    /// How many of them are read by this task.
    pub(crate) end: usize,
    /// The KV head.
    pub(crate) head: usize,
    pub(crate) next: Next<'a>,
    /// The position of the first token.
    pub(crate) position: usize,
    pub(crate) len: usize,
    /// Rounded queries, `head_dim` numbers a row.
    pub(crate) queries: *const u32,
    /// How many words of weights belong to a page. Hidden from the compiler: it would unroll loops of a known length
    /// and run out of registers.
    pub(crate) page_words: usize,
    /// Room for `SCORES_LEN` values.
    pub(crate) scores: *mut f32,
}

impl Rows<'_> {
    #[inline(always)]
    fn row_position(&self, row: usize) -> usize {
        self.position + row / self.shape.group()
    }

    #[inline(always)]
    fn sight(&self, row: usize) -> Sight {
        let position = self.row_position(row);
        Sight {
            first: self.shape.first_seen(position),
            end: position + 1,
            softcap: self.rule.softcap,
            slope: self.rule.slope(self.head * self.shape.group() + row % self.shape.group()),
        }
    }

    /// Adds block number `block` of the keys to the sums of all rows.
    ///
    /// # Safety
    /// All pointers are good, the pages exist and nobody writes to them what these rows see.
    #[inline(always)]
    pub(crate) unsafe fn add_block<S: Simd, T: Number>(&self, block: usize, sums: Sums) {
        let mut first = 0;
        while first < self.len {
            let left = self.len - first;
            // SAFETY: the caller's promise; a tile's rows exist.
            first += unsafe {
                if S::TILE_ROWS >= MAX_TILE_ROWS {
                    match left {
                        1 => Tile::<1>::run::<S, T, 4>(self, first, block, sums),
                        2 | 3 => Tile::<2>::run::<S, T, 4>(self, first, block, sums),
                        4 | 5 => Tile::<4>::run::<S, T, 4>(self, first, block, sums),
                        6 | 7 => Tile::<6>::run::<S, T, 4>(self, first, block, sums),
                        8..=11 | 16 => Tile::<8>::run::<S, T, 2>(self, first, block, sums),
                        _ => Tile::<12>::run::<S, T, 2>(self, first, block, sums),
                    }
                } else {
                    match left {
                        1 => Tile::<1>::run::<S, T, 1>(self, first, block, sums),
                        2 | 3 => Tile::<2>::run::<S, T, 1>(self, first, block, sums),
                        _ => Tile::<4>::run::<S, T, 1>(self, first, block, sums),
                    }
                }
            };
        }
    }
}

/// M rows from `first` on with the pages `from .. end`, all of one block.
struct Tile<'a, const M: usize> {
    rows: &'a Rows<'a>,
    sums: Sums,
    first: usize,
    from: usize,
    end: usize,
    /// The page that the block begins with.
    origin: usize,
}

impl<'a, const M: usize> Tile<'a, M> {
    /// Adds to the sums what the rows see of the block; N panels are multiplied at once. Answers M.
    ///
    /// # Safety
    /// As in `Rows::add_block`; the rows exist.
    #[inline(always)]
    unsafe fn run<S: Simd, T: Number, const N: usize>(
        rows: &'a Rows<'a>,
        first: usize,
        block: usize,
        sums: Sums,
    ) -> usize {
        let origin = block * BLOCK_PAGES;
        let from = origin.max(rows.sight(first).first / PAGE);
        let end = (origin + BLOCK_PAGES).min(rows.row_position(first + M - 1) / PAGE + 1);
        if from < end {
            let tile = Self { rows, sums, first, from, end, origin };
            // SAFETY: the caller's promise.
            unsafe {
                tile.score::<S, T, N>();
                let shrink = tile.weigh::<S, T>();
                tile.sum::<S, T, N>(&shrink);
            }
        }
        M
    }

    /// The scaled products of the queries with the keys.
    #[inline(always)]
    unsafe fn score<S: Simd, T: Number, const N: usize>(&self) {
        let mut page = self.from;
        // SAFETY: the pages are the sequence's.
        unsafe {
            while page + N <= self.end {
                self.score_pages::<S, T, N>(page);
                page += N;
            }
            while page < self.end {
                self.score_pages::<S, T, 1>(page);
                page += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn score_pages<S: Simd, T: Number, const N: usize>(&self, page: usize) {
        let rows = self.rows;
        let stride = rows.shape.head_dim / T::PER_WORD;
        // SAFETY: the caller's promise; scores have room for a block of MAX_TILE_ROWS rows.
        unsafe {
            let mut panels = [std::ptr::null(); N];
            for (n, panel) in panels.iter_mut().enumerate() {
                *panel = rows.pool.keys(*rows.pages.get_unchecked(page + n), rows.head).cast_const();
            }
            let (queries, right) =
                (Left { words: rows.queries, stride }.row(self.first), Right { panels, stride: LANES });
            let mut products = [[S::V::zero(); N]; M];
            let part = stride / N;
            for n in 0..N {
                let (later, head) = self.later(page + n);
                let ahead = rows.pool.keys(later, head);
                multiply_ahead::<S, T, M, N>(&mut products, (queries, right), n * part..(n + 1) * part, ahead);
            }
            let scale = S::V::splat(rows.rule.scale);
            for (m, row) in products.iter().enumerate() {
                for (n, product) in row.iter().enumerate() {
                    product.mul(scale).store(rows.scores.add(m * BLOCK + (page - self.origin + n) * PAGE));
                }
            }
        }
    }

    /// The page, and its head, that is needed one block after this one.
    #[inline(always)]
    fn later(&self, page: usize) -> (u32, usize) {
        let (rows, later) = (self.rows, page + BLOCK_PAGES);
        if later < rows.end {
            return (rows.pages[later], rows.head);
        }
        rows.next.pages.get(later % BLOCK_PAGES).map_or((rows.pages[page], rows.head), |&page| (page, rows.next.head))
    }

    /// Makes weights of the scores, as the numbers of values, in place: a row's weights begin where its scores begin.
    /// Answers by how much the sums so far shrink.
    #[inline(always)]
    unsafe fn weigh<S: Simd, T: Number>(&self) -> [f32; LANES] {
        let (mut before, mut largest) = ([0.0; LANES], [0.0; LANES]);
        // SAFETY: the rows exist; scores have room for a block of MAX_TILE_ROWS rows.
        unsafe {
            for m in 0..M {
                let (sight, scores) = (self.rows.sight(self.first + m), self.rows.scores.add(m * BLOCK));
                before[m] = *self.sums.largest.add(self.first + m);
                let mut highest = S::V::splat(before[m]);
                for page in self.from..self.end {
                    let at = scores.add((page - self.origin) * PAGE);
                    let mut score = S::V::load(at);
                    if sight.changes(page * PAGE) {
                        score = sight.apply::<S>(score, page * PAGE);
                        score.store(at);
                    }
                    highest = highest.max(score);
                }
                largest[m] = highest.maximum();
                *self.sums.largest.add(self.first + m) = largest[m];
            }
            let shrink = weight(S::V::load(before.as_ptr()).sub(S::V::load(largest.as_ptr())));
            shrink.store(before.as_mut_ptr());
            for m in 0..M {
                let (scores, largest) = (self.rows.scores.add(m * BLOCK), S::V::splat(largest[m]));
                let sum_at = self.sums.weights.add((self.first + m) * LANES);
                let mut sum = S::V::load(sum_at).mul(S::V::splat(before[m]));
                for page in self.from..self.end {
                    let at = (page - self.origin) * PAGE;
                    let weights = weight(S::V::load(scores.add(at)).sub(largest));
                    sum = sum.add(weights);
                    T::store::<S>(weights, scores.cast(), at);
                }
                sum.store(sum_at);
            }
        }
        before
    }

    /// Adds the weighted values.
    #[inline(always)]
    unsafe fn sum<S: Simd, T: Number, const N: usize>(&self, shrink: &[f32; LANES]) {
        let size = self.rows.shape.head_dim;
        let mut dim = 0;
        // SAFETY: dimensions below the head's size exist.
        unsafe {
            while dim + N * LANES <= size {
                self.sum_dims::<S, T, N>(dim, shrink);
                dim += N * LANES;
            }
            while dim < size {
                self.sum_dims::<S, T, 1>(dim, shrink);
                dim += LANES;
            }
        }
    }

    #[inline(always)]
    unsafe fn sum_dims<S: Simd, T: Number, const N: usize>(&self, dim: usize, shrink: &[f32; LANES]) {
        let (rows, size) = (self.rows, self.rows.shape.head_dim);
        // SAFETY: the caller's promise; weights have room for a block of MAX_TILE_ROWS rows.
        unsafe {
            let sums_at = self.sums.values.add(self.first * size + dim);
            let mut sums = [[S::V::zero(); N]; M];
            for (m, row) in sums.iter_mut().enumerate() {
                for (n, sum) in row.iter_mut().enumerate() {
                    *sum = S::V::load(sums_at.add(m * size + n * LANES)).mul(S::V::splat(shrink[m]));
                }
            }
            for page in self.from..self.end {
                let words = rows.scores.cast::<u32>().add((page - self.origin) * PAGE / T::PER_WORD).cast_const();
                let values = rows.pool.values(*rows.pages.get_unchecked(page), rows.head).add(dim).cast_const();
                let mut panels = [values; N];
                for (n, panel) in panels.iter_mut().enumerate() {
                    *panel = values.add(n * LANES);
                }
                let (left, right) = (Left { words, stride: BLOCK }, Right { panels, stride: size });
                let (later, head) = self.later(page);
                let ahead = rows.pool.values(later, head).add(dim * PAGE / T::PER_WORD);
                multiply_ahead::<S, T, M, N>(&mut sums, (left, right), 0..rows.page_words, ahead);
            }
            for (m, row) in sums.iter().enumerate() {
                for (n, sum) in row.iter().enumerate() {
                    sum.store(sums_at.add(m * size + n * LANES));
                }
            }
        }
    }
}

/// `multiply`; where few rows wait for memory, N cache lines from `ahead` on are asked for in each step.
///
/// # Safety
/// As in `multiply`.
#[inline(always)]
unsafe fn multiply_ahead<S: Simd, T: Number, const M: usize, const N: usize>(
    sums: &mut [[S::V; N]; M],
    (left, right): (Left, Right<N>),
    steps: Range<usize>,
    ahead: *const u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (M <= MEMORY_BOUND_ROWS, N) {
            (true, 4) => multiply::<S, T, M, N, 4>(sums, left, right, steps, ahead),
            (true, 2) => multiply::<S, T, M, N, 2>(sums, left, right, steps, ahead),
            (true, _) => multiply::<S, T, M, N, 1>(sums, left, right, steps, ahead),
            (false, _) => multiply::<S, T, M, N, 0>(sums, left, right, steps, ahead),
        }
    }
}
