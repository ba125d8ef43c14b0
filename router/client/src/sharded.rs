//! The group of ranks as one: connected, agreed, prepared, running.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Code, Status};

use crate::connection::{Client, Unreachable, status_text};
use crate::pulse::{Pulse, Vitals};
use crate::steps::StepStream;
use crate::v1::{ModelDescription, PrepareRequest, Prepared};

/// How long a refusal waits for the news that another rank was lost. A closed socket is seen within a millisecond.
const REFUSAL_GRACE: Duration = Duration::from_secs(1);

/// What the engine drives: a group of workers that can be connected to, again and again.
pub trait Workers: Send + 'static {
    /// Reaches every rank and asks it who it is; waits while weights load. Cancel-safe: dropping it connects nothing.
    fn connect(&mut self) -> impl Future<Output = Result<Connected, StartError>> + Send;

    /// What is known of the ranks of the last group that was reached.
    fn vitals(&self) -> &Vitals;
}

/// Why the workers are not ready to run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    #[error("worker of rank {rank}: {cause}")]
    Unreachable { rank: usize, cause: Unreachable },
    #[error("worker of rank {rank} was lost while it got ready: {message} ({code:?})")]
    Lost { rank: usize, code: Code, message: String },
    /// The worker understood and declined: asking again will not help.
    #[error("worker of rank {rank} refused: {message}")]
    Refused { rank: usize, message: String },
    #[error("the workers did not say who they are before the deadline")]
    TimedOut,
    #[error("workers disagree about {field}: {expected} was expected of rank {rank}, which says {actual}")]
    Disagree { rank: usize, field: &'static str, expected: String, actual: String },
}

impl StartError {
    /// Whether trying again is in vain.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Disagree { .. })
    }

    fn from_status(rank: usize, status: &Status) -> Self {
        let message = status_text(status);
        match status.code() {
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented => Self::Refused { rank, message },
            code => Self::Lost { rank, code, message },
        }
    }
}

/// Workers behind sockets, one endpoint per rank.
#[derive(Clone, Debug)]
pub struct ShardedClient {
    endpoints: Vec<String>,
    vitals: Vitals,
}

impl ShardedClient {
    /// Ranks at the unix sockets `PREFIX-0`, `PREFIX-1`, ….
    pub fn unix(prefix: &Path, num_ranks: usize) -> Self {
        let prefix = prefix.display();
        Self::new((0..num_ranks).map(|rank| format!("unix:{prefix}-{rank}")).collect())
    }

    /// Endpoints in the order of the ranks: `unix:PATH` or `http://HOST:PORT`.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, vitals: Vitals::default() }
    }
}

impl Workers for ShardedClient {
    async fn connect(&mut self) -> Result<Connected, StartError> {
        let clients = on_all_ranks(self.endpoints.clone(), |rank, endpoint| async move {
            Client::connect(&endpoint).await.map_err(|cause| StartError::Unreachable { rank, cause })
        });
        Connected::meet(clients.await?, &self.vitals).await
    }

    fn vitals(&self) -> &Vitals {
        &self.vitals
    }
}

/// Connected workers that agree on who they are.
#[derive(Debug)]
pub struct Connected {
    clients: Vec<Client>,
    description: ModelDescription,
    instances: Vec<u64>,
    pulse: Pulse,
    /// Who has answered `Prepare`.
    prepared: Arc<Mutex<BTreeSet<usize>>>,
}

impl Connected {
    pub(crate) async fn meet(clients: Vec<Client>, vitals: &Vitals) -> Result<Self, StartError> {
        let pulse = Pulse::of(&clients, vitals.clone());
        let describe = |rank, client: Client| async move {
            client.describe().await.map_err(|status| StartError::from_status(rank, &status))
        };
        let descriptions = on_all_ranks(clients.clone(), describe).await?;
        check_agreement(&descriptions)?;
        let instances = descriptions.iter().map(|description| description.instance).collect();
        let description = in_common(descriptions);
        Ok(Self { clients, description, instances, pulse, prepared: Arc::default() })
    }

    /// What rank 0 said, with the capabilities that all ranks have and all that some rank misses.
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// Random per worker process, by rank: a restarted one differs.
    pub fn instances(&self) -> &[u64] {
        &self.instances
    }

