//! The end of a server, in order: not ready, still serving; then nothing new; then the running requests' own ends; then
//! an end for each that had none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::engine::EngineHandle;
use crate::health::Health;

/// What requests get to take their last event when they are cut.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// More answers than connections can carry.
const MOST_UNWRITTEN: u32 = 1 << 28;

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
}

/// Who is inside: requests, and their answers.
#[derive(Clone, Debug)]
pub(crate) struct Inside {
    /// One permit per prompt.
    pub(crate) places: Arc<Semaphore>,
    num_places: u32,
    /// One permit per answer that has left its place and has not been written to its end.
    pub(crate) unwritten: Arc<Semaphore>,
}

impl Inside {
    pub(crate) fn new(num_places: u32) -> Self {
        let unwritten = Arc::new(Semaphore::new(MOST_UNWRITTEN as usize));
        Self { places: Arc::new(Semaphore::new(num_places as usize)), num_places, unwritten }
    }

    /// Completes when nobody is inside any more. It errs if nobody can take permits any more, which is as good as having
    /// them all.
    pub(crate) async fn emptied(&self) {
        let _places = self.places.acquire_many(self.num_places).await;
        let _unwritten = self.unwritten.acquire_many(MOST_UNWRITTEN).await;
    }
}

impl Drain {
    pub(crate) fn new(config: &Config, health: Health, engine: EngineHandle) -> Self {
        let lame_duck = Duration::from_secs(config.lame_duck_seconds);
        let grace = Duration::from_secs(config.graceful_termination_timeout);
        Self { health, engine, lame_duck, grace }
    }

    /// Completes when no request is inside any more, and no answer on its way. Connections stay open, and newcomers are told to go elsewhere.
    /// `cut` becomes true when requests had to be ended.
    pub(crate) async fn run(self, inside: &Inside, cut: &AtomicBool) {
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
        tokio::select! {
            biased;
            ended = timeout(self.grace, inside.emptied()) => if ended.is_ok() { return },
            () = self.health.hurried() => {}
        }
        let running = (inside.num_places as usize).saturating_sub(inside.places.available_permits());
        tracing::warn!(running, "nothing is waited for any more: the requests that still run end with an error");
        cut.store(true, Ordering::Relaxed);
        self.engine.end_all();
        let _ended = timeout(LAST_EVENTS, inside.emptied()).await;
    }
}
