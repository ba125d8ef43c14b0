//! What one step computes, and how it is split into tasks.
//!
//! The keys of a sequence are taken in pieces that begin at fixed positions. What a token gets depends on its own
//! sequence only: pieces are computed from nothing and joined in their order, whether one task does all of them or each
//! is a task of its own, and whether its query came alone or in a chunk. So neither the neighbours in a step nor the
//! number of threads change a bit of it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::layout::PAGE;

/// Pages whose scores are computed before they are weighed.
pub(crate) const BLOCK_PAGES: usize = 8;
/// Pages of a piece: a whole number of blocks.
pub(crate) const PIECE_PAGES: usize = 4 * BLOCK_PAGES;
const PIECE: usize = PIECE_PAGES * PAGE;

/// Query rows (tokens times query heads of one KV head) that a task of a chunk computes with each key that it loads.
const TASK_ROWS: usize = 48;

/// The tokens that one sequence computes: `count` of them from position `start` on, the first of which is number `token`
/// of the step.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) start: usize,
    pub(crate) count: usize,
    pub(crate) token: usize,
    pages: Range<usize>,
}

/// Every sequence of a step, with its pages.
#[derive(Debug)]
pub struct Step {
    pub(crate) entries: Vec<Entry>,
    pages: Vec<u32>,
    num_tokens: usize,
}

/// The page table of all rows, `width` entries each.
#[derive(Clone, Copy, Debug)]
pub struct PageTable<'a> {
    pub entries: &'a [i32],
    pub width: usize,
    /// Pages of the pool: entries that are used are below it.
    pub num_pages: usize,
}

/// Columns that do not describe a step.
#[derive(Debug, PartialEq, Eq)]
pub enum BadStep {
    Columns { rows: usize, starts: usize, counts: usize },
    Work { entry: usize, row: i64, start: i64, count: i64 },
    Page { entry: usize, page: i32, num_pages: usize },
}

impl fmt::Display for BadStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Columns { rows, starts, counts } => {
                write!(
                    f,
                    "a step's columns have one value per entry, not {rows} rows, {starts} starts, {counts} counts"
                )
            }
            Self::Work { entry, row, start, count } => {
                write!(f, "entry {entry} of a step: row {row} cannot compute {count} tokens from position {start} on")
            }
            Self::Page { entry, page, num_pages } => {
                write!(f, "entry {entry} of a step: its page {page} is none of the pool's {num_pages}")
            }
        }
    }
}

impl std::error::Error for BadStep {}

impl Step {
    /// Entry i computes the positions `starts[i] .. starts[i] + counts[i]` of row `rows[i]` of the page table.
    ///
    /// # Errors
    /// For a place that the table does not have, and for a page that the pool does not have.
    pub fn new(rows: &[i64], starts: &[i64], counts: &[i64], table: PageTable<'_>) -> Result<Self, BadStep> {
        if rows.len() != starts.len() || rows.len() != counts.len() {
            return Err(BadStep::Columns { rows: rows.len(), starts: starts.len(), counts: counts.len() });
        }
        let mut step = Self { entries: Vec::with_capacity(rows.len()), pages: Vec::new(), num_tokens: 0 };
        for (entry, ((&row, &start), &count)) in rows.iter().zip(starts).zip(counts).enumerate() {
            let work = table.row(row, start, count).ok_or(BadStep::Work { entry, row, start, count })?;
            let first_page = step.pages.len();
            for &page in work {
                let known = u32::try_from(page).ok().filter(|&page| (page as usize) < table.num_pages);
                step.pages.push(known.ok_or(BadStep::Page { entry, page, num_pages: table.num_pages })?);
            }
            let (start, count) = (start as usize, count as usize);
            step.entries.push(Entry { start, count, token: step.num_tokens, pages: first_page..step.pages.len() });
            step.num_tokens += count;
        }
        Ok(step)
    }

    pub const fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    pub(crate) fn pages(&self, entry: &Entry) -> &[u32] {
        &self.pages[entry.pages.clone()]
    }
}

