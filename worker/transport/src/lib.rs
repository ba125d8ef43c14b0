//! The Python module `millrace_transport`: a worker's gRPC server. Its calls carry bytes; messages are Python's affair.
//!
//! One thread reads and writes all sockets and never needs the interpreter, so that a plan is received and a result sent
//! while Python computes. Functions of Python run in threads of their own.

mod calls;
mod codec;
mod ending;
mod server;
mod service;
mod stream;

use pyo3::prelude::*;

/// Raised with every change of what the worker calls: it refuses a module of another number.
const INTERFACE: u32 = 1;

#[pymodule]
fn millrace_transport(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add("RefusedError", module.py().get_type::<calls::RefusedError>())?;
    module.add_class::<calls::Call>()?;
    module.add_class::<stream::Stream>()?;
    module.add_class::<server::Server>()
}
