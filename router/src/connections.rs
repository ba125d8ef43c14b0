//! Connections: accepted, held to their time, ended in order.
//!
//! Bodies and answers have limits of their own. What is bounded here is what comes before a request: a client that sends
//! nothing, or a head byte by byte, would else hold its connection for ever.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often an incomplete preface is looked at again.
const GLANCE: Duration = Duration::from_millis(50);
/// An HTTP/2 client that does not answer pings is gone.
const PING: Duration = Duration::from_secs(30);
/// After an error of the system, as when there are no more files to open.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`; then no connection is taken, and it returns when every one has ended. `patience` is for a request's
/// head, and for the pause before it. `tune` is called with every connection.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    stop: CancellationToken,
    patience: Duration,
    tune: impl Fn(&TcpStream),
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let connection = match accepted {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        tune(&connection);
        let (service, watcher) = (TowerToHyperService::new(routes.clone()), graceful.watcher());
        let stop = stop.clone();
        tokio::spawn(async move {
            let begun = stop.run_until_cancelled(timeout(patience, begin(&connection))).await;
            if !matches!(begun, Some(Ok(Ok(())))) {
                return;
            }
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
            builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
            let serving = builder.serve_connection_with_upgrades(TokioIo::new(connection), service).into_owned();
            if let Err(error) = watcher.watch(serving).await {
                tracing::debug!(error, "a connection ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// Completes when a connection has begun with anything but a part of HTTP/2's preface: from there on the protocols have
/// timeouts of their own.
async fn begin(connection: &TcpStream) -> io::Result<()> {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let read = connection.peek(&mut bytes).await?;
        if read == PREFACE.len() || !PREFACE.starts_with(&bytes[..read]) {
            return Ok(());
        }
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sleep(GLANCE).await;
    }
}
