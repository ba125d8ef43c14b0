//! What a request must pass before its body is read: the API key, and a server that can take it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use super::error::{ApiError, Dialect};
use super::state::AppState;
use crate::health::Phase;

/// Around every route that does work.
pub(super) async fn guard(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let refusal = check_key(&state, request.headers()).and_then(|()| check_phase(&state, request.method()));
    match refusal {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(Dialect::of(request.uri().path())),
    }
}

/// Around routes that only need the key.
pub(super) async fn key(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    match check_key(&state, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(Dialect::of(request.uri().path())),
    }
}

/// The scheme in any case, as HTTP has it; the key exactly, in a time that says nothing about it.
fn check_key(state: &AppState, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(key) = &state.config.api_key else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    let is_right = given.is_some_and(|given| given.ct_eq(key.expose().as_bytes()).into());
    if is_right { Ok(()) } else { Err(ApiError::Unauthorized) }
}

/// While workers are being replaced requests are taken and wait; before the first and after the last they cannot.
fn check_phase(state: &AppState, method: &Method) -> Result<(), ApiError> {
    if method != Method::POST {
        return Ok(());
    }
    match state.health.phase() {
        Phase::Serving | Phase::Recovering => Ok(()),
        // Nothing can be computed before the first limits are known.
        Phase::Leaving if state.health.limits().is_some() => Ok(()),
        Phase::Starting => {
            let progress = state.health.progress();
            Err(ApiError::Unavailable(format!("the model is still being loaded; try again ({progress})").into()))
        }
        Phase::Leaving | Phase::Draining => Err(ApiError::STOPPING),
    }
}
