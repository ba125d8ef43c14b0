//! What the server can do now: written by the engine, read by every handler, never blocking.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use millrace_client::{Vital, Vitals};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

/// Where the server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Workers have not answered yet; nothing can be admitted.
    Starting,
    Serving,
    /// Workers are gone and expected back: requests are admitted and wait, `/health` is 503.
    Recovering,
    /// To be stopped: newcomers are served, but should not come.
    Leaving,
    /// Stopping: what runs finishes, newcomers are refused.
    Draining,
}

/// What a start is at: in words and, where that can be counted, in bytes; `total` 0: it cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Progress {
    pub words: String,
    #[serde(default)]
    pub done: u64,
    #[serde(default)]
    pub total: u64,
}

impl From<&str> for Progress {
    fn from(words: &str) -> Self {
        Self { words: words.to_owned(), ..Self::default() }
    }
}

/// What requests may ask for; known once the workers have prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_input_tokens: u32,
    pub max_total_tokens: u32,
    /// Logits per position: a token id in a request must be below it.
    pub vocab_size: u32,
}

impl Limits {
    /// The same for sequences of at most `total` tokens.
    #[must_use]
    pub fn at_most(self, total: u32) -> Self {
        let max_total_tokens = self.max_total_tokens.min(total);
        let max_input_tokens = self.max_input_tokens.min(max_total_tokens.saturating_sub(1));
        Self { max_input_tokens, max_total_tokens, ..self }
    }
}

/// What the workers say of the model that they serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ServedModel {
    pub architecture: String,
    /// Who computes it.
    pub implementation: String,
    pub dtype: String,
    /// Optional features that it has.
    pub capabilities: Vec<String>,
    /// Optional features that it has not, each with the reason.
    pub missing: BTreeMap<String, String>,
}

/// A rank that was found to hang. Whoever started it has to end it: nobody else can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hung {
    pub rank: usize,
    /// Of its group, as the launcher counts; 0: nobody does.
    pub generation: u32,
    pub reason: String,
    /// What was known then: steps in flight, ranks, the scheduler's figures. No text of any request.
    pub report: String,
    /// It answers, and whatever it computes fails: no request is to blame.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub every_step_fails: bool,
}

/// An engine that has not come round for so long stands still: it does so several times a second.
const STANDSTILL: Duration = Duration::from_secs(4);

/// Cheap to clone; one writer per fact.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<RwLock<(Phase, Option<Limits>)>>,
    model: Arc<RwLock<Option<ServedModel>>>,
    hung: Arc<RwLock<Option<Hung>>>,
    vitals: Arc<RwLock<Vitals>>,
    told: Arc<RwLock<Option<Progress>>>,
    /// When the engine has come round last; `None` while there is none.
    beat: Arc<RwLock<Option<Instant>>>,
    draining: CancellationToken,
    asked_to_drain: CancellationToken,
    hurried: CancellationToken,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: Arc::new(RwLock::new((Phase::Starting, None))),
            model: Arc::default(),
            hung: Arc::default(),
            vitals: Arc::default(),
            told: Arc::default(),
            beat: Arc::default(),
            draining: CancellationToken::new(),
            asked_to_drain: CancellationToken::new(),
            hurried: CancellationToken::new(),
        }
    }
}

