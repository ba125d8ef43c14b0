//! Connections: accepted, counted, held to their time, ended in order.
//!
//! Bodies and answers have limits of their own. What is bounded here is what comes before a request: a client that sends
//! nothing, or a head byte by byte, would else hold its connection for ever. And their number: when no more are to be
//! had, those that ask for nothing make room, the longest idle first, and then those whose bodies have been coming for long.
//! So nobody is kept out by connections that were only opened, or by requests that never come whole.

mod answer;
mod coming;
mod credit;
mod crowd;
mod leftovers;
mod standing;
mod wire;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt, service_fn};

use answer::PIECE;
pub(crate) use answer::UntilWritten;
pub(crate) use coming::CutShort;
pub(crate) use crowd::most_connections;
use crowd::{Crowd, Visit};
use leftovers::{lend, say_farewell};
use standing::Standing;
use wire::Wire;

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often an incomplete preface is looked at again.
const GLANCE: Duration = Duration::from_millis(50);
/// An HTTP/2 client that does not answer pings is gone.
const PING: Duration = Duration::from_secs(30);
/// After an error of the system, as when there are no more files to open.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request's head in HTTP/1 (HTTP/2: of its headers), its path among them.
const HEAD_BYTES: usize = 64 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 100;
/// In which a client whose body was cut short may take the answer, and say that it knows of the connection's end.
const PARTING: Duration = Duration::from_secs(3);
/// Requests that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 200;

/// What connections are held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// For a request's head, and for the pause before it.
    pub(crate) patience: Duration,
    /// At once.
    pub(crate) most: usize,
    /// A body that has been coming for so long makes room when there are more.
    pub(crate) slow: Duration,
    /// For a client to take what is written to it; who takes little by little has to take some of it every second.
    pub(crate) reader_patience: Duration,
    /// Bytes of a body that are read although its request has been answered.
    pub(crate) leftover_bytes: u64,
}

/// Serves until `stop`; then no connection is taken, and it returns when every one has ended. `tune` is called with every
/// connection.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    stop: CancellationToken,
    terms: Terms,
    tune: impl Fn(&TcpStream),
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let crowd = Crowd::new(terms.most, terms.slow);
    loop {
        // Nobody makes room before somebody has come.
        let next = async {
            let (connection, _) = listener.accept().await?;
            Ok::<_, io::Error>((connection, crowd.enter().await))
        };
        let next = tokio::select! {
            next = next => next,
            () = stop.cancelled() => break,
        };
        let (connection, visit) = match next {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                crowd.evict();
                sleep(PAUSE).await;
                continue;
            }
        };
        tune(&connection);
        let session = Session { visit, routes: routes.clone(), terms, _inside: graceful.watcher() };
        tokio::spawn(session.run(connection, stop.clone()));
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// One connection's life.
struct Session {
    visit: Visit,
    routes: Router,
    terms: Terms,
    /// Waited for when the server ends.
    _inside: Watcher,
}

impl Session {
    async fn run(self, connection: TcpStream, stop: CancellationToken) {
        let standing = Arc::clone(&self.visit.standing);
        let Terms { patience, reader_patience, leftover_bytes, .. } = self.terms;
        let protocol = tokio::select! {
            begun = stop.run_until_cancelled(timeout(patience, begin(&connection))) => begun,
            () = standing.evicted() => return,
        };
        let Some(Ok(Ok(protocol))) = protocol else { return };
        let lingers = Arc::new(AtomicBool::new(false));
        let wire = Wire::new(connection, reader_patience, Arc::clone(&lingers));
        let (routes, counted) = (self.routes, Arc::clone(&standing));
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (routes, inside, lingers) = (routes.clone(), counted.request(), Arc::clone(&lingers));
            let counted = Arc::clone(&counted);
            async move {
                // Later versions have no such header, and connections that outlive an unread body.
                let ends_with_it = request.version() <= Version::HTTP_11;
                let (request, loan) = lend(request.map(|body| counted.coming(body)));
                let mut response = routes.oneshot(request).await?;
                if let Some(loan) = loan
                    && !loan.settle(leftover_bytes).await
                    && ends_with_it
                {
                    say_farewell(&mut response);
                    lingers.store(true, Ordering::Relaxed);
                }
                Ok::<_, Infallible>(inside.until_over(response, reader_patience))
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        let http1 = &mut builder.http1();
        http1.timer(TokioTimer::new()).header_read_timeout(patience);
        http1.max_buf_size(HEAD_BYTES).max_headers(MAX_HEADERS);
        let http2 = &mut builder.http2();
        http2.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
        http2.max_header_list_size(HEAD_BYTES as u32).max_concurrent_streams(MAX_STREAMS);
        // Of each stream, beside the piece that waits to be sent.
        http2.max_send_buf_size(PIECE);
        let service = TowerToHyperService::new(service);
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(wire), service).into_owned();
        let last_answers = GracefulShutdown::new();
        let serving = last_answers.watch(serving);
        tokio::select! {
            ended = serving => if let Err(error) = ended {
                tracing::debug!(error, "a connection ended");
            },
            () = leave(&standing, &stop, last_answers) => tracing::debug!("an idle connection makes room"),
            never = standing.hold_to_time(reader_patience) => match never {},
            // HTTP/1 has a timeout of its own for this.
            () = standing.idle_for(patience), if protocol == Protocol::Http2 => {}
        }
    }
}

/// Completes when a connection has to make room. When the server stops, or a request came in the moment in which its
/// connection was chosen to make room, the answers that are due are the last: then it ends of itself.
async fn leave(standing: &Standing, stop: &CancellationToken, last_answers: GracefulShutdown) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = standing.evicted() => if standing.is_idle() && !standing.is_cut() { return },
    }
    tokio::select! {
        () = last_answers.shutdown() => {}
        // A client of HTTP/2 may go on asking, and never say that it knows.
        () = standing.idle_for(PARTING), if standing.is_cut() => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Completes when a connection has begun with all of HTTP/2's preface, or with anything but a part of it: from there on
/// the protocols have timeouts of their own.
async fn begin(connection: &TcpStream) -> io::Result<Protocol> {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let read = connection.peek(&mut bytes).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !PREFACE.starts_with(&bytes[..read]) {
            return Ok(Protocol::Http1);
        }
        if read == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        sleep(GLANCE).await;
    }
}

#[cfg(test)]
mod tests;
