//! Calls of one request and one answer, and how what Python raises becomes a status.

use std::sync::Arc;

use bytes::Bytes;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::task::spawn_blocking;
use tonic::{Code, Response, Status};

use crate::ending::Ending;

create_exception!(
    millrace_transport,
    RefusedError,
    PyException,
    "Raised with (code, message) by a method: the gRPC status, a number, that its client is told."
);

/// A call as its method sees it.
#[pyclass(frozen)]
pub(crate) struct Call {
    ending: Ending,
}

#[pymethods]
impl Call {
    /// Whether its client still waits.
    fn is_active(&self) -> bool {
        !self.ending.has_come()
    }

    /// The client is told that the call was cancelled; its method goes on until it asks `is_active`.
    fn cancel(&self) {
        self.ending.end();
    }
}

/// Answers with what `method(call, request)` returns, computed in a thread of its own.
pub(crate) async fn answer(method: Arc<Py<PyAny>>, request: Bytes) -> Result<Response<Bytes>, Status> {
    let ending = Ending::new();
    let _ends_with_the_client = ending.on_drop();
    let call = Call { ending: ending.clone() };
    let answered = spawn_blocking(move || {
        Python::attach(|py| {
            let answer = method.call1(py, (call, PyBytes::new(py, &request)));
            let answer = answer.and_then(|answer| Ok(Bytes::copy_from_slice(answer.extract(py)?)));
            answer.map_err(|error| status(py, &error))
        })
    });
    tokio::select! {
        answer = answered => answer.unwrap_or_else(|panic| Err(Status::internal(panic.to_string()))).map(Response::new),
        () = ending.comes() => Err(cancelled()),
    }
}

pub(crate) fn cancelled() -> Status {
    Status::cancelled("a newer call has replaced this one")
}

/// `RefusedError` says which status; anything else is an error that nobody has foreseen.
pub(crate) fn status(py: Python<'_>, error: &PyErr) -> Status {
    if error.is_instance_of::<RefusedError>(py)
        && let Ok((code, message)) = error.value(py).getattr("args").and_then(|args| args.extract::<(i32, String)>())
    {
        return Status::new(Code::from_i32(code), message);
    }
    Status::unknown(error.to_string())
}
