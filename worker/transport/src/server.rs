//! A unix socket, the thread that serves it, and how both end.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use tokio::runtime::{self, Handle};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::service::{Method, Methods};

/// Threads for methods: one answers the stream; the rest wait for a load, tell the pulse, or leave at once.
const METHOD_THREADS: usize = 64;
/// HTTP/2 flow control: what admits long prompts comes without waiting for window updates.
const WINDOW_BYTES: u32 = 16 << 20;

/// Listens from its construction on. `calls`: methods of one request and one answer, `method(call, request) -> answer`;
/// `streams`: `method(stream)`.
#[pyclass(frozen)]
pub(crate) struct Server {
    health: HealthReporter,
    handle: Handle,
    /// For how long calls may go on after the end; None: no end yet.
    grace: watch::Sender<Option<Duration>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[pymethods]
impl Server {
    /// Raises `OSError` when it cannot listen at `path`.
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        calls: HashMap<String, Py<PyAny>>,
        streams: HashMap<String, Py<PyAny>>,
    ) -> PyResult<Self> {
        let methods = calls.into_iter().map(|(name, method)| (name, Method::Call(Arc::new(method))));
        let methods = methods.chain(streams.into_iter().map(|(name, method)| (name, Method::Stream(Arc::new(method)))));
        let methods = Methods::new(methods.collect());
        py.detach(|| Ok(Self::started(UnixListener::bind(path)?, methods)?))
    }

    /// What `grpc.health.v1` answers: not serving, until it is told.
    fn set_serving(&self, py: Python<'_>, is_serving: bool) {
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        py.detach(|| self.handle.block_on(self.health.set_service_status("", status)));
    }

    /// No new call; those that run may take `grace_seconds`, then they are cut. Returns when all is over.
    fn stop(&self, py: Python<'_>, grace_seconds: f64) -> PyResult<()> {
        let grace = Duration::try_from_secs_f64(grace_seconds);
        self.grace.send_replace(Some(grace.map_err(|error| PyValueError::new_err(error.to_string()))?));
        let ended = py.detach(|| {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            thread.is_none_or(|thread| thread.join().is_ok())
        });
        if ended { Ok(()) } else { Err(PyRuntimeError::new_err("the thread of the server has panicked")) }
    }
}

impl Server {
    fn started(listener: UnixListener, methods: Methods) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("method")
            .max_blocking_threads(METHOD_THREADS)
            .build()?;
        let incoming = {
            let _entered = runtime.enter();
            UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?)
        };
        let (health, service) = tonic_health::server::health_reporter();
        runtime.block_on(health.set_service_status("", ServingStatus::NotServing));
        let (grace, ends) = watch::channel(None);
        let handle = runtime.handle().clone();
        let serving = Serving { incoming, ends };
        let thread = Builder::new().name("grpc".to_owned()).spawn(move || {
            let router = tonic::transport::Server::builder()
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .add_service(service)
                .add_service(methods);
            runtime.block_on(serving.until_it_ends(router));
            // A method that does not return is no reason to wait.
            runtime.shutdown_background();
        })?;
        Ok(Self { health, handle, grace, thread: Mutex::new(Some(thread)) })
    }
}

struct Serving {
    incoming: UnixListenerStream,
    ends: watch::Receiver<Option<Duration>>,
}

impl Serving {
    async fn until_it_ends(self, router: tonic::transport::server::Router) {
        let (mut asked, mut cut) = (self.ends.clone(), self.ends);
        let asked = async move {
            // A server that was dropped ends, too.
            let _ = asked.wait_for(Option::is_some).await;
        };
        let cut = async move {
            let grace = cut.wait_for(Option::is_some).await.ok().and_then(|grace| *grace).unwrap_or_default();
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            // It does not fail: where no connection can be taken, it tries again.
            _ = router.serve_with_incoming_shutdown(self.incoming, asked) => {}
            () = cut => {}
        }
    }
}
