//! The router's process: reads its configuration, serves until told to stop, answers with an exit code.

use std::process::ExitCode;

use millrace_router::app::{self, AppError};
use millrace_router::config::Config;
use millrace_router::drain::Ending;
use millrace_router::launcher::{self, News};
use millrace_router::telemetry::{Metrics, init_logs, log_panics, log_start};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status when requests were cut because the time to drain was up.
const CUT: u8 = 3;
/// Exit status when a second signal asked for the end at once.
const AT_ONCE: u8 = 4;

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::from_process();
    init_logs(&config);
    log_panics();
    log_start(&config);
    let (heard, news) = mpsc::unbounded_channel();
    if config.lifeline || config.await_model {
        std::thread::spawn(move || follow_lifeline(&heard));
    }
    match serve(config, news).await {
        Ok(Ending::Drained) => ExitCode::SUCCESS,
        Ok(Ending::Cut) => ExitCode::from(CUT),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, news: UnboundedReceiver<News>) -> Result<Ending, AppError> {
    let metrics = Metrics::install().expect("nothing else in this process installs a recorder");
    let shutdown = shutdown_signal()?;
    let listener = app::listen(&config).await?;
    app::run_told(config, listener, metrics, news, shutdown).await
}

/// Completes at the first SIGTERM or SIGINT; the second ends the process.
fn shutdown_signal() -> Result<impl Future<Output = ()> + Send + 'static, AppError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (first, shutdown) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Nobody listens when the server has ended by itself.
        let _ = first.send(());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        leave_at_once();
    });
    Ok(async move {
        let _first = shutdown.await;
    })
}

#[expect(clippy::exit, reason = "whoever asks twice does not want to wait for a graceful end")]
fn leave_at_once() {
    tracing::warn!("asked again to stop: leaving at once");
    std::process::exit(AT_ONCE.into());
}

/// Follows standard input to its end: then whoever started this process is gone, and so are its clients.
#[expect(clippy::exit, reason = "the launcher is dead: nobody waits for a graceful end")]
fn follow_lifeline(heard: &UnboundedSender<News>) {
    launcher::follow(std::io::stdin().lock(), heard);
    // Not a word to the log: the launcher read both output pipes, and a write to a broken one would panic.
    std::process::exit(1);
}