    /// Prepares all ranks at the same time. Answers what every rank has: pages, rows, tokens and free bytes are the
    /// minimum over the ranks, bytes used the maximum.
    pub async fn prepare(&self, request: PrepareRequest) -> Result<Prepared, StartError> {
        let prepare = |rank, client: Client| {
            let all = Arc::clone(&self.prepared);
            async move {
                let answer = client.prepare(request).await.map_err(|status| StartError::from_status(rank, &status));
                all.lock().unwrap_or_else(PoisonError::into_inner).insert(rank);
                answer
            }
        };
        let prepared = on_all_ranks(self.clients.clone(), prepare).await?;
        let rows_named = |mut prepared: Prepared| {
            prepared.max_rows = match prepared.max_rows {
                0 => request.max_rows,
                rows => rows.min(request.max_rows),
            };
            prepared
        };
        Ok(prepared.into_iter().map(rows_named).reduce(tightest).unwrap_or_default())
    }

    /// The first rank that has not answered `Prepare`, if one has not.
    pub fn unprepared(&self) -> Option<usize> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        (0..self.clients.len()).find(|rank| !prepared.contains(rank))
    }

    /// Opens the step streams of all ranks; their rows are empty. Steps count from 1.
    pub async fn run(&self) -> Result<StepStream, StartError> {
        let run = |rank, client: Client| async move {
            client.run().await.map_err(|status| StartError::from_status(rank, &status))
        };
        let streams = on_all_ranks(self.clients.clone(), run).await?;
        Ok(StepStream::new(streams, self.description.vocab_size, self.pulse.clone()))
    }
}

fn tightest(one: Prepared, other: Prepared) -> Prepared {
    Prepared {
        num_pages: one.num_pages.min(other.num_pages),
        max_sequence_tokens: one.max_sequence_tokens.min(other.max_sequence_tokens),
        page_bytes: one.page_bytes.max(other.page_bytes),
        weight_bytes: one.weight_bytes.max(other.weight_bytes),
        workspace_bytes: one.workspace_bytes.max(other.workspace_bytes),
        free_bytes: one.free_bytes.min(other.free_bytes),
        max_rows: one.max_rows.min(other.max_rows),
        // All ranks try the same; the slowest is waited for.
        trial_tokens: one.trial_tokens.min(other.trial_tokens),
        trial_us: one.trial_us.max(other.trial_us),
        prepare_us: one.prepare_us.max(other.prepare_us),
    }
}

fn check_agreement(descriptions: &[ModelDescription]) -> Result<(), StartError> {
    for (rank, description) in descriptions.iter().enumerate() {
        let first = &descriptions[0];
        let fields = [
            ("rank", rank.to_string(), description.rank.to_string()),
            ("world_size", descriptions.len().to_string(), description.world_size.to_string()),
            ("architecture", first.architecture.clone(), description.architecture.clone()),
            ("implementation", first.implementation.clone(), description.implementation.clone()),
            ("dtype", first.dtype.clone(), description.dtype.clone()),
            ("vocab_size", first.vocab_size.to_string(), description.vocab_size.to_string()),
            ("max_positions", first.max_positions.to_string(), description.max_positions.to_string()),
            ("page_size", first.page_size.to_string(), description.page_size.to_string()),
            ("attention_window", first.attention_window.to_string(), description.attention_window.to_string()),
            ("position_switch", first.position_switch.to_string(), description.position_switch.to_string()),
        ];
        for (field, expected, actual) in fields {
            if expected != actual {
                return Err(StartError::Disagree { rank, field, expected, actual });
            }
        }
    }
    Ok(())
}

fn in_common(descriptions: Vec<ModelDescription>) -> ModelDescription {
    let mut descriptions = descriptions.into_iter();
    let mut common = descriptions.next().unwrap_or_default();
    for other in descriptions {
        common.capabilities.retain(|capability| other.capabilities.contains(capability));
        common.missing.extend(other.missing);
    }
    common
}

