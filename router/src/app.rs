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

use listenfd::ListenFd;
use millrace_client::ShardedClient;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connections::{self, Terms};
use crate::detokenize::Detokenizer;
use crate::drain::{Drain, Ending, Inside};
use crate::engine::{Engine, EngineError, EngineHandle, EngineText, READER_PATIENCE};
use crate::health::Health;
use crate::http;
use crate::launcher::{Cause, News};
use crate::overload::Backlog;
use crate::telemetry::Metrics;
use crate::tenants::{BadKeyFile, Tenants};
use crate::tokenizer::{LoadError, TextModel};

/// How often recorded samples are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// How often the file of keys is looked at.
const KEYS_UPKEEP: Duration = Duration::from_secs(1);
/// Of the largest bodies that are taken: so much is read of a body that is too large, to keep its connection.
const LEFTOVER_BODIES: u64 = 4;
/// A body that has been coming for so long makes room when there are no more connections.
const SLOW_BODY: Duration = Duration::from_secs(5);
/// What clients get to take their last bytes when no request is left or the engine has failed.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("the socket that was passed on in LISTEN_FDS cannot be used: {0}")]
    Inherit(io::Error),
    #[error(transparent)]
    Keys(#[from] BadKeyFile),
    #[error(transparent)]
    Text(#[from] LoadError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the engine ended unexpectedly: {0}")]
    EnginePanicked(#[from] JoinError),
    #[error("the HTTP server ended: {0}")]
    Http(#[from] io::Error),
}

/// Opens the port: clients can connect before anything is loaded. A socket that was passed on as systemd does it
/// (`LISTEN_FDS`) is taken instead: whoever passed it keeps it open when this process ends, so that clients can wait for
/// the next one.
pub async fn listen(config: &Config) -> Result<TcpListener, AppError> {
    if let Some(listener) = ListenFd::from_env().take_tcp_listener(0).map_err(AppError::Inherit)? {
        listener.set_nonblocking(true)?;
        return Ok(TcpListener::from_std(listener)?);
    }
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
    let (_, nothing) = mpsc::unbounded_channel();
    run_told(config, listener, metrics, nothing, shutdown).await
}

/// As `run`; `news` says where the model is, if the configuration awaits that.
pub async fn run_told(
    config: Config,
    listener: TcpListener,
    metrics: Metrics,
    mut news: UnboundedReceiver<News>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Ending, AppError> {
    let tenants = Tenants::load(&config)?;
    let (health, stop) = (Health::default(), CancellationToken::new());
    let front = http::Front::new(&config, &health, &metrics, &tenants);
    let tune = |connection: &TcpStream| tune(connection, READER_PATIENCE);
    let terms = Terms {
        patience: Duration::from_secs(config.head_timeout_seconds),
        most: connections::most_connections(config.max_connections),
        slow: SLOW_BODY,
        reader_patience: READER_PATIENCE,
        leftover_bytes: LEFTOVER_BODIES * config.payload_limit as u64,
    };
    let server = tokio::spawn(connections::serve(listener, front.clone().routes(), stop.clone(), terms, tune));
    let mut shutdown = Box::pin(shutdown);
    let (config, text) = tokio::select! {
        found = find_text(config, &mut news, &health) => found?,
        () = &mut shutdown => {
            stop.cancel();
            let _closed = tokio::time::timeout(LAST_WORDS, server).await;
            return Ok(Ending::Drained);
        }
    };
    let detokenizer = Arc::new(Detokenizer::new(text.tokenizer()));
    let engine_text = EngineText {
        detokenizer: Arc::clone(&detokenizer),
        eos_token_ids: text.eos_token_ids(),
        model_max_length: text.model_max_length(),
    };
    let backlog = Backlog::new(&config);
    let (engine, engine_task) = spawn_engine(&config, engine_text, (&health, &metrics, &backlog), &stop);
    spawn_upkeep(metrics.clone(), stop.clone());
    spawn_reloads(&tenants, stop.clone());
    let inside = Inside::new(config.max_places());
    let cut = Arc::new(AtomicBool::new(false));
    let drain = Drain::new(&config, health.clone(), engine.clone());
    spawn_stop(shutdown, drain, inside.clone(), Arc::clone(&cut), stop.clone());
    let context = http::Context {
        config: Arc::clone(&config),
        health: health.clone(),
        engine,
        text,
        detokenizer,
        metrics,
        backlog,
        places: Arc::clone(&inside.places),
        unwritten: Arc::clone(&inside.unwritten),
        tenants,
    };
    front.open(http::router(context));
    spawn_listener(news, health, stop.clone());
    end(server, engine_task, emptied(&stop, &inside, &cut)).await?;
    Ok(if cut.load(Ordering::Relaxed) { Ending::Cut } else { Ending::Drained })
}

/// Completes when the server has been told to stop and no request is inside any more, or none is waited for: who does not
/// read its answer would keep this program behind its time.
async fn emptied(stop: &CancellationToken, inside: &Inside, cut: &AtomicBool) {
    stop.cancelled().await;
    if !cut.load(Ordering::Relaxed) {
        inside.emptied().await;
    }
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
            // An engine that fails says that the server stops before it says why.
            if engine.is_finished() {
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

/// The text side of the model, once that is there; the configuration then says where.
async fn find_text(
    mut config: Config,
    news: &mut UnboundedReceiver<News>,
    health: &Health,
) -> Result<(Arc<Config>, Arc<TextModel>), AppError> {
    if config.await_model {
        health.tell(Some("the model is being looked for".into()));
        let place = loop {
            match news.recv().await {
                Some(News::Progress(progress)) => health.tell(Some(progress)),
                Some(News::Model(place)) => break place,
                // A signal to stop follows, or nobody is left to say anything and this process is about to be ended.
                Some(News::End(_)) | None => std::future::pending().await,
            }
        };
        tracing::info!("the model is in {}", place.path.display());
        config = place.into_config(&config);
    }
    health.tell(Some("the tokenizer is being read".into()));
    let text = load_text(&config).await?;
    health.tell(None);
    Ok((Arc::new(config), Arc::new(text)))
}

/// Ends everything when the launcher says that there will be no workers any more.
fn spawn_listener(mut news: UnboundedReceiver<News>, health: Health, stop: CancellationToken) {
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        while let Some(news) = news.recv().await {
            if let News::End(Cause { reason }) = news {
                tracing::error!(reason, "there will be no workers any more: every request ends now");
                health.hurry();
                health.ask_to_drain();
            }
        }
    }));
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
    (health, metrics, backlog): (&Health, &Metrics, &Backlog),
    stop: &CancellationToken,
) -> (EngineHandle, JoinHandle<Result<(), EngineError>>) {
    let (handle, commands) = EngineHandle::new();
    let engine = Engine {
        workers: ShardedClient::unix(Path::new(&config.worker_uds_path), config.num_shard as usize),
        config: Arc::clone(config),
        commands,
        health: health.clone(),
        metrics: metrics.clone(),
        backlog: backlog.clone(),
        text,
        patience: READER_PATIENCE,
    };
    let (stop_when_over, health) = (stop.clone().drop_guard(), health.clone());
    let task = tokio::spawn(async move {
        let _stop_when_over = stop_when_over;
        let outcome = engine.run().await;
        health.rest();
        health.drain();
        outcome
    });
    (handle, task)
}

/// Reads the file of keys again when it has changed, as mounted secrets do.
fn spawn_reloads(tenants: &Tenants, stop: CancellationToken) {
    if !tenants.has_file() {
        return;
    }
    let tenants = tenants.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(KEYS_UPKEEP);
        loop {
            ticks.tick().await;
            let tenants = tenants.clone();
            tell_reload(tokio::task::spawn_blocking(move || tenants.refresh()).await);
        }
    }));
}

/// A panic is told without its words, which could quote the file.
fn tell_reload(outcome: Result<Result<Option<usize>, BadKeyFile>, JoinError>) {
    match outcome {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(num_tenants))) => tracing::info!(num_tenants, "the file of API keys has been read again"),
        Ok(Err(error)) => tracing::error!("{error}; the API keys stay as they were"),
        Err(_) => tracing::error!("reading the file of API keys again has failed; the API keys stay as they were"),
    }
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
    inside: Inside,
    cut: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        let health = drain.health.clone();
        tokio::select! {
            () = shutdown => {}
            () = health.asked_to_drain() => {}
        }
        drain.run(&inside, &cut).await;
        stop.cancel();
    });
}
