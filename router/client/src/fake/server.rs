//! A fake worker behind a real socket, in a thread of its own that can be killed like a process.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::service::{Death, FakeService};
use super::worker::FakeWorker;
use crate::connection::WINDOW_BYTES;

/// A fake worker that listens. Dropping it kills it.
#[derive(Debug)]
pub struct ServedFake {
    worker: FakeWorker,
    endpoint: String,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    thread: JoinHandle<io::Result<()>>,
    /// Dropped: the thread ends, and every socket with it.
    stop: oneshot::Sender<()>,
}

impl FakeWorker {
    /// Listens at `unix:PATH` (a stale socket file is removed) or `http://HOST:PORT` (port 0: any free one).
    pub fn serve(&self, endpoint: &str) -> io::Result<ServedFake> {
        let mut served = ServedFake { worker: self.clone(), endpoint: endpoint.to_owned(), running: None };
        served.restart()?;
        Ok(served)
    }

    /// Serves in this thread until it dies by its script.
    pub fn serve_here(&self, endpoint: &str) -> io::Result<()> {
        let (listener, _) = Listener::bind(endpoint)?;
        run(self, listener, std::future::pending::<()>())
    }
}

impl ServedFake {
    /// Where to connect.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn worker(&self) -> &FakeWorker {
        &self.worker
    }

    /// Like `kill -9`: every connection breaks, nobody listens any more.
    pub fn kill(&mut self) {
        if let Some(Running { thread, stop }) = self.running.take() {
            drop(stop);
            // Its error has been its end; a panic in there has failed the test in a clearer way.
            let _ = thread.join();
        }
    }

    /// Starts again at the same endpoint, with nothing prepared. Kills what still runs.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        let (listener, endpoint) = Listener::bind(&self.endpoint)?;
        self.endpoint = endpoint;
        let worker = self.worker.clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("fake worker {}", worker.rank()));
        let thread = thread.spawn(move || run(&worker, listener, stopped))?;
        self.running = Some(Running { thread, stop });
        Ok(())
    }
}

impl Drop for ServedFake {
    fn drop(&mut self) {
        self.kill();
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// The listener, and the endpoint that it really has.
    fn bind(endpoint: &str) -> io::Result<(Self, String)> {
        let refuse = || io::Error::other(format!("{endpoint} is neither unix:PATH nor http://HOST:PORT"));
        if let Some(path) = endpoint.strip_prefix("unix:") {
            remove_stale(Path::new(path))?;
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            return Ok((Self::Unix(listener), endpoint.to_owned()));
        }
        let listener = TcpListener::bind(endpoint.strip_prefix("http://").ok_or_else(refuse)?)?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        Ok((Self::Tcp(listener), endpoint))
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Serves until told to stop or dead. The runtime is dropped at the end, and with it every task and socket.
fn run<F: Future>(worker: &FakeWorker, listener: Listener, stopped: F) -> io::Result<()> {
    let runtime: Runtime = Builder::new_current_thread().enable_all().build()?;
    let mut deaths = worker.watch_deaths();
    runtime.block_on(async {
        tokio::select! {
            served = serve(worker.clone(), listener) => served,
            _ = deaths.changed() => Ok(()),
            _ = stopped => Ok(()),
        }
    })
}

async fn serve(worker: FakeWorker, listener: Listener) -> io::Result<()> {
    let service = FakeService::server(worker.clone(), Death::Silence);
    let (reporter, health) = tonic_health::server::health_reporter();
    let report = async move {
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        worker.loaded().await;
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        reporter.set_serving::<crate::v1::worker_server::WorkerServer<FakeService>>().await;
    };
    tokio::spawn(report);
    let server = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(health)
        .add_service(service);
    let outcome = match listener {
        Listener::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            server.serve_with_incoming(UnixListenerStream::new(listener)).await
        }
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await
        }
    };
    outcome.map_err(io::Error::other)
}
