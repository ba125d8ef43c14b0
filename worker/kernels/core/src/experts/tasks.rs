//! How the products of all experts are split, so that no thread waits long for another.

use std::ops::Range;

use super::order::Order;
use crate::linear::TASKS_PER_THREAD;
use crate::linear::strip::BLOCK_ROWS;

/// Reading a weight costs about as much as computing with it for so many rows.
const ROWS_OF_A_READ: usize = 8;

/// Some places of one expert, at most `BLOCK_ROWS`, by some strips of its weight.
pub(crate) struct Task {
    pub(crate) expert: usize,
    pub(crate) places: Range<usize>,
    pub(crate) strips: Range<usize>,
}

/// The tasks of one product of each expert, of `strips` strips.
pub(crate) fn tasks(order: &Order, strips: usize, threads: usize) -> Vec<Task> {
    let cost = |places: &Range<usize>| places.len() + ROWS_OF_A_READ;
    let total: usize = order.experts().flat_map(|(_, places)| blocks(places)).map(|places| cost(&places)).sum();
    let wanted = if threads == 1 { 1 } else { TASKS_PER_THREAD * threads };
    let mut tasks = Vec::with_capacity(2 * wanted);
    for (expert, all) in order.experts() {
        for places in blocks(all) {
            let ranges = (cost(&places) * wanted).div_ceil(total).min(strips);
            tasks.extend((0..ranges).map(|range| Task {
                expert,
                places: places.clone(),
                strips: strips * range / ranges..strips * (range + 1) / ranges,
            }));
        }
    }
    tasks
}

/// Places in blocks as even as can be.
fn blocks(places: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = places.len().div_ceil(BLOCK_ROWS);
    (0..count).map(move |block| {
        let bound = |block: usize| places.start + places.len() * block / count;
        bound(block)..bound(block + 1)
    })
}
