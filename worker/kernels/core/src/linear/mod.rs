//! Linear layers: `activation(x W^T + bias)`, with an optional gate, over weights in an own packed form.
//!
//! A sum always runs over the inputs in their order, whatever the tiling: a row's result does not depend on how many
//! other rows there are, nor on the number of threads.

mod activation;
pub(crate) mod columns;
pub(crate) mod finish;
pub(crate) mod format;
mod lookup;
pub(crate) mod packed;
mod panel;
pub(crate) mod strip;
pub(crate) mod tile;

use std::ops::Range;

pub use activation::Activation;
use columns::Columns;
use finish::Finish;
pub use lookup::Lookup;
use packed::Packed;
pub(crate) use panel::Panel;
use strip::{BLOCK_ROWS, Part};

use crate::Dtype;
use crate::experts::Form;
use crate::level::Level;
use crate::team::Team;

/// Up to this many multiplications the caller's thread does all of them: waking the others would cost more.
pub(crate) const SERIAL_PRODUCTS: usize = 64 * 1024;
/// Into how many tasks for each thread a product is split, so that none waits long for another.
pub(crate) const TASKS_PER_THREAD: usize = 16;

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
        let bias = packed.columns().bias(bias);
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
        self.weight.columns().results()
    }

    fn finish(&self, out: *mut u8) -> Finish<'_> {
        Finish { epilogue: self.epilogue, bias: &self.bias, columns: self.columns(), out }
    }

    /// # Safety
    /// `x` is readable for `rows * inputs` values of the weight's dtype, `out` writable for `rows * columns()` values of
    /// `out_dtype`; they do not overlap.
    pub unsafe fn apply(&self, x: *const u8, rows: usize, out: *mut u8) {
        if rows == 0 {
            return;
        }
        let call = Call { linear: self, x, out };
        let part = |panel: &mut Panel, rows: Range<usize>, strips: Range<usize>| {
            // SAFETY: the caller's promise; no two tasks share a strip's columns of a row.
            unsafe { self.level.run(Part { call: &call, panel, rows, strips }) }
        };
        split(self.team, rows, self.weight.columns(), self.weight.inputs(), &part);
    }

    pub(crate) fn form(&self) -> Form {
        Form {
            inputs: self.weight.inputs(),
            input: self.weight.dtype(),
            columns: self.columns(),
            output: self.epilogue.out_dtype,
        }
    }

    pub(crate) fn strips(&self) -> usize {
        self.weight.strips()
    }

    /// Some rows, at most `BLOCK_ROWS`, of the columns of some strips, on this thread.
    ///
    /// # Safety
    /// As `apply`, for these rows of `x` and `out`. What the panel has taken were rows of this `x`.
    pub(crate) unsafe fn part(
        &self,
        panel: &mut Panel,
        (x, out): (*const u8, *mut u8),
        rows: Range<usize>,
        strips: Range<usize>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.level.run(Part { call: &Call { linear: self, x, out }, panel, rows, strips }) }
    }
}

/// What computes some rows of a product, of some strips of its weight.
type Body<'a, T> = dyn Fn(&mut T, Range<usize>, Range<usize>) + Sync + 'a;

/// Calls `body` for all rows of a product and all strips of its weight, in tasks: some rows, at most `BLOCK_ROWS`, and
/// some strips. Each thread keeps a `T` over its tasks.
pub(crate) fn split<T: Default>(team: Team, rows: usize, columns: Columns, inputs: usize, body: &Body<'_, T>) {
    let team = if rows * columns.outputs * inputs <= SERIAL_PRODUCTS { Team::new(None, 1) } else { team };
    let (blocks, strips, threads) = (rows.div_ceil(BLOCK_ROWS), columns.strips(), team.threads());
    let ranges = if threads == 1 { 1 } else { (TASKS_PER_THREAD * threads).div_ceil(blocks).min(strips) };
    team.share_with(blocks * ranges, &T::default, &|own: &mut T, task: usize| {
        let (block, range) = (task / ranges, task % ranges);
        let rows = rows * block / blocks..rows * (block + 1) / blocks;
        body(own, rows, strips * range / ranges..strips * (range + 1) / ranges);
    });
}