impl Health {
    pub fn phase(&self) -> Phase {
        self.state.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// `None` until the workers have prepared for the first time.
    pub fn limits(&self) -> Option<Limits> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).1
    }

    /// `None` until the workers have said it for the first time.
    pub fn model(&self) -> Option<ServedModel> {
        self.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The workers have said what they serve.
    pub fn describe(&self, model: ServedModel) {
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = Some(model);
    }

    /// Where the workers say that they stand.
    pub fn watch(&self, vitals: Vitals) {
        *self.vitals.write().unwrap_or_else(PoisonError::into_inner) = vitals;
    }

    /// Which group a rank is of, as it says itself; 0: it has not said so.
    pub fn generation(&self, rank: usize) -> u32 {
        let vitals = self.vitals.read().unwrap_or_else(PoisonError::into_inner).all();
        vitals.get(rank).map_or(0, |vital| vital.generation)
    }

    /// A rank hangs.
    pub fn hang(&self, hung: Hung) {
        self.recover();
        *self.hung.write().unwrap_or_else(PoisonError::into_inner) = Some(hung);
    }

    /// The rank that hangs, until another group has taken the place of its own.
    pub fn hung(&self) -> Option<Hung> {
        let hung = self.hung.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let vitals = self.vitals.read().unwrap_or_else(PoisonError::into_inner).all();
        let is_replaced = vitals.iter().any(|vital| vital.generation > hung.generation);
        (!is_replaced).then_some(hung)
    }

    /// The engine has come round.
    pub fn beat(&self) {
        *self.beat.write().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// There is no engine any more.
    pub fn rest(&self) {
        *self.beat.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// For how long the engine has not come round, if that is too long: whatever is said here is not true any more then.
    pub fn standstill(&self) -> Option<Duration> {
        let beat = *self.beat.read().unwrap_or_else(PoisonError::into_inner);
        beat.map(|beat| beat.elapsed()).filter(|silence| *silence > STANDSTILL)
    }

    /// Whether requests are served now.
    pub fn is_serving(&self) -> bool {
        self.phase() == Phase::Serving && self.standstill().is_none()
    }

    /// What has to be done before there are workers; `None`: nothing any more.
    pub fn tell(&self, progress: Option<Progress>) {
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// What is being waited for, if anything.
    pub fn waits_for(&self) -> Option<Progress> {
        matches!(self.phase(), Phase::Starting | Phase::Recovering).then(|| self.progress())
    }

    /// What keeps the server from being ready.
    pub fn progress(&self) -> Progress {
        if let Some(told) = self.told.read().unwrap_or_else(PoisonError::into_inner).clone() {
            return told;
        }
        let vitals = self.vitals.read().unwrap_or_else(PoisonError::into_inner).all();
        let known = |vital: &&Vital| vital.total > 0;
        let Some(slowest) = vitals.iter().filter(known).min_by_key(|vital| (vital.done, vital.bytes_read)) else {
            return "the workers are being started".into();
        };
        if slowest.stage.is_empty() {
            return "the workers are loaded, and are being prepared".into();
        }
        let Vital { done: stage, total: stages, bytes_read: done, bytes_to_read: total, .. } = *slowest;
        let mut words = format!("the workers are loading, stage {} of {stages}: {}", stage + 1, slowest.stage);
        if total > 0 {
            let _always_written = write!(words, ", {} of {} MiB", done >> 20, total >> 20);
        }
        Progress { words, done, total }
    }

    /// Workers are ready.
    pub fn serve(&self, limits: Limits) {
        *self.hung.write().unwrap_or_else(PoisonError::into_inner) = None;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let stays = matches!(state.0, Phase::Leaving | Phase::Draining);
        *state = (if stays { state.0 } else { Phase::Serving }, Some(limits));
    }

    /// Workers are gone.
    pub fn recover(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.0 == Phase::Serving {
            state.0 = Phase::Recovering;
        }
    }

    /// The server is about to stop; nothing leads back.
    pub fn lame_duck(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.0 != Phase::Draining {
            state.0 = Phase::Leaving;
        }
    }

    /// Somebody with the right to do so asks the server to stop.
    pub fn ask_to_drain(&self) {
        self.asked_to_drain.cancel();
    }

    /// Nothing can be computed any more: a server that stops need not wait for its requests.
    pub fn hurry(&self) {
        self.hurried.cancel();
    }

    /// Completes when there is nothing to wait for.
    pub async fn hurried(&self) {
        self.hurried.cancelled().await;
    }

    /// Completes when somebody has asked the server to stop.
    pub async fn asked_to_drain(&self) {
        self.asked_to_drain.cancelled().await;
    }

    /// The server stops; nothing leads back.
    pub fn drain(&self) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).0 = Phase::Draining;
        self.draining.cancel();
    }

    /// Completes when the server stops: who waits for a client then waits in vain.
    pub async fn drained(&self) {
        self.draining.cancelled().await;
    }
}
