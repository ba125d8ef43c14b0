//! From nothing to workers that run: connect, prepare, open the step streams; again and again until it works.

use std::time::Duration;

use millrace_client::{
    Backoff, Bound, LOADING_SILENCE, ModelDescription, Prepared, StepStream, Vitals, Workers, connect_with_retry,
};

use super::EngineError;
use super::limits::worst_case;
use crate::config::Config;
use crate::health::{Health, Hung};

/// Between attempts to prepare. Connecting has its own, shorter pauses.
const PAUSE: Duration = Duration::from_millis(500);
/// Workers that came back may refuse for a while, as long as the memory of the dead is not given back.
pub(super) const RECOVERY_REFUSALS: u32 = 60;

/// Workers that run.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) model: ModelDescription,
    pub(super) prepared: Prepared,
    pub(super) steps: StepStream,
}

/// What groups of workers have taught those that wait for the next.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// How long their steps took.
    pub(super) bound: Bound,
}

impl Known {
    pub(super) fn nothing(config: &Config) -> Self {
        Self { bound: Bound::new(Duration::from_secs(config.hung_step_seconds)) }
    }
}

/// Waits for workers however long it takes. Errs when the flags do not fit them, or when they refused more than
/// `refusals` times. Cancel-safe.
pub(super) async fn start(
    workers: &mut impl Workers,
    config: &Config,
    known: &mut Known,
    mut refusals: u32,
) -> Result<Session, EngineError> {
    loop {
        match attempt(workers, config, known).await {
            Err(EngineError::Workers(error)) if error.is_permanent() && refusals > 0 => {
                refusals -= 1;
                tracing::warn!(%error, "workers refuse; asking again");
            }
            Err(EngineError::Workers(error)) if !error.is_permanent() => {
                tracing::warn!(%error, "workers were lost while they got ready");
            }
            outcome => return outcome,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Completes when there are no workers whose every step fails, or others have taken their place. On those that are to be
/// replaced nothing is tried again: each time would cost a request. Cancel-safe.
pub(super) async fn replaced(health: &Health) {
    // Where nobody counts groups, nobody replaces them.
    while health.hung().is_some_and(|hung| hung.every_step_fails && hung.generation > 0) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Completes when a rank that gets ready has been silent for too long and nobody knows yet. Cancel-safe.
pub(super) async fn silence(vitals: &Vitals, health: &Health) -> Hung {
    loop {
        // First: who waits for something else, too, begins anew each time.
        if let Some(rank) = vitals.silent(LOADING_SILENCE) {
            let all = vitals.all();
            // It may never have said which group it is of: the others know, and are no replacement for it.
            let generation = all.iter().map(|vital| vital.generation).max().unwrap_or_default();
            if health.hung().is_none_or(|known| known.generation < generation) {
                let seconds = LOADING_SILENCE.as_secs();
                let reason = format!("its process has not answered for {seconds} s while it got ready");
                return Hung { rank, generation, reason, report: format!("ranks: {all:?}\n"), every_step_fails: false };
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(workers: &mut impl Workers, config: &Config, known: &mut Known) -> Result<Session, EngineError> {
    let connected = connect_with_retry(workers, Backoff::default(), None).await?;
    let model = connected.description().clone();
    let worst_case = worst_case(config, &model)?;
    let prepared = connected.prepare(worst_case).await?;
    known.bound.tried(&prepared);
    let mut steps = connected.run().await?;
    steps.set_bound(known.bound.clone());
    Ok(Session { model, prepared, steps })
}