impl<'a> PageTable<'a> {
    /// The pages of a row up to the last position that is computed; None where the table has no such row or place.
    fn row(&self, row: i64, start: i64, count: i64) -> Option<&'a [i32]> {
        let (row, start, count) =
            (usize::try_from(row).ok()?, usize::try_from(start).ok()?, usize::try_from(count).ok()?);
        let pages = start.checked_add(count)?.div_ceil(PAGE);
        if count == 0 || pages > self.width {
            return None;
        }
        let first = row.checked_mul(self.width)?;
        self.entries.get(first..first.checked_add(self.width)?).map(|entries| &entries[..pages])
    }
}

/// What splits a step into tasks: the same for layers with the same heads and window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// A query sees this many positions, its own included.
    pub window: Option<usize>,
}

impl Shape {
    /// Query heads that share a KV head.
    pub const fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// The first position that a query sees.
    pub(crate) fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Queries of an entry with one KV head, over some pieces of its keys.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) entry: usize,
    pub(crate) head: usize,
    /// Which of the entry's tokens.
    pub(crate) queries: Range<usize>,
    pub(crate) pieces: Range<usize>,
    /// Where its result waits to be joined with that of other pieces; None: the task has all of them.
    pub(crate) slot: Option<usize>,
}

/// The tasks of a split block of queries, one per piece, in order.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) tasks: Range<usize>,
}

/// Tokens of one page whose keys and values are written before any query reads them.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) entry: usize,
    pub(crate) tokens: Range<usize>,
}

/// A step's tasks.
#[derive(Debug)]
pub struct Plan {
    pub(crate) step: Arc<Step>,
    pub(crate) shape: Shape,
    /// Of entries of several tokens; a single token is written by the task that attends with it.
    pub(crate) writes: Vec<Write>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) joins: Vec<Join>,
    /// Values that results in slots take together.
    pub(crate) slots_len: usize,
    /// Query rows of the largest task.
    pub(crate) max_rows: usize,
}

impl Plan {
    pub fn new(step: &Arc<Step>, shape: Shape, threads: usize) -> Self {
        let mut plan = Self {
            shape,
            writes: vec![],
            tasks: vec![],
            joins: vec![],
            slots_len: 0,
            max_rows: 0,
            step: Arc::clone(step),
        };
        let work: usize = step.entries.iter().map(|entry| plan.cost(entry, 0..entry.count)).sum();
        // A block of queries that takes more than half of what one thread should do is shared.
        let most = if threads == 1 { usize::MAX } else { work * shape.kv_heads / (2 * threads) };
        let block = (TASK_ROWS / shape.group()).max(1);
        for (index, entry) in step.entries.iter().enumerate() {
            if entry.count > 1 {
                plan.add_writes(index, entry);
            }
            for first in (0..entry.count).step_by(block) {
                let queries = first..(first + block).min(entry.count);
                let split = plan.cost(entry, queries.clone()) > most;
                for head in 0..shape.kv_heads {
                    plan.add_tasks(index, head, queries.clone(), split);
                }
            }
        }
        plan
    }

    pub fn num_tokens(&self) -> usize {
        self.step.num_tokens
    }

    /// Keys that queries read, times the queries.
    fn cost(&self, entry: &Entry, queries: Range<usize>) -> usize {
        let first = self.shape.first_seen(entry.start + queries.start);
        (entry.start + queries.end - first) * queries.len()
    }

    fn add_writes(&mut self, index: usize, entry: &Entry) {
        let mut first = 0;
        while first < entry.count {
            let end = (first + PAGE - (entry.start + first) % PAGE).min(entry.count);
            self.writes.push(Write { entry: index, tokens: first..end });
            first = end;
        }
    }

    fn add_tasks(&mut self, index: usize, head: usize, queries: Range<usize>, split: bool) {
        let start = self.step.entries[index].start;
        let pieces = self.shape.first_seen(start + queries.start) / PIECE..(start + queries.end - 1) / PIECE + 1;
        let rows = queries.len() * self.shape.group();
        self.max_rows = self.max_rows.max(rows);
        if !split || pieces.len() == 1 {
            self.tasks.push(Task { entry: index, head, queries, pieces, slot: None });
            return;
        }
        let first_task = self.tasks.len();
        for piece in pieces {
            let slot = Some(self.slots_len);
            self.slots_len += super::sums::Sums::len(rows, self.shape.head_dim);
            self.tasks.push(Task { entry: index, head, queries: queries.clone(), pieces: piece..piece + 1, slot });
        }
        self.joins.push(Join { tasks: first_task..self.tasks.len() });
    }
}
