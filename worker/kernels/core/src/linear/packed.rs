//! The packed form of a weight: what a tile reads is one stream.
//!
//! Sixteen outputs are a block, four blocks a strip. A step holds, for every block of the strip, one 4-byte cell for
//! each output: one float32, or the bfloat16 values of two neighbouring inputs. So a strip is `[step][block][output]`, a
//! step of a block is 64 bytes for either dtype, and the strips follow each other. The number of blocks is even, so that
//! tiles two blocks wide fit; cells without an output are zero. With a gate, blocks of gate and up alternate.

use super::Weight;
use crate::Dtype;
use crate::memory::Memory;
use crate::simd::LANES;
use crate::team::Team;

/// Blocks of a strip; the last strip may have two.
pub(crate) const STRIP_BLOCKS: usize = 4;
/// Bytes of a block's step.
pub(crate) const CELLS: usize = 4 * LANES;

#[derive(Debug)]
pub(crate) struct Packed {
    memory: Memory,
    dtype: Dtype,
    outputs: usize,
    inputs: usize,
    gated: bool,
}

impl Packed {
    /// # Safety
    /// `weight.at` is readable for the whole weight.
    pub(crate) unsafe fn new(team: Team, weight: Weight, gated: bool) -> Self {
        let Weight { dtype, outputs, inputs, .. } = weight;
        let cells = blocks(outputs, gated) * (inputs * dtype.bytes() / 4) * LANES;
        let packed = Self { memory: Memory::new(4 * cells), dtype, outputs, inputs, gated };
        // Each strip is first touched by the thread that will compute with it.
        // SAFETY: the caller's promise; every strip is written by one task.
        team.share(packed.strips(), &|strip| unsafe { packed.fill(weight, strip) });
        packed
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn is_gated(&self) -> bool {
        self.gated
    }

    /// 4-byte cells of an output.
    pub(crate) fn steps(&self) -> usize {
        self.inputs * self.dtype.bytes() / 4
    }

    pub(crate) fn blocks(&self) -> usize {
        blocks(self.outputs, self.gated)
    }

    pub(crate) fn strips(&self) -> usize {
        self.blocks().div_ceil(STRIP_BLOCKS)
    }

    /// Blocks of one strip.
    pub(crate) fn width(&self, strip: usize) -> usize {
        (self.blocks() - strip * STRIP_BLOCKS).min(STRIP_BLOCKS)
    }

    /// Where a strip begins.
    pub(crate) fn strip(&self, strip: usize) -> *const u8 {
        self.memory.start().cast_const().wrapping_add(strip * STRIP_BLOCKS * self.steps() * CELLS)
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.blocks() * self.steps() * CELLS
    }

    /// Which output a lane of a block holds, if any.
    pub(crate) fn output(&self, block: usize, lane: usize) -> Option<usize> {
        if self.gated {
            let (half, column) = (self.outputs / 2, block / 2 * LANES + lane);
            (column < half).then_some(column + block % 2 * half)
        } else {
            let column = block * LANES + lane;
            (column < self.outputs).then_some(column)
        }
    }

    /// # Safety
    /// As `new`; no other thread has this strip.
    unsafe fn fill(&self, weight: Weight, strip: usize) {
        let (steps, width) = (self.steps(), self.width(strip));
        let to = self.strip(strip).cast_mut().cast::<u32>();
        for block in 0..width {
            let rows: [_; LANES] = std::array::from_fn(|lane| {
                let output = self.output(strip * STRIP_BLOCKS + block, lane)?;
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

fn blocks(outputs: usize, gated: bool) -> usize {
    let blocks = if gated { 2 * (outputs / 2).div_ceil(LANES) } else { outputs.div_ceil(LANES) };
    blocks.next_multiple_of(2)
}
