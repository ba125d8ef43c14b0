//! The end of a server, in order: not ready, still serving; then nothing new; then the running requests' own ends; then
//! an end for each that had none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::engine::EngineHandle;
use crate::health::Health;

/// What requests get to take their last event when they are cut.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How a server ended that was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every request had its own end.
    Drained,
    /// Time was up: requests ended with an error.
    Cut,
}

/// What the end of a server needs.
#[derive(Debug)]
pub(crate) struct Drain {
    pub(crate) health: Health,
    pub(crate) engine: EngineHandle,
    pub(crate) lame_duck: Duration,
    pub(crate) grace: Duration,
    pub(crate) num_places: u32,
}

impl Drain {
    pub(crate) fn new(config: &Config, health: Health, engine: EngineHandle) -> Self {
        let lame_duck = Duration::from_secs(config.lame_duck_seconds);
        let grace = Duration::from_secs(config.graceful_termination_timeout);
        Self { health, engine, lame_duck, grace, num_places: config.max_places() }
    }

    /// Completes when no request is inside any more. Connections stay open, and newcomers are told to go elsewhere.
    /// `cut` becomes true when requests had to be ended.
    pub(crate) async fn run(self, places: &Semaphore, cut: &AtomicBool) {
        if !self.lame_duck.is_zero() {
            tracing::info!(
                seconds = self.lame_duck.as_secs(),
                "stopping: not ready any more, newcomers are still served"
            );
            self.health.lame_duck();
            tokio::select! {
                () = sleep(self.lame_duck) => {}
                () = self.health.hurried() => {}
            }
        }
        tracing::info!("stopping: running requests finish, new ones are refused");
        self.health.drain();
        // It errs if nobody can take places any more, which is as good as having them all.
        tokio::select! {
            biased;
            ended = timeout(self.grace, places.acquire_many(self.num_places)) => if ended.is_ok() { return },
            () = self.health.hurried() => {}
        }
        let running = self.num_places as usize - places.available_permits().min(self.num_places as usize);
        tracing::warn!(running, "nothing is waited for any more: the requests that still run end with an error");
        cut.store(true, Ordering::Relaxed);
        self.engine.end_all();
        let _ended = timeout(LAST_EVENTS, places.acquire_many(self.num_places)).await;
    }
}
