//! The Python module `millrace_kernels`. It takes addresses of tensors as integers: torch owns them, and the caller in
//! `millrace_worker` has checked dtype, shape and contiguity. Every call releases the interpreter while it computes.

mod attention;
mod chain;
mod exchange;
mod experts;
mod linear;
mod machine;
mod norm;
mod quantized;
mod sampling;

use pyo3::prelude::*;

/// Raised with every change of what the worker calls: it refuses a module of another number.
const INTERFACE: u32 = 7;

#[pymodule]
fn millrace_kernels(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add_class::<machine::Machine>()?;
    module.add_class::<attention::Attention>()?;
    module.add_class::<attention::Plan>()?;
    module.add_class::<attention::Step>()?;
    module.add_class::<chain::Chain>()?;
    module.add_class::<exchange::Exchange>()?;
    module.add_class::<experts::Experts>()?;
    module.add_class::<linear::Linear>()?;
    module.add_class::<norm::Norm>()?;
    module.add_class::<quantized::QuantizedLinear>()?;
    module.add_class::<sampling::Sampler>()
}
