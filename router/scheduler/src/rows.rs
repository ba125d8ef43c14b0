//! The rows of the worker's tensors: which are free, and which of them the workers must still be told about.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Row;

#[derive(Debug)]
pub(crate) struct Rows {
    total: usize,
    /// The lowest row is taken first, so that few sequences sit close together.
    free: BinaryHeap<Reverse<Row>>,
    released: Vec<Row>,
}

impl Rows {
    pub(crate) fn new(num_rows: u32) -> Self {
        let free = (0..num_rows).map(|row| Reverse(Row(row))).collect();
        Self { total: num_rows as usize, free, released: Vec::new() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(crate) fn num_used(&self) -> usize {
        self.total - self.free.len()
    }

    pub(crate) fn take(&mut self) -> Option<Row> {
        self.free.pop().map(|Reverse(row)| row)
    }

    /// No step in flight touches the row any more.
    pub(crate) fn release(&mut self, row: Row) {
        self.free.push(Reverse(row));
        self.released.push(row);
    }

    /// Rows released since the last plan. A plan applies them before its admissions, so they may be taken already.
    pub(crate) fn take_released(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.released)
    }

    pub(crate) fn iter_free(&self) -> impl Iterator<Item = Row> {
        self.free.iter().map(|&Reverse(row)| row)
    }
}
