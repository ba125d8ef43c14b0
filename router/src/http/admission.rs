//! From a connection to a running generation: the body first, then a place in the server, its checks, and the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use futures::future::try_join_all;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::body;
use super::error::ApiError;
use super::prompt_logprobs::Denied;
use super::request_metrics::{Failure, RequestMetrics};
use super::state::{AppState, Arrival, tenant};
use super::ticket::Ticket;
use crate::engine::api::{Failed, Generation};
use crate::health::Phase;
use crate::overload::{Demand, Reason, Refusal, Reservation};
use crate::request::ValidRequest;
use crate::tenants::{Taken, Tenant};
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

/// Places in the server, one per prompt, the same of the tenant, and what of other bounded things its
/// request takes; given back when dropped.
#[derive(Debug)]
pub(super) struct Places {
    permit: OwnedSemaphorePermit,
    taken: Taken,
    prompt_logprobs: Option<OwnedSemaphorePermit>,
}

/// A request that passed all checks and holds its place, but has not started.
#[derive(Debug)]
struct Accepted {
    checked: Checked,
    reservation: Reservation,
    place: Places,
}

impl Places {
    /// Refuses at once when the server is full: what waits here would wait without a bound.
    pub(super) fn take(state: &AppState, tenant: &Tenant, count: u32) -> Result<Self, ApiError> {
        let refused =
            |reason| ApiError::from(state.counts.refused(Refusal::new(reason, state.backlog.next_departure())));
        let (limit, why_not) = limit(state, tenant);
        let permit = Arc::clone(&state.places).try_acquire_many_owned(count);
        check_open(state)?;
        // Nobody closes the semaphore: there are not so many.
        let permit = permit.map_err(|_| refused(Reason::Places(state.config.max_concurrent_requests)))?;
        let taken = tenant.usage.take(count, limit).ok_or_else(|| refused(why_not))?;
        Ok(Self { permit, taken, prompt_logprobs: None })
    }

    /// Refuses who would get none now. Promises nothing: [`Self::take`] decides.
    fn look(state: &AppState, tenant: &Tenant) -> Result<(), ApiError> {
        let (limit, why_not) = limit(state, tenant);
        let reason = match state.places.available_permits() {
            0 => Reason::Places(state.config.max_concurrent_requests),
            _ if tenant.usage.places() >= limit => why_not,
            _ => return Ok(()),
        };
        check_open(state)?;
        Err(state.counts.refused(Refusal::new(reason, state.backlog.next_departure())).into())
    }

    /// `count` of them; `None` when so many are not left.
    pub(super) fn split(&mut self, count: usize) -> Option<Self> {
        let permit = self.permit.split(count)?;
        let taken = self.taken.split(u32::try_from(count).ok()?)?;
        Some(Self { permit, taken, prompt_logprobs: None })
    }

    /// Both together.
    pub(super) fn merge(&mut self, other: Self) {
        self.permit.merge(other.permit);
        self.taken.merge(other.taken);
    }
}

/// Asked behind each try to take a place: a server that stops says so first and takes all places second, so that nobody
/// gets one behind its end, and nobody is told that others have them.
fn check_open(state: &AppState) -> Result<(), ApiError> {
    if state.health.phase() == Phase::Draining { Err(ApiError::STOPPING) } else { Ok(()) }
}

/// How many places a tenant may hold now, and what it is told beyond them.
fn limit(state: &AppState, tenant: &Tenant) -> (u32, Reason) {
    let own = tenant.max_concurrent_requests.unwrap_or(u32::MAX);
    let share = tenant.max_places(state.places.available_permits());
    let why_not = if own <= share { Reason::TenantPlaces(own) } else { Reason::TenantShare(tenant.usage.places()) };
    (own.min(share), why_not)
}

/// A body, and a place as soon as all of it is there: whoever sends slowly holds none meanwhile. Those for whom there is
/// none, or too long a queue, are told before they send it.
pub(super) async fn receive<T: DeserializeOwned>(
    state: &AppState,
    request: Request,
) -> Result<(Arrival, Places, T), ApiError> {
    let arrival = Arrival::of(&request)?;
    Places::look(state, &arrival.tenant).inspect_err(|_| state.counts.asked())?;
    state.backlog.knock(&arrival.tenant, arrival.tenant.min_priority, arrival.deadline).map_err(|refusal| {
        state.counts.asked();
        state.counts.refused(refusal)
    })?;
    let body = body::whole(request, state).await?;
    let place = places(state, &arrival.tenant, 1)?;
    Ok((arrival, place, body.parse()?))
}

