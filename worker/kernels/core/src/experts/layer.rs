//! One product of an expert, over a plain weight or a quantized one.

use std::ops::Range;
use std::sync::Arc;

use crate::Dtype;
use crate::linear::{self, Linear};
use crate::quantized::{self, QuantizedLinear};

#[derive(Clone, Debug)]
pub enum Layer {
    Plain(Arc<Linear>),
    Quantized(Arc<QuantizedLinear>),
}

/// What a layer takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) inputs: usize,
    pub(crate) input: Dtype,
    /// Columns of the result.
    pub(crate) columns: usize,
    pub(crate) output: Dtype,
}

/// What a thread keeps from one task to the next.
#[derive(Default)]
pub(crate) struct Own {
    plain: linear::Panel,
    quantized: quantized::Panel,
}

impl Layer {
    pub(crate) fn form(&self) -> Form {
        match self {
            Self::Plain(linear) => linear.form(),
            Self::Quantized(linear) => linear.form(),
        }
    }

    pub(crate) fn strips(&self) -> usize {
        match self {
            Self::Plain(linear) => linear.strips(),
            Self::Quantized(linear) => linear.strips(),
        }
    }

    /// Some rows, at most `BLOCK_ROWS`, of the columns of some strips. With one `own` the same rows are always the same
    /// rows of the same `x`.
    ///
    /// # Safety
    /// `x` and `out` are good for these rows; no two threads share a strip's columns of a row.
    pub(crate) unsafe fn part(
        &self,
        own: &mut Own,
        (x, out): (*const u8, *mut u8),
        rows: Range<usize>,
        strips: Range<usize>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Plain(linear) => linear.part(&mut own.plain, (x, out), rows, strips),
                Self::Quantized(linear) => linear.part(&mut own.quantized, (x, out), rows, strips),
            }
        }
    }
}
