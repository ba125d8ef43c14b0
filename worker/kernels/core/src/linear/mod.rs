//! Linear layers: `activation(x W^T + bias)`, with an optional gate, over weights in an own packed form.
//!
//! A sum always runs over the inputs in their order, whatever the tiling: a row's result does not depend on how many
//! other rows there are, nor on the number of threads.

mod activation;
mod format;
mod lookup;
mod packed;
mod panel;
mod strip;
mod tile;

pub use activation::Activation;
pub use lookup::Lookup;
use packed::Packed;
use panel::Panel;
use strip::{BLOCK_ROWS, Part};

use crate::Dtype;
use crate::level::Level;
use crate::simd::LANES;
use crate::team::Team;

/// Up to this many multiplications the caller's thread does all of them: waking the others would cost more.
const SERIAL_PRODUCTS: usize = 64 * 1024;
/// Into how many tasks for each thread a product is split, so that none waits long for another.
const TASKS_PER_THREAD: usize = 16;

/// A weight as a checkpoint holds it: `outputs` rows of `inputs` values, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    pub at: *const u8,
    pub dtype: Dtype,
    pub outputs: usize,
    pub inputs: usize,
}

// SAFETY: a plain address, which is only read.
unsafe impl Sync for Weight {}

/// What follows the product in the same pass.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue {
    pub activation: Option<Activation>,
    /// The weight is [gate; up], and the result `activation(gate) * up`: half as many columns.
    pub gated: bool,
    pub out_dtype: Dtype,
}

/// A linear layer. Its input has the dtype of its weight.
#[derive(Debug)]
pub struct Linear {
    level: Level,
    team: Team,
    weight: Packed,
    /// In the order of the packed columns, zero where there is none.
    bias: Vec<f32>,
    epilogue: Epilogue,
}

/// One call: contiguous rows in, contiguous rows out.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    linear: &'a Linear,
    x: *const u8,
    out: *mut u8,
}

// SAFETY: plain addresses; threads write disjoint parts of `out`.
unsafe impl Sync for Call<'_> {}

impl Linear {
    /// Whether there is a packed form: pairs of bfloat16 need an even number of inputs, a gate an even one of outputs.
    pub fn supports(dtype: Dtype, outputs: usize, inputs: usize, gated: bool) -> bool {
        let whole_pairs = dtype == Dtype::F32 || inputs.is_multiple_of(2);
        let whole_halves = !gated || outputs.is_multiple_of(2);
        outputs > 0 && inputs > 0 && whole_pairs && whole_halves
    }

    /// Packs a weight that `supports` agrees to. `bias` has one value for each output.
    ///
    /// # Safety
    /// `weight.at` is readable for the whole weight.
    pub unsafe fn new(level: Level, team: Team, weight: Weight, bias: Option<&[f32]>, epilogue: Epilogue) -> Self {
        // SAFETY: the caller's promise.
        let packed = unsafe { Packed::new(team, weight, epilogue.gated) };
        let column = |place: usize| bias.zip(packed.output(place / LANES, place % LANES)).map_or(0.0, |(b, at)| b[at]);
        let bias = (0..packed.blocks() * LANES).map(column).collect();
        Self { level, team, weight: packed, bias, epilogue }
    }

    /// Bytes of the packed weight and the bias.
    pub fn num_bytes(&self) -> usize {
        self.weight.num_bytes() + size_of_val(self.bias.as_slice())
    }

    pub fn is_gated(&self) -> bool {
        self.epilogue.gated
    }

    /// Columns of the result.
    pub fn columns(&self) -> usize {
        if self.epilogue.gated { self.weight.outputs() / 2 } else { self.weight.outputs() }
    }

    /// # Safety
    /// `x` is readable for `rows * inputs` values of the weight's dtype, `out` writable for `rows * columns()` values of
    /// `out_dtype`; they do not overlap.
    pub unsafe fn apply(&self, x: *const u8, rows: usize, out: *mut u8) {
        if rows == 0 {
            return;
        }
        let threads = self.team.threads();
        let products = rows * self.weight.outputs() * self.weight.inputs();
        let team = if products <= SERIAL_PRODUCTS { Team::new(None, 1) } else { self.team };
        let (blocks, strips) = (rows.div_ceil(BLOCK_ROWS), self.weight.strips());
        let ranges = if team.threads() == 1 { 1 } else { (TASKS_PER_THREAD * threads).div_ceil(blocks).min(strips) };
        let call = Call { linear: self, x, out };
        let part = |panel: &mut Panel, task: usize| {
            let (block, range) = (task / ranges, task % ranges);
            let rows = rows * block / blocks..rows * (block + 1) / blocks;
            let strips = strips * range / ranges..strips * (range + 1) / ranges;
            // SAFETY: the caller's promise; no two tasks share a strip's columns of a row.
            unsafe { self.level.run(Part { call: &call, panel, rows, strips }) }
        };
        team.share_with(blocks * ranges, &Panel::default, &part);
    }
}
