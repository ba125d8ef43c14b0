//! From nothing to workers that run: connect, prepare, open the step streams; again and again until it works.

use std::time::Duration;

use millrace_client::{
    Backoff, Bound, LOADING_SILENCE, ModelDescription, Prepared, StepStream, Vitals, Workers, connect_with_retry,
};

use tokio::time::Instant;

use super::EngineError;
use super::late::{Load, longest_preparing, watched};
use super::limits::worst_case;
use crate::config::Config;
use crate::health::{Health, Hung};

/// Between attempts to prepare. Connecting has its own, shorter pauses.
pub(super) const PAUSE: Duration = Duration::from_millis(500);
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
    /// The longest time that preparing took; `None`: no group has been prepared.
    preparing: Option<Duration>,
    /// The time until all of a group had loaded, the first that was seen to load; `None`: none has been.
    loading: Option<Duration>,
}

impl Known {
    pub(super) fn nothing(config: &Config) -> Self {
        let bound = Bound::new(Duration::from_secs(config.hung_step_seconds));
        Self { bound, preparing: None, loading: None }
    }
}

/// Waits for workers however long it takes. Errs when the flags do not fit them, or when they refused more than
/// `refusals` times. Cancel-safe.
pub(super) async fn start(
    workers: &mut impl Workers,
    config: &Config,
    health: &Health,
    known: &mut Known,
    mut refusals: u32,
) -> Result<Session, EngineError> {
    loop {
        match attempt(workers, config, health, known).await {
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
            let seconds = LOADING_SILENCE.as_secs();
            let reason = format!("its process has not answered for {seconds} s while it got ready");
            if let Some(hung) = news(vitals, health, rank, reason) {
                return hung;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// That a rank hangs, unless it is known already of its group.
pub(super) fn news(vitals: &Vitals, health: &Health, rank: usize, reason: String) -> Option<Hung> {
    let all = vitals.all();
    // It may never have said which group it is of: the others know, and are no replacement for it.
    let generation = all.iter().map(|vital| vital.generation).max().unwrap_or_default();
    let hung = Hung { rank, generation, reason, report: format!("ranks: {all:?}\n"), every_step_fails: false };
    health.hung().is_none_or(|known| known.generation < generation).then_some(hung)
}

async fn attempt(
    workers: &mut impl Workers,
    config: &Config,
    health: &Health,
    known: &mut Known,
) -> Result<Session, EngineError> {
    let vitals = workers.vitals().clone();
    let (mut load, began) = (Load::new(vitals.clone(), known.loading), Instant::now());
    let connecting = connect_with_retry(workers, Backoff::default(), None);
    let connected = watched(connecting, || load.stands_still(), &vitals, health).await?;
    if load.was_seen {
        // Later ones may have waited for a group that hung, and for the one that replaced it.
        known.loading.get_or_insert(began.elapsed());
    }
    let model = connected.description().clone();
    let worst_case = worst_case(config, &model)?;
    let (mut waited, limit, began) = (Duration::ZERO, known.preparing.map(longest_preparing), Instant::now());
    let is_late = || {
        waited += PAUSE;
        let limit = limit.filter(|limit| waited >= *limit)?;
        Some((connected.unprepared()?, format!("preparing it was to take {limit:.1?} at most")))
    };
    let prepared = watched(connected.prepare(worst_case), is_late, &vitals, health).await?;
    // Who was prepared already, for a router before this one, says what it took then.
    known.preparing = known.preparing.max(Some(began.elapsed().max(Duration::from_micros(prepared.prepare_us))));
    known.bound.tried(&prepared);
    let mut steps = connected.run().await?;
    steps.set_bound(known.bound.clone());
    Ok(Session { model, prepared, steps })
}
