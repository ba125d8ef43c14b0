//! Rows of a packed weight as they were: a table that is both the embedding and the output head is kept once.

use super::Linear;
use crate::Dtype;
use crate::simd::{LANES, from_bf16};

/// Up to this many values the caller's thread reads all of them.
const SERIAL_VALUES: usize = 16 * 1024;

/// Which rows, and where to.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    pub ids: *const i64,
    pub count: usize,
    /// The id of the first row; ids that are not among the rows give zeros.
    pub first: i64,
    pub scale: f32,
    /// Receives `count` rows of as many values as the layer has inputs.
    pub out: *mut f32,
}

// SAFETY: plain addresses; threads get disjoint rows of `out`.
unsafe impl Sync for Lookup {}

impl Lookup {
    /// The id at a place, and where its row goes.
    ///
    /// # Safety
    /// `place` is below `count`, and a row has `inputs` values.
    unsafe fn at(&self, place: usize, inputs: usize) -> (i64, *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { (*self.ids.add(place), self.out.add(place * inputs)) }
    }
}

impl Linear {
    /// Writes `scale * row` for each id. Every value lies on a cache line of its own: this is for the few tokens of a
    /// step, where a second copy of a large table would cost more.
    ///
    /// # Safety
    /// `ids` is readable for `count` values, `out` writable for `count` rows. The layer has no gate.
    pub unsafe fn lookup(&self, lookup: Lookup) {
        let inputs = self.weight.inputs();
        self.team.split(lookup.count, 1, SERIAL_VALUES / inputs, &|first, end| {
            for place in first..end {
                // SAFETY: the caller's promise; every place is one thread's.
                let (id, out) = unsafe { lookup.at(place, inputs) };
                let row = usize::try_from(id - lookup.first).ok().filter(|row| *row < self.weight.outputs());
                // SAFETY: `out` has `inputs` values, and the row is one of the weight's.
                unsafe {
                    match row {
                        Some(row) => self.unpack(row, lookup.scale, out),
                        None => out.write_bytes(0, inputs),
                    }
                }
            }
        });
    }

    /// # Safety
    /// `out` is writable for `inputs` values; `row` is below `outputs`.
    unsafe fn unpack(&self, row: usize, scale: f32, out: *mut f32) {
        let cells = (0..).zip(self.weight.cells(row));
        // SAFETY: a row has as many cells as steps: one for each input, or one for two.
        unsafe {
            match self.weight.dtype() {
                Dtype::F32 => cells.for_each(|(at, cell)| *out.add(at) = scale * f32::from_bits(cell)),
                Dtype::Bf16 => cells.for_each(|(at, cell)| {
                    *out.add(2 * at) = scale * from_bf16(cell as u16);
                    *out.add(2 * at + 1) = scale * from_bf16((cell >> 16) as u16);
                }),
            }
        }
    }
}

impl super::Packed {
    /// The 4-byte cells of an output, in the order of the inputs. For weights without a gate.
    fn cells(&self, output: usize) -> impl Iterator<Item = u32> + '_ {
        debug_assert!(!self.is_gated() && output < self.outputs());
        let (block, lane) = (output / LANES, output % LANES);
        let (strip, column) = (block / super::packed::STRIP_BLOCKS, block % super::packed::STRIP_BLOCKS);
        let (base, width) = (self.strip(strip).cast::<u32>(), self.width(strip));
        // SAFETY: the strip holds `steps * width * LANES` cells.
        (0..self.steps()).map(move |step| unsafe { base.add((step * width + column) * LANES + lane).read() })
    }
}
