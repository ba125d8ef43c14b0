//! `QuantizedLinear`: a matrix product over packed weights of 8 or 4 bits, with bias, activation and gate in the same pass.

use std::sync::Arc;

use millrace_kernels_core::linear::Epilogue;
use millrace_kernels_core::quantized::{Codes, QuantizedLinear as Core, Weight};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::linear::{ActivationColumn, activation};
use crate::machine::{Machine, dtype};

#[pyclass(frozen)]
pub(crate) struct QuantizedLinear {
    pub(crate) core: Arc<Core>,
}

#[pymethods]
impl QuantizedLinear {
    /// Packs a contiguous weight into memory of its own: the tensors may go. `weight`: addresses of its codes, scales and
    /// zeros (0: there are none). `form`: outputs, inputs, inputs of a group, bits of a code. `dtypes`: of the input,
    /// the scales and the result. `epilogue`: an activation or None, and whether it is gated.
    #[new]
    #[pyo3(signature = (machine, weight, form, dtypes, bias, epilogue))]
    fn new(
        machine: Machine,
        weight: (usize, usize, usize),
        form: (usize, usize, usize, u32),
        dtypes: (String, String, String),
        bias: Option<Vec<f32>>,
        epilogue: (Option<ActivationColumn>, bool),
    ) -> PyResult<Self> {
        let (outputs, inputs, group, bits) = form;
        let codes = codes(bits)?;
        if !Core::supports(outputs, inputs, group, epilogue.1) || (codes == Codes::Eight && weight.2 != 0) {
            return Err(PyValueError::new_err(format!(
                "no packed form of {outputs} outputs by {inputs} inputs of {bits} bits in groups of {group}"
            )));
        }
        if bias.as_ref().is_some_and(|bias| bias.len() != outputs) {
            return Err(PyValueError::new_err(format!("a bias of {outputs} outputs has as many values")));
        }
        let weight = Weight {
            at: weight.0 as *const u8,
            codes,
            outputs,
            inputs,
            group,
            scales: weight.1 as *const u8,
            scale_dtype: dtype(&dtypes.1)?,
            zeros: weight.2 as *const u8,
        };
        let activation = epilogue.0.as_ref().map(activation).transpose()?;
        let epilogue = Epilogue { activation, gated: epilogue.1, out_dtype: dtype(&dtypes.2)? };
        let input = dtype(&dtypes.0)?;
        // SAFETY: the caller has checked the tensors behind the addresses.
        let core = unsafe { Core::new(machine.level, machine.team, weight, bias.as_deref(), epilogue, input) };
        Ok(Self { core: Arc::new(core) })
    }

    /// Whether there is a packed form: of 8 or 4 bits, in groups of a multiple of 8 inputs, or one group of all.
    #[staticmethod]
    fn supports(form: (usize, usize, usize, u32), gated: bool) -> bool {
        let (outputs, inputs, group, bits) = form;
        codes(bits).is_ok() && Core::supports(outputs, inputs, group, gated)
    }

    /// out = epilogue(x W^T + bias) for contiguous rows.
    fn apply(&self, py: Python<'_>, x: usize, rows: usize, out: usize) {
        // SAFETY: the caller has checked the tensors behind the addresses.
        py.detach(|| unsafe { self.core.apply(x as *const u8, rows, out as *mut u8) });
    }

    /// What the packed weight and the bias take.
    #[getter]
    fn num_bytes(&self) -> usize {
        self.core.num_bytes()
    }
}

fn codes(bits: u32) -> PyResult<Codes> {
    match bits {
        8 => Ok(Codes::Eight),
        4 => Ok(Codes::Four),
        _ => Err(PyValueError::new_err(format!("codes have 8 or 4 bits, not {bits}"))),
    }
}