/// Runs one call on every rank at the same time. The first error ends it, and with it the calls that are still running.
///
/// When a rank dies, others may decline because of it (a collective that fails looks like a worst case that does not
/// run). So a refusal is believed only when no rank turns out to be lost: then trying again is the right thing.
async fn on_all_ranks<I, T, F>(inputs: Vec<I>, call: impl Fn(usize, I) -> F) -> Result<Vec<T>, StartError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StartError>> + Send + 'static,
{
    let mut calls = JoinSet::new();
    let mut answers = Vec::new();
    for (rank, input) in inputs.into_iter().enumerate() {
        let call = call(rank, input);
        calls.spawn(async move { (rank, call.await) });
        answers.push(None);
    }
    while let Some(finished) = calls.join_next().await {
        let (rank, answer) = finished.expect("calls neither panic nor are aborted while they are awaited");
        match answer {
            Ok(answer) => answers[rank] = Some(answer),
            Err(error) if error.is_permanent() => {
                let loss = timeout(REFUSAL_GRACE, first_loss(&mut calls)).await;
                return Err(loss.ok().flatten().unwrap_or(error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answers.into_iter().flatten().collect())
}

/// The next error that is not permanent, among calls still running.
async fn first_loss<T: 'static>(calls: &mut JoinSet<(usize, Result<T, StartError>)>) -> Option<StartError> {
    while let Some(finished) = calls.join_next().await {
        match finished {
            Ok((_, Err(error))) if !error.is_permanent() => return Some(error),
            _ => {}
        }
    }
    None
}

/// How long to wait between attempts: doubling from `first` to `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Backoff {
    /// Quick, because a restarted worker's socket appears within moments and connecting costs next to nothing.
    fn default() -> Self {
        Self { first: Duration::from_millis(20), longest: Duration::from_millis(500) }
    }
}

impl Backoff {
    /// The pauses between attempts, without end.
    pub fn pauses(self) -> impl Iterator<Item = Duration> {
        std::iter::successors(Some(self.first), move |pause| Some((*pause * 2).min(self.longest)))
    }
}

/// Connects, however often it takes, until it works, an error is permanent, or the deadline (none: never) has come;
/// then the last error is the answer. Cancel-safe.
pub async fn connect_with_retry(
    workers: &mut impl Workers,
    backoff: Backoff,
    deadline: Option<Instant>,
) -> Result<Connected, StartError> {
    let mut last_error = StartError::TimedOut;
    let attempts = async {
        for pause in backoff.pauses() {
            match workers.connect().await {
                Ok(connected) => return Ok(connected),
                Err(error) if error.is_permanent() => return Err(error),
                Err(error) => last_error = error,
            }
            tracing::debug!(error = %last_error, "workers are not ready yet");
            sleep(pause).await;
        }
        unreachable!("the pauses never end")
    };
    match deadline {
        None => attempts.await,
        Some(deadline) => timeout_at(deadline, attempts).await.unwrap_or(Err(last_error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of it when rank 0 declines at once, rank 1 agrees, and rank 2 is lost after so long.
    async fn declined_and_lost(after: Duration) -> StartError {
        let call = move |rank, ()| async move {
            match rank {
                0 => Err(StartError::Refused { rank, message: "a collective has failed".to_owned() }),
                1 => Ok(()),
                _ => {
                    sleep(after).await;
                    Err(StartError::Lost { rank, code: Code::Unavailable, message: "it has died".to_owned() })
                }
            }
        };
        on_all_ranks(vec![(); 3], call).await.expect_err("one has declined")
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_believed_unless_another_rank_is_lost_soon_after() {
        assert!(matches!(declined_and_lost(REFUSAL_GRACE / 2).await, StartError::Lost { rank: 2, .. }));
        assert!(matches!(declined_and_lost(2 * REFUSAL_GRACE).await, StartError::Refused { rank: 0, .. }));
    }

    #[test]
    fn what_a_worker_declines_is_a_refusal_and_all_else_a_loss() {
        let declined = ["InvalidArgument", "FailedPrecondition", "OutOfRange", "ResourceExhausted", "Unimplemented"];
        for code in (1..=16).map(Code::from_i32) {
            let error = StartError::from_status(3, &Status::new(code, "why"));
            assert_eq!(error.is_permanent(), declined.contains(&format!("{code:?}").as_str()), "{error}");
            assert!(error.to_string().contains("rank 3") && error.to_string().contains("why"), "{error}");
        }
    }
}
