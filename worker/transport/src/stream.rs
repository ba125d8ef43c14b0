//! A stream of requests down and answers up, as one thread of Python reads and writes it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tonic::{Response, Status, Streaming};

use crate::calls::{cancelled, status};
use crate::ending::{EndOnDrop, Ending};

/// Requests that wait for Python. What more comes waits in the sockets' buffers.
const WAITING: usize = 8;

type Sent = Result<Bytes, Status>;

/// A stream as its method sees it.
#[pyclass(frozen)]
#[derive(Clone)]
pub(crate) struct Stream(Arc<Ends>);

struct Ends {
    requests: Mutex<mpsc::Receiver<Bytes>>,
    /// None: the last answer has been sent.
    answers: Mutex<Option<mpsc::UnboundedSender<Sent>>>,
    ending: Ending,
    /// What to call when the stream ends before its method does. Locked without the interpreter, which is taken under
    /// the lock: who sets another waits for a call that is under way.
    on_end: Mutex<Option<Py<PyAny>>>,
}

#[pymethods]
impl Stream {
    /// Waits for the next request. None: the client has sent its last one, or the stream has ended.
    fn receive<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let ends = &self.0;
        if ends.ending.has_come() {
            return None;
        }
        let next = py.detach(|| locked(&ends.requests).blocking_recv());
        next.filter(|_| !ends.ending.has_come()).map(|request| PyBytes::new(py, &request))
    }

    /// Never waits. Goes nowhere if the client is gone.
    fn send(&self, answer: &[u8]) {
        if let Some(answers) = &*locked(&self.0.answers) {
            // Fails only if nobody listens.
            let _ = answers.send(Ok(Bytes::copy_from_slice(answer)));
        }
    }

    /// Whether somebody still waits for what is to come.
    fn is_active(&self) -> bool {
        !self.0.ending.has_come()
    }

    /// No further request is received; what is sent still arrives.
    fn end(&self, py: Python<'_>) {
        py.detach(|| self.0.end());
    }

    /// As `end`, and the client is told that its call was cancelled, after what has been sent so far.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| {
            self.0.close(Some(cancelled()));
            self.0.end();
        });
    }

    /// `call()` is called, from any thread, when the stream ends before its method does: at once if that was before.
    /// None: nothing is called from now on, and a call that is under way has returned.
    #[pyo3(signature = (call, /))]
    fn on_end(&self, py: Python<'_>, call: Option<Py<PyAny>>) {
        py.detach(|| {
            let mut on_end = locked(&self.0.on_end);
            match call {
                Some(call) if self.0.ending.has_come() => told(&call),
                call => *on_end = call,
            }
        });
    }
}

impl Ends {
    fn end(&self) {
        self.ending.end();
        let mut on_end = locked(&self.on_end);
        if let Some(call) = on_end.take() {
            told(&call);
        }
    }

    /// After the answers so far: this status, or that all is well.
    fn close(&self, with: Option<Status>) {
        if let Some(answers) = locked(&self.answers).take()
            && let Some(status) = with
        {
            let _ = answers.send(Err(status));
        }
    }

    /// The method has returned.
    fn finish(&self, with: Option<Status>) {
        locked(&self.on_end).take();
        self.close(with);
        self.ending.end();
    }
}

/// Answers with what `method(stream)` sends. The head of the answer goes out at once.
pub(crate) fn answer(method: Arc<Py<PyAny>>, requests: Streaming<Bytes>) -> Response<Answers> {
    let (to_python, waiting) = mpsc::channel(WAITING);
    let (answers, from_python) = mpsc::unbounded_channel();
    let ending = Ending::new();
    let ends = Arc::new(Ends {
        requests: Mutex::new(waiting),
        answers: Mutex::new(Some(answers)),
        ending: ending.clone(),
        on_end: Mutex::default(),
    });
    tokio::spawn(read(requests, to_python, Arc::clone(&ends)));
    drop(spawn_blocking(move || {
        let with = Python::attach(|py| {
            let returned = method.call1(py, (Stream(Arc::clone(&ends)),));
            returned.err().map(|error| status(py, &error))
        });
        ends.finish(with);
    }));
    Response::new(Answers { from_python, _ends_with_the_client: ending.on_drop() })
}

/// Hands requests to Python until the client is gone, or the method has returned.
async fn read(mut requests: Streaming<Bytes>, to_python: mpsc::Sender<Bytes>, ends: Arc<Ends>) {
    let ending = ends.ending.clone();
    let reading = async {
        loop {
            match requests.message().await {
                Ok(Some(request)) => {
                    if to_python.send(request).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(status) => {
                    // No message, or none that may be so large: its client is told. One that is gone hears nothing.
                    ends.close(Some(status));
                    ending.end();
                    break;
                }
            }
        }
        drop(to_python); // Python has them all; the client may still leave
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = ending.comes() => {}
    }
    // What is to be called waits for the interpreter.
    let _ = spawn_blocking(move || ends.end()).await;
}

/// Calls what was to be told of an end. It has nobody to raise to but the process's own hook for such errors.
fn told(call: &Py<PyAny>) {
    Python::attach(|py| {
        if let Err(error) = call.call0(py) {
            error.write_unraisable(py, Some(call.bind(py)));
        }
    });
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What goes to the client. Dropped when it is gone.
pub(crate) struct Answers {
    from_python: mpsc::UnboundedReceiver<Sent>,
    _ends_with_the_client: EndOnDrop,
}

impl tokio_stream::Stream for Answers {
    type Item = Sent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Sent>> {
        self.from_python.poll_recv(context)
    }
}
