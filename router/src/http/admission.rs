//! From a checked form to a running generation: a place in the server first, then the checks, then the engine.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};

use super::error::ApiError;
use super::request_metrics::Failure;
use super::state::AppState;
use super::ticket::Ticket;
use crate::engine::api::Generation;
use crate::validation::{Ask, Checked, ValidationError};

/// A request that the engine has.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) generation: Generation,
    pub(super) ticket: Ticket,
    /// The prompt as text.
    pub(super) prompt: String,
    pub(super) num_sequences: usize,
    /// The prompt's ids, kept only if their logprobs were asked for.
    pub(super) prompt_ids: Vec<u32>,
}

/// A request that passed all checks and holds its place, but has not started.
#[derive(Debug)]
pub(super) struct Accepted {
    checked: Checked,
    permit: OwnedSemaphorePermit,
}

/// Refuses at once when the server is full: what waits here would wait without a bound.
pub(super) async fn accept(state: &AppState, ask: Ask) -> Result<Accepted, ApiError> {
    state.counts.asked();
    let permit = Arc::clone(&state.permits).try_acquire_owned().map_err(|error| match error {
        TryAcquireError::NoPermits => {
            state.counts.failed(Failure::Overloaded);
            ApiError::Overloaded(state.config.max_concurrent_requests)
        }
        TryAcquireError::Closed => ApiError::Internal,
    })?;
    let checked = state.validator.check(ask, &state.health).await.inspect_err(|error| {
        state.counts.failed(match error {
            ValidationError::Template(_) => Failure::Template,
            _ => Failure::Validation,
        });
    })?;
    Ok(Accepted { checked, permit })
}

/// Hands an accepted request to the engine.
pub(super) fn start(state: &AppState, accepted: Accepted) -> Admitted {
    let Accepted { checked: Checked { request, prompt }, permit } = accepted;
    let ticket = Ticket::new(&request, prompt.chars().count(), Arc::clone(&state.counts), permit);
    let num_sequences = request.sampling.len();
    let prompt_ids = if request.prompt_logprobs { request.prompt.clone() } else { Vec::new() };
    Admitted { generation: state.engine.generate(request), ticket, prompt, num_sequences, prompt_ids }
}

/// Both at once, for the routes with one prompt.
pub(super) async fn admit(state: &AppState, ask: Ask) -> Result<Admitted, ApiError> {
    Ok(start(state, accept(state, ask).await?))
}
