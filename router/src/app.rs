//! From a configuration to a running server: text side, engine, HTTP, and their end.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_client::ShardedClient;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connections;
use crate::detokenize::Detokenizer;
use crate::drain::{Drain, Ending};
use crate::engine::{Engine, EngineError, EngineHandle, EngineText, READER_PATIENCE};
use crate::health::Health;
use crate::http;
use crate::telemetry::Metrics;
use crate::tokenizer::{LoadError, TextModel};

/// How often recorded samples are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// What clients get to take their last bytes when no request is left or the engine has failed.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Text(#[from] LoadError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the engine ended unexpectedly: {0}")]
    EnginePanicked(#[from] JoinError),
    #[error("the HTTP server ended: {0}")]
    Http(#[from] io::Error),
}

/// Opens the port: clients can connect before anything is loaded.
pub async fn listen(config: &Config) -> Result<TcpListener, AppError> {
    let host = config.hostname.parse().unwrap_or_else(|_| {
        tracing::warn!(hostname = config.hostname, "not an address: listening on 0.0.0.0");
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    });
    let address = SocketAddr::new(host, config.port);
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, source })
}

/// Serves until `shutdown` completes, or a request asks for it, and every request that runs then has ended.
pub async fn run(
    config: Config,
    listener: TcpListener,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Ending, AppError> {
    let config = Arc::new(config);
    let text = Arc::new(load_text(&config).await?);
    let health = Health::default();
    let stop = CancellationToken::new();
    let detokenizer = Arc::new(Detokenizer::new(text.tokenizer()));
    let engine_text = EngineText {
        detokenizer: Arc::clone(&detokenizer),
        eos_token_ids: text.eos_token_ids(),
        model_max_length: text.model_max_length(),
    };
    let (engine, engine_task) = spawn_engine(&config, engine_text, &health, &metrics, &stop);
    spawn_upkeep(metrics.clone(), stop.clone());
    let num_places = config.max_places();
    let places = Arc::new(Semaphore::new(num_places as usize));
    let cut = Arc::new(AtomicBool::new(false));
    let drain = Drain::new(&config, health.clone(), engine.clone());
    spawn_stop(shutdown, drain, Arc::clone(&places), Arc::clone(&cut), stop.clone());
    let context = http::Context {
        config: Arc::clone(&config),
        health,
        engine,
        text,
        detokenizer,
        metrics,
        places: Arc::clone(&places),
    };
    let tune = |connection: &TcpStream| tune(connection, READER_PATIENCE);
    let patience = Duration::from_secs(config.head_timeout_seconds);
    let routes = http::router(context);
    let server = tokio::spawn(connections::serve(listener, routes, stop.clone(), patience, tune));
    end(server, engine_task, emptied(&stop, &places, num_places)).await?;
    Ok(if cut.load(Ordering::Relaxed) { Ending::Cut } else { Ending::Drained })
}

/// Completes when the server has been told to stop and no request is inside any more.
async fn emptied(stop: &CancellationToken, places: &Semaphore, num_places: u32) {
    stop.cancelled().await;
    // It errs if nobody can take places any more, which is as good.
    let _all = places.acquire_many(num_places).await;
}

/// Waits for whatever ends first. A server that stops lets its requests run out, and when none is left its clients get a
/// moment to read their answers: connections that ask for nothing do not keep it. An engine that fails ends all requests.
async fn end(
    mut server: JoinHandle<io::Result<()>>,
    mut engine: JoinHandle<Result<(), EngineError>>,
    emptied: impl Future<Output = ()>,
) -> Result<(), AppError> {
    tokio::select! {
        outcome = &mut server => {
            outcome??;
            Ok(engine.await??)
        }
        () = emptied => {
            if let Ok(outcome) = tokio::time::timeout(LAST_WORDS, &mut server).await {
                outcome??;
                return Ok(engine.await??);
            }
            // The connections hold the engine: it ends with the process.
            tracing::info!("closing connections without a request");
            Ok(())
        }
        ended = &mut engine => {
            // The engine ends of itself only when every handle is dropped; else it has failed.
            let outcome = ended.map_err(AppError::from).and_then(|ended| ended.map_err(AppError::from));
            if tokio::time::timeout(LAST_WORDS, server).await.is_err() {
                tracing::warn!("clients still hold connections; closing them");
            }
            outcome
        }
    }
}

/// Tokens are small writes that must not wait for each other. A client that takes nothing for too long is cut off, also
/// when its answer is complete: it must not hold its place in the server for ever.
fn tune(connection: &TcpStream, patience: Duration) {
    let set = connection.set_nodelay(true).and_then(|()| cut_off_after(connection, patience));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set the options of a connection");
    }
}

#[cfg(target_os = "linux")]
fn cut_off_after(connection: &TcpStream, patience: Duration) -> io::Result<()> {
    socket2::SockRef::from(connection).set_tcp_user_timeout(Some(patience))
}

/// Other systems keep their own timeouts.
#[cfg(not(target_os = "linux"))]
fn cut_off_after(_connection: &TcpStream, _patience: Duration) -> io::Result<()> {
    Ok(())
}

async fn load_text(config: &Config) -> Result<TextModel, AppError> {
    let (path, tokenizer_config) = (config.model_path(), config.tokenizer_config_path.clone());
    let load = move || TextModel::load(&path, tokenizer_config.as_deref());
    Ok(tokio::task::spawn_blocking(load).await??)
}

/// The engine's task cancels `stop` when it ends, whichever way.
fn spawn_engine(
    config: &Arc<Config>,
    text: EngineText,
    health: &Health,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> (EngineHandle, JoinHandle<Result<(), EngineError>>) {
    let (handle, commands) = EngineHandle::new();
    let engine = Engine {
        workers: ShardedClient::unix(Path::new(&config.worker_uds_path), config.num_shard as usize),
        config: Arc::clone(config),
        commands,
        health: health.clone(),
        metrics: metrics.clone(),
        text,
        patience: READER_PATIENCE,
    };
    let (stop_when_over, health) = (stop.clone().drop_guard(), health.clone());
    let task = tokio::spawn(async move {
        let _stop_when_over = stop_when_over;
        let outcome = engine.run().await;
        health.drain();
        outcome
    });
    (handle, task)
}

fn spawn_upkeep(metrics: Metrics, stop: CancellationToken) {
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            metrics.run_upkeep();
        }
    }));
}

/// Drains when told to, and takes no connection any more when that is done.
fn spawn_stop(
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Drain,
    places: Arc<Semaphore>,
    cut: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        let health = drain.health.clone();
        tokio::select! {
            () = shutdown => {}
            () = health.asked_to_drain() => {}
        }
        drain.run(&places, &cut).await;
        stop.cancel();
    });
}
