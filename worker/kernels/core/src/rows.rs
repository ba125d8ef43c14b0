//! Rows as they are: picked from a table by their numbers, and added up.

use std::fmt;

use crate::Dtype;
use crate::simd::from_bf16;
use crate::team::Team;

/// Up to this many values one thread does all of it: waking others would cost more.
const SERIAL_VALUES: usize = 48 * 1024;

/// Rows of a table, whose values are `scale` times the table's, as float32.
#[derive(Clone, Copy, Debug)]
pub struct Picked {
    pub table: *const u8,
    pub dtype: Dtype,
    /// Of the table.
    pub rows: usize,
    pub width: usize,
    pub scale: f32,
    /// Which rows: `count` of them.
    pub numbers: *const i64,
    pub count: usize,
    /// Receives `count` rows.
    pub out: *mut f32,
}

// SAFETY: plain addresses; threads get disjoint rows of `out`.
unsafe impl Sync for Picked {}

/// A number that is none of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchRow {
    pub number: i64,
    pub rows: usize,
}

impl fmt::Display for NoSuchRow {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "row {} of a table of {}", self.number, self.rows)
    }
}

impl std::error::Error for NoSuchRow {}

/// Writes the rows.
///
/// # Errors
/// Before anything is written, when one of the rows is not in the table.
///
/// # Safety
/// `table` is readable for `rows * width` values of its dtype, `numbers` for `count`, `out` writable for `count * width`.
pub unsafe fn pick(team: Team, picked: Picked) -> Result<(), NoSuchRow> {
    let Picked { rows, width, count, .. } = picked;
    if count == 0 {
        return Ok(()); // an empty tensor may have no address
    }
    // SAFETY: the caller's promise.
    let numbers = unsafe { std::slice::from_raw_parts(picked.numbers, count) };
    if let Some(number) = numbers.iter().find(|number| usize::try_from(**number).map_or(true, |number| number >= rows))
    {
        return Err(NoSuchRow { number: *number, rows });
    }
    team.split(count, 1, SERIAL_VALUES / width.max(1), &|first, end| {
        for (place, number) in (first..end).zip(&numbers[first..end]) {
            // SAFETY: the caller's promise; the number is one of a row, and every place is one thread's.
            unsafe { picked.row(*number as usize, place) }
        }
    });
    Ok(())
}

impl Picked {
    /// # Safety
    /// As `pick`; `number` is below `rows`, `place` below `count`.
    unsafe fn row(&self, number: usize, place: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let row = self.table.add(number * self.width * self.dtype.bytes());
            let out = std::slice::from_raw_parts_mut(self.out.add(place * self.width), self.width);
            match self.dtype {
                Dtype::F32 => {
                    let row = std::slice::from_raw_parts(row.cast::<f32>(), self.width);
                    out.iter_mut().zip(row).for_each(|(out, x)| *out = self.scale * x);
                }
                Dtype::Bf16 => {
                    let row = std::slice::from_raw_parts(row.cast::<u16>(), self.width);
                    out.iter_mut().zip(row).for_each(|(out, x)| *out = self.scale * from_bf16(*x));
                }
            }
        }
    }
}

/// Float32 rows of `width` values, to be added up.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// Overwritten by the sum.
    pub x: *mut f32,
    pub delta: *const f32,
    pub rows: usize,
    pub width: usize,
}

// SAFETY: plain addresses; threads get disjoint rows.
unsafe impl Sync for Sum {}

/// x += delta.
///
/// # Safety
/// Both pointers are good for `rows * width` values and do not overlap.
pub unsafe fn add(team: Team, sum: Sum) {
    if sum.rows == 0 {
        return; // as above
    }
    team.split(sum.rows, 1, SERIAL_VALUES / sum.width.max(1), &|first, end| {
        // SAFETY: the caller's promise; every row is one thread's.
        unsafe { sum.part(first, end) }
    });
}

impl Sum {
    /// # Safety
    /// As `add`; `end` is at most `rows`.
    unsafe fn part(&self, first: usize, end: usize) {
        let (begin, values) = (first * self.width, (end - first) * self.width);
        // SAFETY: the caller's promise.
        let (x, delta) = unsafe {
            let delta = std::slice::from_raw_parts(self.delta.add(begin), values);
            (std::slice::from_raw_parts_mut(self.x.add(begin), values), delta)
        };
        x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
    }
}
