//! `Experts`: a mixture's experts, all of them in one call.

use std::sync::Arc;

use millrace_kernels_core::experts::{Expert, Experts as Core, Layer, Scratch, Tokens};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::linear::Linear;
use crate::machine::Machine;
use crate::quantized::QuantizedLinear;

/// A linear layer of either kind.
#[derive(FromPyObject)]
enum AnyLinear<'py> {
    Plain(Bound<'py, Linear>),
    Quantized(Bound<'py, QuantizedLinear>),
}

impl AnyLinear<'_> {
    fn layer(&self) -> Layer {
        match self {
            Self::Plain(linear) => Layer::Plain(Arc::clone(&linear.get().core)),
            Self::Quantized(linear) => Layer::Quantized(Arc::clone(&linear.get().core)),
        }
    }
}

#[pyclass(frozen)]
pub(crate) struct Experts {
    core: Core,
}

#[pymethods]
impl Experts {
    /// `experts`: what each goes up and down by; all alike, down to float32. `weigh_input`: a token's weights scale what
    /// its experts take, not what they give. Raises `ValueError` for experts that differ.
    #[new]
    fn new(machine: Machine, experts: Vec<(AnyLinear<'_>, AnyLinear<'_>)>, weigh_input: bool) -> PyResult<Self> {
        let experts = experts.iter().map(|(up, down)| Expert { up: up.layer(), down: down.layer() }).collect();
        let core = Core::new(machine.level, machine.team, experts, weigh_input);
        core.map(|core| Self { core }).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// How many rows of scratch a call for so many tokens with so many choices of each needs.
    fn scratch_rows(&self, tokens: usize, choices: usize) -> PyResult<usize> {
        if choices == 0 {
            return Err(PyValueError::new_err("a token chooses one expert at least"));
        }
        Ok(self.core.scratch_rows(tokens, choices))
    }

    /// The sums of what the experts give. `x`: address of contiguous rows, and their number. `chosen`: addresses of int64
    /// [rows, choices] and float32 weights, and the choices, one at least. `scratch`: memory for `scratch_rows` of what the
    /// experts take, what goes up, and float32 of what comes down. `out`: float32. Raises `ValueError` for an expert that
    /// there is not.
    fn apply(
        &self,
        py: Python<'_>,
        x: (usize, usize),
        chosen: (usize, usize, usize),
        scratch: (usize, usize, usize),
        out: usize,
    ) -> PyResult<()> {
        py.detach(|| {
            let tokens = Tokens {
                x: x.0 as *const u8,
                count: x.1,
                choices: chosen.2,
                chosen: chosen.0 as *const i64,
                weights: chosen.1 as *const f32,
                out: out as *mut f32,
            };
            let scratch =
                Scratch { sorted: scratch.0 as *mut u8, hidden: scratch.1 as *mut u8, results: scratch.2 as *mut f32 };
            // SAFETY: the caller has checked the tensors behind the addresses.
            unsafe { self.core.apply(tokens, scratch) }
        })
        .map_err(|error| PyValueError::new_err(error.to_string()))
    }
}
