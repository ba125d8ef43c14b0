//! `Attention`: one layer's attention over pages; `Step` and `Plan`: what a step computes, split into tasks.

use std::sync::Arc;

use millrace_kernels_core::attention::{
    Attention as Core, Config, HeadNorm, PageTable, Pairs, Plan as CorePlan, Rule, Step as CoreStep, Tensors,
};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::machine::{Machine, dtype};

#[pyclass(frozen)]
pub(crate) struct Step(Arc<CoreStep>);

#[pymethods]
impl Step {
    /// Entry i computes the positions `starts[i] .. starts[i] + counts[i]` of the sequence in row `rows[i]` of the page
    /// table: int64 columns and an int32 table [rows, pages of a row], contiguous. Raises `ValueError` for a place that the
    /// table does not have and for a page that the pool of `num_pages` does not have.
    #[new]
    fn new(
        py: Python<'_>,
        rows: PyBuffer<i64>,
        starts: PyBuffer<i64>,
        counts: PyBuffer<i64>,
        page_table: PyBuffer<i32>,
        num_pages: usize,
    ) -> PyResult<Self> {
        let &[_, width] = page_table.shape() else {
            return Err(PyValueError::new_err("a page table has two dimensions"));
        };
        let table = PageTable { entries: slice(py, &page_table)?, width, num_pages };
        let step = CoreStep::new(slice(py, &rows)?, slice(py, &starts)?, slice(py, &counts)?, table);
        step.map(|step| Self(Arc::new(step))).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    #[getter]
    fn num_tokens(&self) -> usize {
        self.0.num_tokens()
    }
}

/// The values of a contiguous array.
fn slice<'a, T: pyo3::buffer::Element>(_py: Python<'a>, buffer: &'a PyBuffer<T>) -> PyResult<&'a [T]> {
    let values =
        buffer.as_slice_ptr().ok_or_else(|| PyValueError::new_err("a step's columns have to be contiguous"))?;
    // SAFETY: nobody writes to them while this thread holds the interpreter.
    Ok(unsafe { values.as_ref() })
}

#[pyclass(frozen)]
pub(crate) struct Plan(pub(crate) CorePlan);

#[pymethods]
impl Plan {
    #[getter]
    fn num_tokens(&self) -> usize {
        self.0.num_tokens()
    }
}

#[pyclass(frozen)]
pub(crate) struct Attention(pub(crate) Core);

/// scale, window, softcap, `ALiBi`'s slopes and sinks of the query heads
type RuleColumns = (f32, Option<usize>, Option<f32>, Option<Vec<f32>>, Option<Vec<f32>>);

#[pymethods]
impl Attention {
    /// `heads`: query heads, KV heads, dimensions of a head. `rule`: the scores' scale, then window, softcap, slopes of
    /// `ALiBi` and sinks, each of them or None. `pairs`: which dimensions are rotated together, "halves" or "neighbours".
    /// `norm`: epsilon and the weights [query heads + KV heads, dimensions] of an `RMSNorm` before the rotation, or None.
    /// `dtypes`: of q, k and v as they come, and of the pages and the result.
    /// Raises `ValueError` for a layer that there is no kernel for.
    #[new]
    #[pyo3(signature = (machine, heads, rule, pairs, norm, dtypes))]
    fn new(
        machine: Machine,
        heads: (usize, usize, usize),
        rule: RuleColumns,
        pairs: &str,
        norm: Option<(f32, Vec<f32>)>,
        dtypes: (String, String),
    ) -> PyResult<Self> {
        let pairs = match pairs {
            "halves" => Pairs::Halves,
            "neighbours" => Pairs::Neighbours,
            _ => return Err(PyValueError::new_err(format!("dimensions are not rotated in {pairs}"))),
        };
        let (scale, window, softcap, slopes, sinks) = rule;
        let config = Config {
            heads: heads.0,
            kv_heads: heads.1,
            head_dim: heads.2,
            rule: Rule { scale, window, softcap, slopes: slopes.unwrap_or_default(), sinks: sinks.unwrap_or_default() },
            pairs,
            norm: norm.map(|(eps, weight)| HeadNorm { eps, weight }),
            qkv_dtype: dtype(&dtypes.0)?,
            kv_dtype: dtype(&dtypes.1)?,
        };
        let core = Core::new(machine.level, machine.team, config);
        core.map(Self).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The step's tasks, for every layer with the same heads and window.
    fn plan(&self, step: &Step) -> Plan {
        Plan(self.0.plan(&step.0))
    }

    /// Writes k and v of the step's tokens to their pages and attends. `kv`: the layer's pages, of the pool that the step
    /// was made for, aligned to four bytes; `qkv` [T, (heads + 2 KV heads) * dimensions] and `out` [T, heads *
    /// dimensions], contiguous; `turns`: the address of cosines and sines float32 [T, 2 R] (cosines twice, negative sines,
    /// sines; R / 2 of each) and R, or two zeros.
    fn attend(
        &self,
        py: Python<'_>,
        plan: &Plan,
        kv: usize,
        qkv: usize,
        turns: (usize, usize),
        out: usize,
    ) -> PyResult<()> {
        py.detach(|| {
            let tensors = Tensors {
                kv: kv as *mut u8,
                qkv: qkv as *const u8,
                turns: turns.0 as *const f32,
                rotated: turns.1,
                out: out as *mut u8,
            };
            // SAFETY: the caller has checked the tensors behind the addresses.
            unsafe { self.0.attend(&plan.0, tensors) }
        })
        .map_err(|error| PyValueError::new_err(error.to_string()))
    }
}
