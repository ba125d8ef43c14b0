//! `Exchange`: sums, broadcasts and gathered columns among the ranks of one machine.

use std::sync::{Mutex, PoisonError};

use millrace_kernels_core::exchange::{Ended, Exchange as Core, Gather, shared_bytes};
use pyo3::exceptions::{PyConnectionAbortedError, PyValueError};
use pyo3::prelude::*;

#[pyclass(frozen)]
pub(crate) struct Exchange {
    core: Mutex<Core>,
    rank: usize,
    alive: Py<PyAny>,
}

#[pymethods]
impl Exchange {
    /// `memory`: the address of what all ranks share, `shared_bytes(size)` zeros at first, aligned to 128; the caller
    /// keeps it. `alive` is called now and then while this rank waits; what it raises ends the exchange.
    #[new]
    fn new(memory: usize, rank: usize, size: usize, alive: Py<PyAny>) -> PyResult<Self> {
        if rank >= size || memory == 0 || !memory.is_multiple_of(128) {
            return Err(PyValueError::new_err(format!("no exchange at {memory:#x} for rank {rank} of {size}")));
        }
        // SAFETY: the caller has made the memory and gives every rank one end.
        let core = unsafe { Core::new(memory as *mut u8, rank, size) };
        Ok(Self { core: Mutex::new(core), rank, alive })
    }

    #[staticmethod]
    fn shared_bytes(size: usize) -> usize {
        shared_bytes(size)
    }

    /// Until `end_step`, exchanges raise `ConnectionAbortedError` when another rank has ended the step without them.
    fn begin_step(&self) {
        self.core.lock().unwrap_or_else(PoisonError::into_inner).begin_step();
    }

    /// Says how the step went here, 0 being well, and waits for the others: the worst outcome, and a rank that had it.
    fn end_step(&self, py: Python<'_>, outcome: u8) -> PyResult<(u8, usize)> {
        py.detach(|| {
            let alive = || Python::attach(|py| self.alive.call0(py).map(drop));
            let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
            core.end_step(outcome, &alive).map(|verdict| (verdict.outcome, verdict.rank))
        })
    }

    /// Sums `count` float32 over the ranks, in place.
    fn sum(&self, py: Python<'_>, x: usize, count: usize) -> PyResult<()> {
        self.run(py, |core, alive| {
            // SAFETY: the caller has checked the tensor behind the address.
            unsafe { core.sum(x as *mut f32, count, alive) }
        })
    }

    /// Overwrites `bytes` with rank 0's.
    fn broadcast(&self, py: Python<'_>, x: usize, bytes: usize) -> PyResult<()> {
        self.run(py, |core, alive| {
            // SAFETY: the caller has checked the tensor behind the address.
            unsafe { core.broadcast(x as *mut u8, bytes, alive) }
        })
    }

    /// On rank 0, writes the ranks' `rows` of `row_bytes` side by side to `out`; elsewhere `out` is not used.
    fn gather(&self, py: Python<'_>, x: usize, rows: usize, row_bytes: usize, out: usize) -> PyResult<()> {
        if self.rank == 0 && out == 0 {
            return Err(PyValueError::new_err("rank 0 gathers into memory of its own"));
        }
        self.run(py, |core, alive| {
            let call = Gather { x: x as *const u8, rows, row_bytes, out: out as *mut u8 };
            // SAFETY: the caller has checked the tensors behind the addresses.
            unsafe { core.gather(call, alive) }
        })
    }
}

impl Exchange {
    /// Runs an exchange without holding the interpreter; it is taken back only to ask whether the others live.
    fn run(
        &self,
        py: Python<'_>,
        exchange: impl FnOnce(&mut Core, &dyn Fn() -> PyResult<()>) -> Result<(), Ended<PyErr>> + Send,
    ) -> PyResult<()> {
        py.detach(|| {
            let alive = || Python::attach(|py| self.alive.call0(py).map(drop));
            // A panic under the lock has ended the process's exchange anyway.
            let ended = exchange(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner), &alive);
            ended.map_err(|ended| match ended {
                Ended::Gone(error) => error,
                Ended::Left(rank) => PyConnectionAbortedError::new_err(format!("rank {rank} has left the step")),
            })
        })
    }
}
