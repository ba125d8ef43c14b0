//! The router's process: reads its configuration, serves until told to stop, answers with an exit code.

use std::io::Read;
use std::process::ExitCode;

use millrace_router::app::{self, AppError};
use millrace_router::config::Config;
use millrace_router::telemetry::{Metrics, init_logs, log_start};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::from_process();
    init_logs(&config);
    log_start(&config);
    if config.lifeline {
        std::thread::spawn(follow_lifeline);
    }
    match serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), AppError> {
    let metrics = Metrics::install().expect("nothing else in this process installs a recorder");
    let shutdown = shutdown_signal()?;
    let listener = app::listen(&config).await?;
    app::run(config, listener, metrics, shutdown).await
}

/// Completes at the first SIGTERM or SIGINT.
fn shutdown_signal() -> Result<impl Future<Output = ()> + Send + 'static, AppError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Reads standard input to its end: then whoever started this process is gone, and so are its clients.
#[expect(clippy::exit, reason = "the launcher is dead: nobody waits for a graceful end")]
fn follow_lifeline() {
    let mut buffer = [0_u8; 64];
    let mut stdin = std::io::stdin().lock();
    while matches!(stdin.read(&mut buffer), Ok(read) if read > 0) {}
    // Not a word to the log: the launcher read both output pipes, and a write to a broken one would panic.
    std::process::exit(1);
}
