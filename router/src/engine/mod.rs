//! The one task that owns the scheduler: it receives requests, has the workers compute steps, and hands out events.
//!
//! Nothing in here waits for a client or blocks on a worker. Workers that die cost time, not requests: what ran is
//! computed again on the workers that come back, and goes on where its client left off.

pub mod api;
mod guests;
mod late;
mod limits;
mod meters;
mod namespaces;
mod requests;
mod start;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use millrace_client::{ModelDescription, StartError, Workers};
use millrace_scheduler::{Capacity, Scheduler};
use tokio::sync::mpsc;
use tokio::time::interval;

pub use api::{
    Command, EngineHandle, Event, Failed, FinishReason, Finished, Generation, Mailbox, Prefilled, Times, Token,
    TopToken,
};
pub use limits::BadLimits;

use meters::Meters;
use requests::Requests;
use start::{Known, Session, silence, start};
use step::{Core, Ended, TICK};

use crate::config::Config;
use crate::detokenize::Detokenizer;
use crate::health::{Health, Hung, Limits, ServedModel};
use crate::overload::{Backlog, Room};
use crate::telemetry::Metrics;

/// A reader that has left events lying for so long is given up: its memory must not grow without end.
pub const READER_PATIENCE: Duration = Duration::from_secs(60);
/// Two plans: one that the workers compute, one that waits there for them.
const STEPS_IN_FLIGHT: u32 = 2;

/// Why the engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Workers(#[from] StartError),
    #[error(transparent)]
    Limits(#[from] BadLimits),
    #[error("the workers came back with pages of {now} tokens instead of {before}: restart the server")]
    PageSizeChanged { before: u32, now: u32 },
}

/// What the engine needs of the model's text side.
#[derive(Clone, Debug)]
pub struct EngineText {
    pub detokenizer: Arc<Detokenizer>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Arc<[u32]>,
    /// Longest sequence that the tokenizer names, if any.
    pub model_max_length: Option<u32>,
}

/// All that the engine's task owns or shares.
#[derive(Debug)]
pub struct Engine<W> {
    pub config: Arc<Config>,
    pub workers: W,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub health: Health,
    pub metrics: Metrics,
    pub backlog: Backlog,
    pub text: EngineText,
    /// How long events may lie unread.
    pub patience: Duration,
}

impl<W: Workers> Engine<W> {
    /// Runs until every handle is dropped and every request has ended, or until the workers can never serve.
    pub async fn run(mut self) -> Result<(), EngineError> {
        self.health.watch(self.workers.vitals().clone());
        let mut known = Known::nothing(&self.config);
        let Some((session, backlog)) = self.first_start(&mut known).await? else { return Ok(()) };
        let page_size = session.model.page_size;
        self.health.describe(served(&session.model));
        let mut limits = self.limits(&session)?;
        let longest = limits.max_total_tokens;
        // The scheduler is made for this length: workers that come back with more room do not raise it.
        let mut core = self.core(&session, &limits);
        let mut room = self.room(&session);
        let mut steps = session.steps;
        for command in backlog {
            core.handle(Some(command));
        }
        loop {
            self.metrics.set_limits(&limits);
            self.backlog.workers_ready(room);
            self.health.serve(limits);
            tracing::info!(
                max_input_tokens = limits.max_input_tokens,
                max_total_tokens = limits.max_total_tokens,
                "workers are ready"
            );
            match core.serve(&mut steps, &self.health).await {
                Ended::Over => return Ok(()),
                Ended::Lost { reason, hung } => {
                    tracing::warn!(%reason, "workers are lost: waiting for new ones");
                    if let Some(hung) = hung {
                        report(&self.health, hung);
                    }
                }
            }
            self.health.recover();
            self.backlog.workers_lost();
            core.workers_lost();
            // The old `steps` live until there are others: that those are replaced is heard on their pulse.
            known.bound = steps.bound().clone();
            let Some(session) = self.recover(&mut core, &mut known).await? else { return Ok(()) };
            if session.model.page_size != page_size {
                return Err(EngineError::PageSizeChanged { before: page_size, now: session.model.page_size });
            }
            self.health.describe(served(&session.model));
            match self.limits(&session) {
                Ok(found) => limits = found.at_most(longest),
                Err(error) => tracing::error!(%error, "the new workers have less room; keeping the limits"),
            }
            core.set_capacity(capacity(&session));
            room = self.room(&session);
            steps = session.steps;
        }
    }

