//! `Norm`: residual add and normalization in one pass.

use millrace_kernels_core::Dtype;
use millrace_kernels_core::norm::{Kind, Norm as Core, Rows};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::machine::{Machine, dtype};

#[pyclass(frozen)]
pub(crate) struct Norm {
    core: Core,
    out_dtype: Dtype,
    delta_dtype: Dtype,
}

#[pymethods]
impl Norm {
    /// `kind`: "rms" or "layer". `weight`, `bias`: the values, a multiple of 16 of them.
    #[new]
    #[pyo3(signature = (machine, kind, eps, weight, bias, dtypes))]
    fn new(
        machine: Machine,
        kind: &str,
        eps: f32,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        dtypes: (String, String),
    ) -> PyResult<Self> {
        let kind = match kind {
            "rms" => Kind::Rms,
            "layer" => Kind::Layer,
            _ => return Err(PyValueError::new_err(format!("there is no norm {kind}"))),
        };
        if !weight.len().is_multiple_of(16) || bias.as_ref().is_some_and(|bias| bias.len() != weight.len()) {
            return Err(PyValueError::new_err("a norm's parameters come in multiples of 16, weight and bias alike"));
        }
        let core = Core::new(machine.level, machine.team, kind, eps, &weight, bias.as_deref());
        Ok(Self { core, delta_dtype: dtype(&dtypes.0)?, out_dtype: dtype(&dtypes.1)? })
    }

    /// residual += delta (address 0: nothing to add); out = norm(residual). Contiguous rows.
    fn add_norm(&self, py: Python<'_>, residual: usize, delta: usize, out: usize, rows: usize) {
        py.detach(|| self.run(residual, delta, out, rows));
    }
}

impl Norm {
    /// As `add_norm`.
    pub(crate) fn run(&self, residual: usize, delta: usize, out: usize, rows: usize) {
        let rows = Rows {
            residual: residual as *mut f32,
            delta: delta as *const u8,
            delta_dtype: self.delta_dtype,
            out: out as *mut u8,
            out_dtype: self.out_dtype,
            rows,
        };
        // SAFETY: the caller has checked the tensors behind the addresses.
        unsafe { self.core.add_norm(rows) }
    }
}