/// The same for routes that generate nothing: there is no queue for them.
pub(super) async fn receive_text<T: DeserializeOwned>(
    state: &AppState,
    request: Request,
) -> Result<(Places, T), ApiError> {
    let tenant = tenant(&request)?;
    Places::look(state, &tenant)?;
    let body = body::whole(request, state).await?;
    let place = Places::take(state, &tenant, 1)?;
    Ok((place, body.parse()?))
}

/// Places for generations.
pub(super) fn places(state: &AppState, tenant: &Tenant, count: u32) -> Result<Places, ApiError> {
    Places::take(state, tenant, count).inspect_err(|_| state.counts.asked())
}

/// The places that a request for `count` generations needs beside its first; `field` asked for them.
pub(super) fn further_places(
    state: &AppState,
    tenant: &Tenant,
    count: usize,
    field: &'static str,
) -> Result<Places, ApiError> {
    let own = tenant.max_concurrent_requests.map_or(usize::MAX, |own| own as usize);
    let allowed = own.min(state.config.max_concurrent_requests);
    if count > allowed {
        let problem = format!(
            "asks for {count} generations, but this server takes at most {allowed} at once (max_concurrent_requests)"
        );
        return Err(ApiError::field(field, problem));
    }
    places(state, tenant, u32::try_from(count - 1).unwrap_or(u32::MAX))
}

/// Checks a request that has its place, and notes it among those that wait.
async fn accept(state: &AppState, mut ask: Ask, mut place: Places) -> Result<Accepted, ApiError> {
    state.counts.asked();
    ask.deadline = ask.deadline();
    let (deadline, names) = (ask.deadline, ask.names);
    let knocked = state.backlog.knock(&ask.tenant, ask.priority(), deadline);
    knocked.map_err(|refusal| state.counts.refused(refusal))?;
    let late = || {
        state.counts.failed(Failure::TimedOut);
        Failed::TimedOut
    };
    let checked = in_time(deadline, state.validator.check(ask, &state.health)).await.ok_or_else(late)?;
    let checked = checked.map_err(|error| refused(&state.counts, error))?;
    // Checks that are done at once are done also behind the deadline.
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(late().into());
    }
    place.prompt_logprobs = prompt_logprobs(state, &checked.request, names.prompt_logprobs)?;
    let reservation = state.backlog.reserve(Demand::of(&checked.request), deadline);
    let reservation = reservation.map_err(|refusal| state.counts.refused(refusal))?;
    Ok(Accepted { checked, reservation, place })
}

/// Of what there is for prompt logprobs, what this request takes, if any; `field` is what asks for them.
pub(super) fn prompt_logprobs(
    state: &AppState,
    request: &ValidRequest,
    field: &'static str,
) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
    let Some(sampling) = request.sampling.first().filter(|_| request.prompt_logprobs) else { return Ok(None) };
    let (tokens, top) = (request.prompt.len(), sampling.prompt_top_tokens as usize);
    state.prompt_logprobs.take(tokens, top).map(Some).map_err(|denied| match denied {
        Denied::TooMany { entries, most } => {
            state.counts.failed(Failure::Validation);
            let problem = format!(
                "asks for logprobs of {tokens} prompt tokens with {top} top tokens each, {entries} entries, and {most} \
                 is the most: shorten the prompt or ask for fewer top tokens"
            );
            ApiError::field(field, problem)
        }
        Denied::Taken(all) => {
            state.counts.refused(Refusal::new(Reason::PromptLogprobs(all), state.backlog.next_departure())).into()
        }
    })
}

/// What the work gives, or `None` if the deadline comes first.
async fn in_time<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline.into(), work).await.ok(),
        None => Some(work.await),
    }
}

/// A refusal by the checks, counted. Too many that wait for the same is no fault of the request.
fn refused(counts: &RequestMetrics, error: ValidationError) -> ApiError {
    match error {
        ValidationError::Busy => return counts.refused(Refusal::new(Reason::Grammars, Duration::ZERO)).into(),
        ValidationError::Template(_) => counts.failed(Failure::Template),
        _ => counts.failed(Failure::Validation),
    }
    error.into()
}

/// Hands an accepted request to the engine.
fn start(state: &AppState, accepted: Accepted) -> Admitted {
    let Accepted { checked: Checked { request, prompt }, reservation, place } = accepted;
    let ticket = Ticket::new(&request, prompt.chars().count(), Arc::clone(&state.counts), place);
    let num_sequences = request.sampling.len();
    let prompt_ids = if request.prompt_logprobs { request.prompt.clone() } else { Vec::new() };
    Admitted { generation: state.engine.generate(request, reservation), ticket, prompt, num_sequences, prompt_ids }
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

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::super::error::Dialect;
    use super::*;

    #[test]
    fn too_many_grammars_are_overload_and_no_fault_of_the_request() {
        let error = refused(&RequestMetrics::new(), ValidationError::Busy);
        let response = error.into_response(Dialect::OpenAi);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "1");
    }
}