    fn room(&self, session: &Session) -> Room {
        Room { rows: session.prepared.max_rows, step_tokens: self.config.max_step_tokens() }
    }

    fn limits(&self, session: &Session) -> Result<Limits, BadLimits> {
        limits::limits(&self.config, &session.model, self.text.model_max_length, &session.prepared)
    }

    /// Waits for the workers. Commands that come meanwhile are kept for later; `None` if nobody is left to send any.
    async fn first_start(&mut self, known: &mut Known) -> Result<Option<(Session, Vec<Command>)>, EngineError> {
        let mut backlog = Vec::new();
        let vitals = self.workers.vitals().clone();
        let starting = start(&mut self.workers, &self.config, &self.health, known, 0);
        tokio::pin!(starting);
        let mut ticks = interval(TICK);
        loop {
            self.health.beat();
            tokio::select! {
                _ = ticks.tick() => {}
                session = &mut starting => return Ok(Some((session?, backlog))),
                hung = silence(&vitals, &self.health) => report(&self.health, hung),
                command = self.commands.recv() => match command {
                    Some(command) => backlog.push(command),
                    None => return Ok(None),
                },
            }
        }
    }

    /// Waits for new workers, still taking requests and cancellations; `None` if there is nothing left to do.
    async fn recover(&mut self, core: &mut Core, known: &mut Known) -> Result<Option<Session>, EngineError> {
        let (workers, config, health) = (&mut self.workers, &self.config, &self.health);
        let vitals = workers.vitals().clone();
        let starting = async {
            start::replaced(health).await;
            start(workers, config, health, known, start::RECOVERY_REFUSALS).await
        };
        tokio::pin!(starting);
        loop {
            health.beat();
            tokio::select! {
                session = &mut starting => return session.map(Some),
                hung = silence(&vitals, health) => report(health, hung),
                () = core.wait_for_commands() => if core.is_over() { return Ok(None) },
            }
        }
    }

    fn core(&mut self, session: &Session, limits: &Limits) -> Core {
        let scheduler = Scheduler::new(millrace_scheduler::Config {
            max_rows: session.prepared.max_rows,
            max_step_tokens: self.config.max_step_tokens(),
            page_size: session.model.page_size,
            num_pages: session.prepared.num_pages,
            attention_window: session.model.attention_window,
            position_switch: session.model.position_switch,
            max_sequence_tokens: limits.max_total_tokens,
            max_batch_total_tokens: self.config.max_batch_total_tokens,
            waiting_served_ratio: self.config.waiting_served_ratio,
            max_waiting_tokens: self.config.max_waiting_tokens,
            prefix_caching: self.config.prefix_caching,
            max_steps_in_flight: STEPS_IN_FLIGHT,
        });
        let requests = Requests::new(Arc::clone(&self.text.detokenizer), Arc::clone(&self.text.eos_token_ids));
        let (_, closed) = mpsc::unbounded_channel();
        let commands = std::mem::replace(&mut self.commands, closed);
        Core::new(
            scheduler,
            requests,
            Meters::new(self.backlog.clone(), session.model.page_size),
            self.backlog.clone(),
            commands,
            self.patience,
        )
    }
}

/// A rank hangs: the log and whoever asks about health are told.
fn report(health: &Health, hung: Hung) {
    let Hung { rank, reason, report, .. } = &hung;
    tracing::error!(rank, reason, report, "a rank hangs: it has to be ended by whoever started it");
    health.hang(hung);
}

fn served(model: &ModelDescription) -> ServedModel {
    ServedModel {
        architecture: model.architecture.clone(),
        implementation: model.implementation.clone(),
        dtype: model.dtype.clone(),
        capabilities: model.capabilities.clone(),
        missing: model.missing.clone().into_iter().collect(),
    }
}

/// What the workers of a session have room for.
fn capacity(session: &Session) -> Capacity {
    Capacity { num_pages: session.prepared.num_pages, max_rows: session.prepared.max_rows }
}
