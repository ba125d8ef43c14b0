//! What operators are made on: the instruction-set level and the threads.

use millrace_kernels_core::Dtype;
use millrace_kernels_core::level::Level;
use millrace_kernels_core::team::{GompParallel, GompThreadNum, OpenMp, Team};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

#[pyclass(frozen, from_py_object)]
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) level: Level,
    pub(crate) team: Team,
    /// Not for the kernels themselves: who chooses them asks.
    multiplies: bool,
}

#[pymethods]
impl Machine {
    /// `level`: a name from `levels()`, or None for the best. `parallel` and `thread_num` are the addresses of
    /// libgomp's `GOMP_parallel` and `omp_get_thread_num`, or 0: then one thread computes.
    #[new]
    fn new(level: Option<&str>, threads: usize, parallel: usize, thread_num: usize) -> PyResult<Self> {
        let level = match level {
            Some(name) => name.parse().map_err(|error| PyValueError::new_err(format!("{error}")))?,
            None => Level::best(),
        };
        let openmp = (parallel != 0 && thread_num != 0).then(|| {
            // SAFETY: the caller looked these addresses up by name in libgomp; the signatures are its documented ABI.
            unsafe {
                OpenMp {
                    parallel: std::mem::transmute::<usize, GompParallel>(parallel),
                    thread_num: std::mem::transmute::<usize, GompThreadNum>(thread_num),
                }
            }
        });
        Ok(Self { level, team: Team::new(openmp, threads), multiplies: true })
    }

    /// From here on kernels are shared by threads of their own, as many as this machine's, and not by OpenMP's.
    fn start_helpers(&self) -> PyResult<()> {
        self.team.start_helpers().map_err(|error| PyOSError::new_err(format!("a thread for kernels: {error}")))
    }

    /// The levels of this CPU, the best last.
    #[staticmethod]
    fn levels() -> Vec<&'static str> {
        Level::available().into_iter().map(Level::name).collect()
    }

    #[getter]
    fn level(&self) -> &'static str {
        self.level.name()
    }

    #[getter]
    fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The same, for a CPU on which another library is to multiply by weights of bfloat16.
    const fn without_products(&self) -> Self {
        Self { multiplies: false, ..*self }
    }

    /// Whether weights of bfloat16 are for these kernels.
    #[getter]
    const fn multiplies(&self) -> bool {
        self.multiplies
    }

    /// Whether the CPU multiplies bfloat16 itself.
    #[getter]
    fn multiplies_bf16(&self) -> bool {
        self.level.multiplies_bf16()
    }
}

/// "float32" or "bfloat16".
pub(crate) fn dtype(name: &str) -> PyResult<Dtype> {
    match name {
        "float32" => Ok(Dtype::F32),
        "bfloat16" => Ok(Dtype::Bf16),
        _ => Err(PyValueError::new_err(format!("kernels compute float32 and bfloat16, not {name}"))),
    }
}
