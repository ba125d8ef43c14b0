//! How the outputs of a weight are cut: sixteen are a block, four blocks a strip.

use crate::simd::LANES;

/// Blocks of a strip; the last strip may have two.
pub(crate) const STRIP_BLOCKS: usize = 4;

/// The outputs of a weight, in blocks. Their number is even, so that tiles two blocks wide fit. With a gate, blocks of gate
/// and up alternate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) outputs: usize,
    pub(crate) gated: bool,
}

impl Columns {
    pub(crate) fn blocks(self) -> usize {
        let blocks = if self.gated { 2 * (self.outputs / 2).div_ceil(LANES) } else { self.outputs.div_ceil(LANES) };
        blocks.next_multiple_of(2)
    }

    pub(crate) fn strips(self) -> usize {
        self.blocks().div_ceil(STRIP_BLOCKS)
    }

    /// Blocks of one strip.
    pub(crate) fn width(self, strip: usize) -> usize {
        (self.blocks() - strip * STRIP_BLOCKS).min(STRIP_BLOCKS)
    }

    /// Columns of the result.
    pub(crate) fn results(self) -> usize {
        if self.gated { self.outputs / 2 } else { self.outputs }
    }

    /// Which output a lane of a block holds, if any.
    pub(crate) fn output(self, block: usize, lane: usize) -> Option<usize> {
        if self.gated {
            let (half, column) = (self.outputs / 2, block / 2 * LANES + lane);
            (column < half).then_some(column + block % 2 * half)
        } else {
            let column = block * LANES + lane;
            (column < self.outputs).then_some(column)
        }
    }

    /// A bias with a value for each output, in the order of the packed columns; zero where there is none.
    pub(crate) fn bias(self, bias: Option<&[f32]>) -> Vec<f32> {
        let column = |place: usize| bias.zip(self.output(place / LANES, place % LANES)).map_or(0.0, |(b, at)| b[at]);
        (0..self.blocks() * LANES).map(column).collect()
    }
}
