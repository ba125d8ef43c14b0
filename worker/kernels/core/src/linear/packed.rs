//! The packed form of a weight: what a tile reads is one stream.
//!
//! A step holds, for every block of a strip, one 4-byte cell for each output: one float32, or the bfloat16 values of two
//! neighbouring inputs. So a strip is `[step][block][output]`, a step of a block is 64 bytes for either dtype, and the
//! strips follow each other. Cells without an output are zero.

use super::Weight;
use super::columns::Columns;
pub(crate) use super::columns::STRIP_BLOCKS;
use crate::Dtype;
use crate::memory::Memory;
use crate::simd::LANES;
use crate::team::Team;

/// Bytes of a block's step.
pub(crate) const CELLS: usize = 4 * LANES;

#[derive(Debug)]
pub(crate) struct Packed {
    memory: Memory,
    dtype: Dtype,
    columns: Columns,
    inputs: usize,
}

impl Packed {
    /// # Safety
    /// `weight.at` is readable for the whole weight.
    pub(crate) unsafe fn new(team: Team, weight: Weight, gated: bool) -> Self {
        let Weight { dtype, outputs, inputs, .. } = weight;
        let columns = Columns { outputs, gated };
        let cells = columns.blocks() * (inputs * dtype.bytes() / 4) * LANES;
        let packed = Self { memory: Memory::new(4 * cells), dtype, columns, inputs };
        // Each strip is first touched by the thread that will compute with it.
        // SAFETY: the caller's promise; every strip is written by one task.
        team.share(packed.strips(), &|strip| unsafe { packed.fill(weight, strip) });
        packed
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(crate) fn columns(&self) -> Columns {
        self.columns
    }

    pub(crate) fn outputs(&self) -> usize {
        self.columns.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn is_gated(&self) -> bool {
        self.columns.gated
    }

    /// 4-byte cells of an output.
    pub(crate) fn steps(&self) -> usize {
        self.inputs * self.dtype.bytes() / 4
    }

    pub(crate) fn blocks(&self) -> usize {
        self.columns.blocks()
    }

    pub(crate) fn strips(&self) -> usize {
        self.columns.strips()
    }

    /// Blocks of one strip.
    pub(crate) fn width(&self, strip: usize) -> usize {
        self.columns.width(strip)
    }

    /// Where a strip begins.
    pub(crate) fn strip(&self, strip: usize) -> *const u8 {
        self.memory.start().cast_const().wrapping_add(strip * STRIP_BLOCKS * self.steps() * CELLS)
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.blocks() * self.steps() * CELLS
    }

    /// # Safety
    /// As `new`; no other thread has this strip.
    unsafe fn fill(&self, weight: Weight, strip: usize) {
        let (steps, width) = (self.steps(), self.width(strip));
        let to = self.strip(strip).cast_mut().cast::<u32>();
        for block in 0..width {
            let rows: [_; LANES] = std::array::from_fn(|lane| {
                let output = self.columns.output(strip * STRIP_BLOCKS + block, lane)?;
                Some(weight.at.wrapping_add(output * self.inputs * self.dtype.bytes()).cast::<u32>())
            });
            // A cache line of each row at a time.
            for first in (0..steps).step_by(LANES) {
                for (lane, row) in rows.iter().enumerate() {
                    for step in first..steps.min(first + LANES) {
                        // SAFETY: the row has `steps` cells, the strip `steps * width * LANES`.
                        unsafe {
                            let cell = row.map_or(0, |row| row.add(step).read_unaligned());
                            to.add((step * width + block) * LANES + lane).write(cell);
                        }
                    }
                }
            }
        }
    }
}
