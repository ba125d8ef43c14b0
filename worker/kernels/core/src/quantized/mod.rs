//! Linear layers over weights of 8 or 4 bits: inputs and sums stay what they are, float32 or bfloat16.
//!
//! A weight is `scale * (code - zero)`, with a scale, and a zero where the codes have one, for each output and each group
//! of inputs. Codes are exact in bfloat16, so the products of a group are summed as they are, and its scale comes last:
//! nothing is rounded that a weight of float32 would not be. A sum always runs over the inputs in their order, whatever
//! the tiling: a row's result does not depend on how many other rows there are, nor on the number of threads.

mod codes;
mod packed;
mod panel;
mod strip;
mod tile;

use std::ops::Range;

pub use packed::{Codes, Weight};

use crate::Dtype;
use crate::experts::Form;
use crate::level::Level;
use crate::linear::finish::Finish;
use crate::linear::{Epilogue, split};
use crate::team::Team;
use packed::Packed;
pub(crate) use panel::Panel;
use strip::Part;

/// A linear layer over a quantized weight.
#[derive(Debug)]
pub struct QuantizedLinear {
    level: Level,
    team: Team,
    weight: Packed,
    /// In the order of the packed columns, zero where there is none.
    bias: Vec<f32>,
    epilogue: Epilogue,
    /// Of the input.
    dtype: Dtype,
}

/// One call: contiguous rows in, contiguous rows out.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    linear: &'a QuantizedLinear,
    x: *const u8,
    out: *mut u8,
}

// SAFETY: plain addresses; threads write disjoint parts of `out`.
unsafe impl Sync for Call<'_> {}

impl QuantizedLinear {
    /// Whether there is a packed form: groups end where a cell ends, unless there is only one; a gate needs an even number
    /// of outputs.
    pub fn supports(outputs: usize, inputs: usize, group: usize, gated: bool) -> bool {
        let whole_cells = group >= inputs || group.is_multiple_of(Codes::Four.per_cell());
        outputs > 0 && inputs > 0 && group > 0 && whole_cells && (!gated || outputs.is_multiple_of(2))
    }

    /// Packs a weight that `supports` agrees to. `bias` has one value for each output; `dtype` is that of the input.
    ///
    /// # Safety
    /// The weight's pointers are good for what it says.
    pub unsafe fn new(
        level: Level,
        team: Team,
        weight: Weight,
        bias: Option<&[f32]>,
        epilogue: Epilogue,
        dtype: Dtype,
    ) -> Self {
        let pairs = level.multiplies_bf16() && dtype == Dtype::Bf16;
        // SAFETY: the caller's promise.
        let packed = unsafe { Packed::new(team, weight, epilogue.gated, pairs) };
        let bias = packed.columns().bias(bias);
        let level = if pairs { level } else { level.for_float32() };
        Self { level, team, weight: packed, bias, epilogue, dtype }
    }

    /// Bytes of the packed weight and the bias.
    pub fn num_bytes(&self) -> usize {
        self.weight.num_bytes() + size_of_val(self.bias.as_slice())
    }

    /// Columns of the result.
    pub fn columns(&self) -> usize {
        self.weight.columns().results()
    }

    fn finish(&self, out: *mut u8) -> Finish<'_> {
        Finish { epilogue: self.epilogue, bias: &self.bias, columns: self.columns(), out }
    }

    /// # Safety
    /// `x` is readable for `rows * inputs` values of the input's dtype, `out` writable for `rows * columns()` values of
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
            input: self.dtype,
            columns: self.columns(),
            output: self.epilogue.out_dtype,
        }
    }

    pub(crate) fn strips(&self) -> usize {
        self.weight.columns().strips()
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
