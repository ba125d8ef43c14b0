//! `Linear`: a matrix product over packed weights, with bias, activation and gate in the same pass.

use std::sync::Arc;

use millrace_kernels_core::linear::{Activation, Epilogue, Linear as Core, Lookup, Weight};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::machine::{Machine, dtype};

#[pyclass(frozen)]
pub(crate) struct Linear {
    pub(crate) core: Arc<Core>,
}

#[pymethods]
impl Linear {
    /// Packs the contiguous weight at `weight`, of `shape` (outputs, inputs), into memory of its own: the weight may go.
    /// `dtypes`: of weight and input, and of the result. `epilogue`: an activation or None, and whether it is gated.
    #[new]
    #[pyo3(signature = (machine, weight, shape, dtypes, bias, epilogue))]
    fn new(
        machine: Machine,
        weight: usize,
        shape: (usize, usize),
        dtypes: (String, String),
        bias: Option<Vec<f32>>,
        epilogue: (Option<ActivationColumn>, bool),
    ) -> PyResult<Self> {
        let (outputs, inputs) = shape;
        let weight = Weight { at: weight as *const u8, dtype: dtype(&dtypes.0)?, outputs, inputs };
        let activation = epilogue.0.as_ref().map(activation).transpose()?;
        let epilogue = Epilogue { activation, gated: epilogue.1, out_dtype: dtype(&dtypes.1)? };
        if !Core::supports(weight.dtype, outputs, inputs, epilogue.gated) {
            return Err(PyValueError::new_err(format!("no packed form of {outputs} outputs by {inputs} inputs")));
        }
        if bias.as_ref().is_some_and(|bias| bias.len() != outputs) {
            return Err(PyValueError::new_err(format!("a bias of {outputs} outputs has as many values")));
        }
        // SAFETY: the caller has checked the tensor behind the address.
        let core = unsafe { Core::new(machine.level, machine.team, weight, bias.as_deref(), epilogue) };
        Ok(Self { core: Arc::new(core) })
    }

    /// Whether there is a packed form of this weight; bfloat16 needs an even number of inputs.
    #[staticmethod]
    fn supports(dtype_name: &str, shape: (usize, usize), gated: bool) -> bool {
        dtype(dtype_name).is_ok_and(|dtype| Core::supports(dtype, shape.0, shape.1, gated))
    }

    /// out = epilogue(x W^T + bias) for contiguous rows.
    fn apply(&self, py: Python<'_>, x: usize, rows: usize, out: usize) {
        // SAFETY: the caller has checked the tensors behind the addresses.
        py.detach(|| unsafe { self.core.apply(x as *const u8, rows, out as *mut u8) });
    }

    /// Rows of the weight itself as float32, times `scale`. `ids`: address and number of int64 ids, of which the first
    /// row's is `first`; an id that is not among the rows gives zeros.
    fn lookup(&self, py: Python<'_>, ids: (usize, usize), first: i64, scale: f32, out: usize) -> PyResult<()> {
        if self.core.is_gated() {
            return Err(PyValueError::new_err("rows of a weight with a gate cannot be looked up"));
        }
        let lookup = Lookup { ids: ids.0 as *const i64, count: ids.1, first, scale, out: out as *mut f32 };
        // SAFETY: the caller has checked the tensors behind the addresses; there is no gate.
        py.detach(|| unsafe { self.core.lookup(lookup) });
        Ok(())
    }

    /// What the packed weight and the bias take.
    #[getter]
    fn num_bytes(&self) -> usize {
        self.core.num_bytes()
    }
}

/// The name of an activation, or alpha and limit of a gate that is clamped.
#[derive(FromPyObject)]
pub(crate) enum ActivationColumn {
    Named(String),
    Clamped((f32, f32)),
}

pub(crate) fn activation(column: &ActivationColumn) -> PyResult<Activation> {
    let name = match column {
        ActivationColumn::Named(name) => name.as_str(),
        ActivationColumn::Clamped((alpha, limit)) => {
            return Ok(Activation::ClampedGlu { alpha: *alpha, limit: *limit });
        }
    };
    match name {
        "silu" => Ok(Activation::Silu),
        "relu" => Ok(Activation::Relu),
        "relu2" => Ok(Activation::Relu2),
        "gelu" => Ok(Activation::Gelu),
        "gelu_tanh" => Ok(Activation::GeluTanh),
        _ => Err(PyValueError::new_err(format!("there is no activation {name}"))),
    }
}
