//! From a connection to a running generation: a place in the server first, then the body, its checks, and the engine.

use std::sync::Arc;

use axum::extract::Request;
use futures::future::try_join_all;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};

use super::body;
use super::error::ApiError;
use super::request_metrics::Failure;
use super::state::{AppState, Arrival};
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

/// Places in the server, one per prompt; given back when dropped.
#[derive(Debug)]
pub(super) struct Places(OwnedSemaphorePermit);

/// A request that passed all checks and holds its place, but has not started.
#[derive(Debug)]
struct Accepted {
    checked: Checked,
    place: Places,
}

impl Places {
    /// Refuses at once when the server is full: what waits here would wait without a bound.
    pub(super) fn take(state: &AppState, count: u32) -> Result<Self, ApiError> {
        match Arc::clone(&state.places).try_acquire_many_owned(count) {
            Ok(permit) => Ok(Self(permit)),
            Err(TryAcquireError::NoPermits) => Err(ApiError::Overloaded(state.config.max_concurrent_requests)),
            Err(TryAcquireError::Closed) => Err(ApiError::Internal),
        }
    }

    /// `count` of them; `None` when so many are not left.
    pub(super) fn split(&mut self, count: usize) -> Option<Self> {
        self.0.split(count).map(Self)
    }

    /// Both together.
    pub(super) fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

/// A place, and only then the body: whoever is refused for lack of places has cost no memory.
pub(super) async fn receive<T: DeserializeOwned>(
    state: &AppState,
    request: Request,
) -> Result<(Arrival, Places, T), ApiError> {
    let arrival = Arrival::of(&request)?;
    let place = places(state, 1)?;
    let body = body::read(request, state).await?;
    Ok((arrival, place, body))
}

/// Places for generations; a refusal is counted.
pub(super) fn places(state: &AppState, count: u32) -> Result<Places, ApiError> {
    Places::take(state, count).inspect_err(|_| {
        state.counts.asked();
        state.counts.failed(Failure::Overloaded);
    })
}

/// The places that a request for `count` generations needs beside its first; `field` asked for them.
pub(super) fn further_places(state: &AppState, count: usize, field: &'static str) -> Result<Places, ApiError> {
    let allowed = state.config.max_concurrent_requests;
    if count > allowed {
        let problem = format!(
            "asks for {count} generations, but this server takes at most {allowed} at once (max_concurrent_requests)"
        );
        return Err(ApiError::field(field, problem));
    }
    places(state, u32::try_from(count - 1).unwrap_or(u32::MAX))
}

/// Checks a request that has its place.
async fn accept(state: &AppState, ask: Ask, place: Places) -> Result<Accepted, ApiError> {
    state.counts.asked();
    let checked = state.validator.check(ask, &state.health).await.inspect_err(|error| {
        state.counts.failed(match error {
            ValidationError::Template(_) => Failure::Template,
            _ => Failure::Validation,
        });
    })?;
    Ok(Accepted { checked, place })
}

/// Hands an accepted request to the engine.
fn start(state: &AppState, accepted: Accepted) -> Admitted {
    let Accepted { checked: Checked { request, prompt }, place } = accepted;
    let ticket = Ticket::new(&request, prompt.chars().count(), Arc::clone(&state.counts), place);
    let num_sequences = request.sampling.len();
    let prompt_ids = if request.prompt_logprobs { request.prompt.clone() } else { Vec::new() };
    Admitted { generation: state.engine.generate(request), ticket, prompt, num_sequences, prompt_ids }
}

/// Several requests of one client. Nothing runs before every one has been accepted: a bad one costs no work.
pub(super) async fn admit_all(
    state: &AppState,
    asks: impl IntoIterator<Item = (Ask, Places)>,
) -> Result<Vec<Admitted>, ApiError> {
    let accepted = try_join_all(asks.into_iter().map(|(ask, place)| accept(state, ask, place))).await?;
    Ok(accepted.into_iter().map(|accepted| start(state, accepted)).collect())
}

/// Both at once, for the routes with one prompt.
pub(super) async fn admit(state: &AppState, ask: Ask, place: Places) -> Result<Admitted, ApiError> {
    Ok(start(state, accept(state, ask, place).await?))
}
